"""Where converted tensors go, slab by slab: safetensors or Orbax.

Both are written in a folder that is not yet the result, see `convert_job`. A
slab is a whole tensor, or one entry of its first axis.
"""

from collections.abc import Mapping
import json
import math
import os
import pathlib
from typing import Any, NamedTuple, Protocol

from absl import logging
import numpy as np

from launch.convert_source import (
  DTYPES,
  INDEX,
  Tensor,
  read_header,
  read_tensor,
)

STEP = 'checkpoints/0'
CHUNK = 8 << 20  # Bytes that one file of an Orbax array holds at most.
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


class Spec(NamedTuple):
  """A tensor to be written.

  Attributes:
    shape: Whole.
    dtype: Of its numbers.
    stacked: It comes entry by entry of its first axis.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  stacked: bool = False

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


class Reader(Protocol):
  """Gives slabs."""

  def get(self, name: str, lead: int | None) -> np.ndarray:
    """A slab as it was written."""


class Sink(Reader, Protocol):
  """Takes slabs of tensors whose specs it was made with."""

  def put(self, name: str, lead: int | None, values: np.ndarray) -> None:
    """Writes a slab; again is as well."""


class SafetensorsReader:
  """Slabs of finished files."""

  def __init__(self, tensors: Mapping[str, Tensor]):
    self._tensors = dict(tensors)

  def get(self, name: str, lead: int | None) -> np.ndarray:
    """See `Reader`."""
    return read_tensor(self._slab(name, lead))

  def _slab(self, name, lead):
    tensor = self._tensors[name]
    if lead is None:
      return tensor
    step = tensor.nbytes // tensor.shape[0]
    begin = tensor.begin + lead * step
    return Tensor(tensor.file, begin, tensor.shape[1:], tensor.dtype)


class SafetensorsSink(SafetensorsReader):
  """Safetensors of a limited size with an index, as Hugging Face has them."""

  def __init__(
    self,
    folder: pathlib.Path,
    specs: Mapping[str, Spec],
    stem: str,
    metadata: Mapping[str, str],
    limit: int,
  ):
    """Makes the files in their final size, or finds them.

    Args:
      folder: Where.
      specs: What will be written.
      stem: Of the file names.
      metadata: For each file.
      limit: Bytes of tensors in one file, unless one tensor has more.

    Raises:
      OSError: The disk has no room for them.
    """
    groups = split(specs, limit)
    files = [folder / f'{stem}.safetensors']
    if len(groups) > 1:
      files = [
        folder / f'{stem}-{i + 1:05}-of-{len(groups):05}.safetensors'
        for i in range(len(groups))
      ]
    super().__init__({})
    for file, names in zip(files, groups, strict=True):
      head = header({name: specs[name] for name in names}, metadata)
      size = len(head) + sum(specs[name].nbytes for name in names)
      if not file.exists() or file.stat().st_size != size:
        with open(file, 'wb') as f:
          f.write(head)
          f.flush()
          os.posix_fallocate(f.fileno(), 0, size)
      self._tensors |= read_header(file)[0]
    if len(files) > 1:
      total = {'total_size': sum(spec.nbytes for spec in specs.values())}
      where = {name: t.file.name for name, t in self._tensors.items()}
      text = json.dumps({'metadata': total, 'weight_map': where}, indent=2)
      (folder / f'{stem}{INDEX}').write_text(text + '\n')

  def put(self, name: str, lead: int | None, values: np.ndarray) -> None:
    """See `Sink`."""
    tensor = self._slab(name, lead)
    values = np.ascontiguousarray(values, tensor.dtype)
    left = memoryview(values.reshape(-1).view(np.uint8))
    with open(tensor.file, 'r+b', buffering=0) as f:
      f.seek(tensor.begin)
      while len(left):
        left = left[f.write(left) :]


def split(specs: Mapping[str, Spec], limit: int) -> list[list[str]]:
  """Names in order, in groups of at most `limit` bytes or of one tensor."""
  groups: list[list[str]] = [[]]
  room = limit
  for name, spec in specs.items():
    if groups[-1] and spec.nbytes > room:
      groups.append([])
      room = limit
    groups[-1].append(name)
    room -= spec.nbytes
  return groups


def header(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> bytes:
  """The begin of a safetensors file, up to the first tensor."""
  entries: dict[str, Any] = {'__metadata__': dict(metadata)} if metadata else {}
  begin = 0
  for name, spec in specs.items():
    end = begin + spec.nbytes
    entries[name] = {
      'dtype': NAMES[spec.dtype],
      'shape': list(spec.shape),
      'data_offsets': [begin, end],
    }
    begin = end
  text = json.dumps(entries, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # The first tensor is aligned.
  return len(text).to_bytes(8, 'little') + text


class OrbaxReader:
  """Slabs of a finished checkpoint that `OrbaxSink` wrote."""

  def __init__(self, folder: pathlib.Path, specs: Mapping[str, Spec]):
    self._arrays = {name: _open(_path(folder, name)).result() for name in specs}

  def get(self, name: str, lead: int | None) -> np.ndarray:
    """See `Reader`."""
    index = ... if lead is None else lead
    return np.asarray(self._arrays[name][index].read().result())


class OrbaxSink(OrbaxReader):
  """A checkpoint at step 0, of one file per chunk of an array.

  Orbax itself writes the frame, a tree of scalars; their arrays are then made
  anew in their true shape, in the same format (zarr), which Orbax reads by the
  shape it finds. So no array is ever whole in memory, and a device of a mesh
  reads the chunks it needs.
  """

  def __init__(self, folder: pathlib.Path, specs: Mapping[str, Spec]):
    """Makes the arrays, or finds them.

    Args:
      folder: Gets `checkpoints/0/state`.
      specs: Path in the tree, joined by '/', to what will be written.
    """
    if not (folder / STEP).exists():
      _write_frame(folder.resolve() / STEP, specs)
    super().__init__(folder, specs)
    for name, spec in specs.items():
      array = self._arrays[name]
      if (array.shape, array.dtype.numpy_dtype) != (spec.shape, spec.dtype):
        self._arrays[name] = _create(_path(folder, name), spec)

  def put(self, name: str, lead: int | None, values: np.ndarray) -> None:
    """See `Sink`."""
    array = self._arrays[name]
    index = ... if lead is None else lead
    array[index].write(np.asarray(values, array.dtype.numpy_dtype)).result()


def chunks(spec: Spec) -> list[int]:
  """Sizes of a chunk of at most CHUNK bytes, within one slab.

  The longest axis is halved while it has halves, as meshes divide arrays.
  """
  sizes = [max(size, 1) for size in spec.shape]
  if spec.stacked:
    sizes[0] = 1
  while math.prod(sizes) * spec.dtype.itemsize > CHUNK:
    even = [size for size in sizes if size % 2 == 0]
    longest = sizes.index(max(even or sizes))
    sizes[longest] = -(-sizes[longest] // 2)
  return sizes


def _write_frame(step, specs):
  import flax.traverse_util
  import orbax.checkpoint as ocp

  flat = {name: np.zeros((), np.float32) for name in specs}
  tree = flax.traverse_util.unflatten_dict(flat, sep='/')
  handler = ocp.CompositeCheckpointHandler(
    state=ocp.PyTreeCheckpointHandler(use_ocdbt=False)
  )
  args = ocp.args.Composite(state=ocp.args.PyTreeSave(tree))
  said = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)  # It warns that it is not OCDBT.
  try:
    with ocp.Checkpointer(handler) as checkpointer:
      checkpointer.save(step, args)
  finally:
    logging.set_verbosity(said)


def _path(folder, name):
  return folder.resolve() / STEP / 'state' / name.replace('/', '.')


def _open(path):
  import tensorstore

  store = {'driver': 'file', 'path': f'{path}/'}
  return tensorstore.open({'driver': 'zarr', 'kvstore': store}, open=True)


def _create(path, spec):
  import tensorstore

  store = {'driver': 'file', 'path': f'{path}/'}
  metadata = {'compressor': None, 'chunks': chunks(spec)}
  made = {'driver': 'zarr', 'kvstore': store, 'metadata': metadata}
  made['dtype'] = spec.dtype.name
  return tensorstore.open(
    made, create=True, delete_existing=True, shape=spec.shape
  ).result()
