"""Turns a workdir of the sync judge's training into one file of weights.

  python -m launch.sync_export --workdir runs/sync \
      --clips data/grid/clips/train --out sync.safetensors

The clips calibrate the confidence: what the judge says of them, and of the
same with the sound of others.
"""

from collections.abc import Mapping
import pathlib
import sys
from typing import Any

from absl import app, flags

from infomax_jax import config as config_lib
from infomax_jax.sync import SyncConfig, offsets
from infomax_jax.sync.config import LossConfig
from launch import checkpoint, sync_evaluation
from launch.errors import UserError, one_line
from launch.sync_judge import Judge
from launch.sync_weights import SyncWeights, save

_WORKDIR = flags.DEFINE_string('workdir', None, 'a run of launch.train')
_STEP = flags.DEFINE_integer('step', None, 'of which checkpoint; the last')
_CLIPS = flags.DEFINE_string('clips', None, 'folder of clips shards')
_NUM_CLIPS = flags.DEFINE_integer('num_clips', 60, 'how many of them', 2)
_OUT = flags.DEFINE_string('out', None, 'the .safetensors file to write')


def calibrated(
  config: Mapping[str, Any], params: Any, clips: str, num_clips: int
) -> SyncWeights:
  """A run's parameters with a confidence calibrated on some clips.

  Args:
    config: of the run, see `configs/infomax/grid_sync.py`.
    params: the run's.
    clips: folder of `clips` shards.
    num_clips: how many clips count, spread evenly over the folder.

  Raises:
    UserError: no shards there, or clips that are too short.
  """
  model = config_lib.build(SyncConfig, config['model'])
  clip = config_lib.build(LossConfig, config['objective']).clip
  blank = offsets.Calibration(0.0, 0.0)
  judge = Judge(SyncWeights(model, clip, blank, params))
  read = sync_evaluation.read_clips(judge, clips, num_clips)
  together = sync_evaluation.planted(judge, read, (-5, 0, 5))
  fitted = offsets.calibrate(
    [verdict for _, verdict in together],
    list(sync_evaluation.unrelated(judge, read)),
  )
  return SyncWeights(model, clip, fitted, params)


def main(_: list[str]) -> None:
  with one_line():
    if not _WORKDIR.value or not _OUT.value or not _CLIPS.value:
      raise UserError('--workdir, --clips and --out are needed; see --help')
    if not _OUT.value.endswith('.safetensors'):
      raise UserError(f'--out={_OUT.value}: name it .safetensors')
    config = checkpoint.read_config(_WORKDIR.value)
    if config.get('experiment') != 'infomax_jax.sync.experiment':
      raise UserError(
        f'{_WORKDIR.value}: is a run of {config.get("experiment")}; give one '
        'of infomax_jax.sync.experiment'
      )
    _, params = checkpoint.restore_params(
      _WORKDIR.value, _STEP.value, ema=False
    )
    weights = calibrated(config, params, _CLIPS.value, _NUM_CLIPS.value)
    save(_OUT.value, weights)
    size = pathlib.Path(_OUT.value).stat().st_size / 1e6
    print(f'wrote {_OUT.value}: {size:.1f} MB, {weights.calibration}')


if __name__ == '__main__':
  sys.exit(app.run(main))
