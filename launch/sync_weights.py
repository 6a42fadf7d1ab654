"""Weights of the sync judge: one safetensors file.

Arrays are float16; the file's metadata has the sizes of the encoders, the clip
of the scores and the calibration of the confidence as JSON.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

import flax.traverse_util
import numpy as np
import safetensors
import safetensors.numpy

import infomax_jax
from infomax_jax import config as config_lib
from infomax_jax.sync import SyncConfig
from infomax_jax.sync.offsets import Calibration
from launch import atomic
from launch.errors import UserError

DEFAULT = (
  pathlib.Path(infomax_jax.__file__).parent / 'assets/grid_sync.safetensors'
)


@dataclasses.dataclass(frozen=True)
class SyncWeights:
  """Plain numpy weights with what it takes to use them.

  Attributes:
    model: Sizes of the encoders.
    clip: c of c tanh(score / c).
    calibration: Of the confidence.
    params: Of `Sync`, float32.
  """

  model: SyncConfig
  clip: float
  calibration: Calibration
  params: Mapping[str, Any]


def save(path: str | os.PathLike, weights: SyncWeights) -> None:
  """Writes under a temporary name, then renames it.

  Raises:
    UserError: a weight is not finite in float16.
  """
  flat = {}
  tree = flax.traverse_util.flatten_dict(weights.params, sep='/')
  for name, value in tree.items():
    with np.errstate(over='ignore'):
      flat[name] = np.asarray(value, np.float16, order='C')
    if not np.isfinite(flat[name]).all():
      raise UserError(
        f'{path}: {name} does not fit float16; export another step'
      )
  about = {
    'model': dataclasses.asdict(weights.model),
    'clip': weights.clip,
    'calibration': weights.calibration._asdict(),
  }
  data = safetensors.numpy.save(flat, metadata={'sync': json.dumps(about)})
  with atomic.replacing(path) as half:
    half.write_bytes(data)


def load(path: str | os.PathLike = DEFAULT) -> SyncWeights:
  """Reads what `save` has written.

  Raises:
    UserError: it is missing, cut short, or of something else.
  """
  if not os.path.exists(path):
    raise UserError(
      f'{path}: no such weights; give a file that launch.sync_export wrote, or '
      'none for the shipped one'
    )
  try:
    with safetensors.safe_open(path, framework='numpy') as f:
      about = json.loads((f.metadata() or {})['sync'])
      flat = {k: f.get_tensor(k).astype(np.float32) for k in f.keys()}
    return SyncWeights(
      config_lib.build(SyncConfig, about['model']),
      float(about['clip']),
      Calibration(**about['calibration']),
      flax.traverse_util.unflatten_dict(flat, sep='/'),
    )
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(
      f'{path}: is cut short or is no safetensors file ({error}); copy or '
      'export it again'
    ) from error
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f'{path}: is no file of launch.sync_export ({error}); export it again'
    ) from error
