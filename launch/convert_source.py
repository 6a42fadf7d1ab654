"""Tensors of safetensors files, read one by one.

Files are read, not mapped: the mapped pages of a 40 GB file would count as
memory of this process.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
from typing import Any

import ml_dtypes
import numpy as np

from launch.errors import UserError

DTYPES = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'F8_E4M3': ml_dtypes.float8_e4m3fn,
  'F8_E5M2': ml_dtypes.float8_e5m2,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U64': np.uint64,
  'U32': np.uint32,
  'U16': np.uint16,
  'U8': np.uint8,
  'BOOL': np.bool_,
}
INDEX = '.safetensors.index.json'
# Weights and their index, but for variants such as model.fp16.safetensors and
# model.safetensors.index.fp16.json.
PLAIN = re.compile(r'(?:^|/)[^./]+\.safetensors(?:\.index\.json)?$')
ANY_INDEX = re.compile(r'\.safetensors\.index(?:\.[\w-]+)?\.json$')
MAX_HEADER = 100 << 20  # As the format's own reader has it.
_SHARD = re.compile(r'(.*)-\d{5}-of-\d{5}\.safetensors$')


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where one tensor's bytes are.

  Attributes:
    file: Of which file.
    begin: First byte.
    shape: Of the tensor.
    dtype: Of its numbers.
  """

  file: pathlib.Path
  begin: int
  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsSource:
  """A checkpoint in one or more safetensors files.

  Attributes:
    where: For messages.
    tensors: Name to `Tensor`.
    config: config.json beside the files; {} if there is none.
    metadata: Of the first file.
  """

  def __init__(self, path: str | os.PathLike):
    """Reads headers only.

    Args:
      path: A file, an index, or a folder with either.

    Raises:
      UserError: Nothing to read there, or a file is damaged or missing.
    """
    self.where = pathlib.Path(path)
    files, index = find_files(self.where)
    self.tensors: dict[str, Tensor] = {}
    self.metadata: dict[str, str] = {}
    for file in files:
      header, metadata = read_header(file)
      self.metadata = self.metadata or metadata
      for name in header.keys() & self.tensors.keys():
        other = self.tensors[name].file.name
        raise UserError(
          f'{file}: has {name}, which {other} has too: give one of the files'
        )
      self.tensors |= header
    for name, file in index.items():
      if name not in self.tensors:
        raise UserError(
          f'{file}: lacks {name}, which the index says it has: download both '
          'again, they are not of one checkpoint'
        )
    self.config = read_config(files[0].parent)
    self._files = files

  def read(self, name: str) -> np.ndarray:
    """One tensor, whole, in the file's dtype."""
    return read_tensor(self.tensors[name])

  def fingerprint(self) -> list[Any]:
    """What tells this checkpoint from another without reading it all."""
    found = []
    for file in self._files:
      with open(file, 'rb') as f:
        head = f.read(8)
        head += f.read(min(int.from_bytes(head, 'little'), MAX_HEADER))
      size = file.stat().st_size
      found.append([file.name, size, hashlib.sha256(head).hexdigest()])
    return found


def find_files(
  path: pathlib.Path,
) -> tuple[list[pathlib.Path], dict[str, pathlib.Path]]:
  """The files of a checkpoint, and of the index the name -> file.

  Raises:
    UserError: There is none, more than one, or a shard or index is missing.
  """
  if ANY_INDEX.search(path.name) and path.is_file():
    return by_index(path)
  if path.is_file():
    if not path.name.endswith('.safetensors'):
      raise UserError(
        f'{path}: is no .safetensors file; give one, or the folder it is in'
      )
    if _SHARD.match(path.name):
      raise UserError(
        f'{path}: is one of several shards; give the folder, with its index'
      )
    return [path], {}
  if not path.is_dir():
    raise UserError(f'{path}: no such file or folder')
  here = sorted(path.iterdir())
  # Without variants, if there is anything else.
  here = [p for p in here if PLAIN.search(p.name)] or here
  indices = [p for p in here if ANY_INDEX.search(p.name)]
  found = [p for p in here if p.suffix == '.safetensors']
  if len(indices) == 1:
    return by_index(indices[0])
  names = ', '.join(p.name for p in indices or found)
  if len(indices) > 1:
    raise UserError(f'{path}: has several indices ({names}): give one of them')
  if len(found) == 1 and not _SHARD.match(found[0].name):
    return found, {}
  if not found:
    raise UserError(
      f'{path}: has no *.safetensors; give the folder (such as transformer/) '
      'or the file with the weights'
    )
  if shards := [m for p in found if (m := _SHARD.match(p.name))]:
    stem, _, variant = shards[0][1].partition('.')
    name = f'{stem}{INDEX}'
    if variant:
      name = f'{stem}.safetensors.index.{variant}.json'
    raise UserError(
      f'{path}: the index {name} is missing, it says what the shards must '
      'hold: download it, too'
    )
  raise UserError(f'{path}: has several files ({names}): give one of them')


def by_index(
  path: pathlib.Path,
) -> tuple[list[pathlib.Path], dict[str, pathlib.Path]]:
  """The files that an index names, and name -> file.

  Raises:
    UserError: It is no index, or a shard is missing.
  """
  try:
    names = json.loads(path.read_text(encoding='utf-8'))['weight_map']
    index = {name: path.parent / str(file) for name, file in names.items()}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f'{path}: is no index of shards ({error!r}): download it again'
    ) from error
  files = sorted(set(index.values()))
  if gone := [file.name for file in files if not file.is_file()]:
    raise UserError(
      f'{path.parent}: {len(gone)} of {len(files)} shards are missing '
      f'({gone[0]}): download the rest'
    )
  if not files:
    raise UserError(f'{path}: names no tensors: download it again')
  return files, index


def read_header(
  file: pathlib.Path,
) -> tuple[dict[str, Tensor], dict[str, str]]:
  """Every tensor of a file, and the file's metadata.

  Raises:
    UserError: It is cut short, or no safetensors file.
  """
  size = file.stat().st_size
  with open(file, 'rb') as f:
    length = int.from_bytes(f.read(8), 'little')
    text = f.read(length) if length <= MAX_HEADER else b''
  again = 'download or copy it again'
  if size < 8 or (length <= MAX_HEADER and len(text) < length):
    raise UserError(f'{file}: is cut short, at {size} bytes: {again}')
  tensors = {}
  try:
    header = json.loads(text)
    metadata = header.pop('__metadata__', {})
    for name, entry in header.items():
      if entry['dtype'] not in DTYPES:
        raise UserError(
          f'{file}: {name} is of the dtype {entry["dtype"]}, which is not read '
          'here: give weights that are not quantised'
        )
      begin, end = entry['data_offsets']
      dtype = np.dtype(DTYPES[entry['dtype']])
      tensor = Tensor(file, 8 + length + begin, tuple(entry['shape']), dtype)
      if tensor.nbytes != end - begin or begin < 0:
        raise ValueError(f'{name} has {end - begin} bytes')
      tensors[name] = tensor
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f'{file}: is no safetensors file, or a damaged one ({error!r}): {again}'
    ) from error
  must = max((t.begin + t.nbytes for t in tensors.values()), default=0)
  if size < must:
    raise UserError(
      f'{file}: is cut short, it has {size} of {must} bytes: {again}'
    )
  return tensors, metadata


def read_tensor(tensor: Tensor) -> np.ndarray:
  """Reads it; UserError if the file has become shorter."""
  out = np.empty(tensor.shape, tensor.dtype)
  left = memoryview(out.reshape(-1).view(np.uint8))
  with open(tensor.file, 'rb', buffering=0) as f:
    f.seek(tensor.begin)
    while len(left):
      count = f.readinto(left)
      if not count:
        raise UserError(f'{tensor.file}: is cut short: copy it again')
      left = left[count:]
  return out


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """config.json and preprocessor_config.json of a folder, as far as there."""
  config = {}
  for name in ('preprocessor_config.json', 'config.json'):
    path = folder / name
    if not path.exists():
      continue
    try:
      config |= json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, TypeError) as error:
      raise UserError(
        f'{path}: is no JSON object ({error}): download it again'
      ) from error
  return config
