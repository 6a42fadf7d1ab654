"""Torch's own files, read safely: tensors and plain values, no code.

Needs the `convert` extra, whose torch refuses anything else in a pickle.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import os
import pathlib
import pickle
from typing import Any

import ml_dtypes
import numpy as np

from launch import atomic
from launch.convert_source import read_config
from launch.errors import UserError

SUFFIXES = ('.pth', '.pt', '.bin')


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
    return torch.load(path, map_location='cpu', weights_only=True)
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


class TorchSource:
  """A state dict in one file; like `SafetensorsSource`, but all in memory."""

  def __init__(self, path: str | os.PathLike):
    """Raises UserError, see `load`, also if it holds no tensors."""
    self.where = pathlib.Path(path)
    state = load(path)
    if isinstance(state, Mapping) and 'state_dict' in state:
      state = state['state_dict']
    torch = import_torch()
    if not isinstance(state, Mapping) or not all(
      isinstance(value, torch.Tensor) for value in state.values()
    ):
      raise UserError(f'{path}: is no state dict: save one')
    self._state = {name: to_numpy(value) for name, value in state.items()}
    self.tensors = {
      name: Held(value.shape, value.dtype, value.nbytes)
      for name, value in self._state.items()
    }
    self.config = read_config(self.where.parent)
    self.metadata: dict[str, str] = {}

  def read(self, name: str) -> np.ndarray:
    """One tensor."""
    return self._state[name]

  def fingerprint(self) -> list[Any]:
    """See `SafetensorsSource`."""
    with open(self.where, 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
    return [[self.where.name, self.where.stat().st_size, digest]]
