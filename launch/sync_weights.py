"""Weights of the sync judge: one safetensors file.

Arrays are float16; the file's metadata has the sizes of the encoders, the clip
of the scores and the calibration of the confidence as JSON.
"""

from collections.abc import Mapping
import dataclasses
import os
import pathlib
from typing import Any

import infomax_jax
from infomax_jax import config as config_lib
from infomax_jax.sync import SyncConfig
from infomax_jax.sync.offsets import Calibration
from launch import weights_file

KIND = weights_file.Kind('sync', 'weights', 'launch.sync_export')
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
  about = {
    'model': dataclasses.asdict(weights.model),
    'clip': weights.clip,
    'calibration': weights.calibration._asdict(),
  }
  weights_file.write(path, KIND, weights.params, about)


def load(path: str | os.PathLike = DEFAULT) -> SyncWeights:
  """Reads what `save` has written.

  Raises:
    UserError: it is missing, cut short, or of something else.
  """
  with weights_file.reading(path, KIND) as (about, params):
    return SyncWeights(
      config_lib.build(SyncConfig, about['model']),
      float(about['clip']),
      Calibration(**about['calibration']),
      params,
    )
