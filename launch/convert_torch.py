"""Torch's own files, read safely: tensors and plain values, no code.

Needs the `convert` extra, whose torch refuses anything else in a pickle.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import os
import pathlib
import pickle
import re
from typing import Any
import zipfile

import ml_dtypes
import numpy as np

from launch import atomic
from launch.convert_source import by_index, read_config
from launch.errors import UserError

SUFFIXES = ('.pth', '.pt', '.bin')
# As transformers saved before there were safetensors.
BIN = re.compile(r'pytorch_model(-\d{5}-of-\d{5})?\.bin$')
BIN_INDEX = 'pytorch_model.bin.index.json'


def import_torch() -> Any:
  """torch; UserError if it is not installed."""
  try:
    import torch
  except ImportError as error:
    raise UserError(
      "torch's own files need torch: pip install -e '.[convert]', or give "
      'safetensors'
    ) from error
  return torch


def load(path: str | os.PathLike) -> Any:
  """What a file holds, with tensors still torch's.

  Raises:
    UserError: it is missing or damaged, or holds more than tensors and plain
      values.
  """
  torch = import_torch()
  if not os.path.isfile(path):
    raise UserError(f'{path}: no such file')
  try:
    # Zipped, as they have been since 2020, they need not be in memory whole.
    return torch.load(
      path,
      map_location='cpu',
      weights_only=True,
      mmap=zipfile.is_zipfile(path),
    )
  except pickle.UnpicklingError as error:
    said = str(error).split('\n')[0]
    raise UserError(
      f'{path}: is no file of torch.save, or holds code, which is not run '
      f'({said}): save its state_dict'
    ) from error
  except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
    said = str(error).split('\n')[0]
    raise UserError(
      f'{path}: is cut short or no file of torch.save ({said}): copy it again'
    ) from error


def save(path: str | os.PathLike, value: Any) -> None:
  """Writes whole or not at all; arrays in `value` must be torch's."""
  torch = import_torch()
  with atomic.replacing(path) as half:
    torch.save(value, half)


def to_numpy(tensor: Any) -> np.ndarray:
  """A torch tensor's numbers, in its dtype."""
  torch = import_torch()
  if tensor.dtype == torch.bfloat16:
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
  return tensor.numpy()


@dataclasses.dataclass(frozen=True)
class Held:
  """A tensor in memory."""

  shape: tuple[int, ...]
  dtype: np.dtype
  nbytes: int


def is_torch(path: pathlib.Path) -> bool:
  """Whether a file, or a folder for lack of safetensors, is of torch's own."""
  if path.is_dir():
    names = [p.name for p in path.iterdir()]
    safe = any(name.endswith('.safetensors') for name in names)
    return not safe and any(BIN.match(name) for name in names)
  return path.suffix in SUFFIXES


class TorchSource:
  """State dicts in torch's files; like `SafetensorsSource`, but mapped."""

  def __init__(self, path: str | os.PathLike):
    """Reads a file, or a folder's; raises UserError, see `load`.

    Also if they hold no tensors, or the index or a shard of several is missing.
    """
    self.where = pathlib.Path(path)
    self._files = _files(self.where)
    self._state: dict[str, np.ndarray] = {}
    for file in self._files:
      self._state |= _state_dict(file)
    self.tensors = {
      name: Held(value.shape, value.dtype, value.nbytes)
      for name, value in self._state.items()
    }
    self.config = read_config(self._files[0].parent)
    self.metadata: dict[str, str] = {}

  def read(self, name: str) -> np.ndarray:
    """One tensor."""
    return self._state[name]

  def fingerprint(self) -> list[Any]:
    """See `SafetensorsSource`."""
    found = []
    for path in self._files:
      with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
      found.append([path.name, path.stat().st_size, digest])
    return found


def _files(path):
  if not path.is_dir():
    return [path]
  if (path / BIN_INDEX).exists():
    return by_index(path / BIN_INDEX)[0]
  found = sorted(p for p in path.iterdir() if BIN.match(p.name))
  if len(found) == 1 and found[0].name == 'pytorch_model.bin':
    return found
  raise UserError(
    f'{path}: the index {BIN_INDEX} is missing, it says which shards there '
    'are: download it, too'
  )


def _state_dict(path):
  state = load(path)
  # As trainers wrap it; HunyuanVideo's own file has `module`.
  for key in ('state_dict', 'module', 'model'):
    if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
      state = state[key]
  torch = import_torch()
  if not isinstance(state, Mapping) or not all(
    isinstance(value, torch.Tensor) for value in state.values()
  ):
    raise UserError(f'{path}: is no state dict: save one')
  return {name: to_numpy(value) for name, value in state.items()}
