"""Turns workdirs of trainings into one file of weights, a bundle.

The VAE first, with the statistics of its latents over prepared clips:

  python -m launch.export --workdir runs/vae --clips data/grid/clips/train \
      --out vae.safetensors

then the transformer together with the VAE it was trained on:

  python -m launch.export --workdir runs/dit --vae vae.safetensors \
      --out mirage.safetensors

A run that went on from another's weights often does better on new clips as the
mean of both: --average=EARLIER.safetensors.
"""

from collections.abc import Mapping
import pathlib
import sys
from typing import Any

from absl import app, flags
import numpy as np
import rich.console
import rich.progress

from launch import bundle as bundle_lib, checkpoint
from launch.errors import UserError, one_line
from mirage_jax import config as config_lib, data, latents
from mirage_jax.vae import CHUNK, Vae, VaeConfig

_WORKDIR = flags.DEFINE_string('workdir', None, 'a run of launch.train')
_STEP = flags.DEFINE_integer('step', None, 'of which checkpoint; the last')
_OUT = flags.DEFINE_string('out', None, 'the .safetensors file to write')
_CLIPS = flags.DEFINE_string(
  'clips', None, 'for a VAE: folder of clips shards to take statistics over'
)
_NUM_CLIPS = flags.DEFINE_integer('num_clips', 50, 'how many of them', 1)
_VAE = flags.DEFINE_string('vae', None, "for a transformer: its VAE's bundle")
_AVERAGE = flags.DEFINE_multi_string(
  'average', [], 'for a transformer: bundles to take the mean with'
)


def vae_bundle(
  config: Mapping[str, Any], params: Any, clips: str, num_clips: int
) -> bundle_lib.Bundle:
  """A VAE's weights with the statistics of its latents over some clips.

  Args:
    config: of the VAE's run, see `configs/mirage/grid.py`.
    params: the VAE's.
    clips: folder of `clips` shards.
    num_clips: how many clips count, spread evenly over the folder.

  Raises:
    UserError: no shards there, or no clip of a whole chunk.
  """
  vae = Vae(config_lib.build(VaeConfig, config['vae']))
  channels = vae.cfg.latent_channels
  unit = {'mean': np.zeros(channels), 'std': np.ones(channels)}
  try:
    records = data.open_shards(clips)
  except FileNotFoundError as error:
    raise UserError(
      f'--clips={clips}: holds no *.array_record; give a folder that '
      '`launch.prepare --stage clips` made'
    ) from error
  picks = np.linspace(0, len(records) - 1, min(num_clips, len(records)))
  parts = []
  console = rich.console.Console(stderr=True)
  for i in rich.progress.track(
    picks.astype(int), 'latent statistics', console=console
  ):
    frames = records[int(i)].get('frames', ())
    if whole := len(frames) // CHUNK * CHUNK:
      chunks = latents.encode_video(vae, params, unit, frames[:whole])
      parts.append(chunks)
  if not parts:
    raise UserError(
      f'--clips={clips}: no clip there has {CHUNK} frames; give a folder that '
      '`launch.prepare --stage clips` made'
    )
  stats = latents.channel_stats(np.concatenate(parts))
  about = {'vae': config['vae'], 'data': {'size': config['data']['size']}}
  return bundle_lib.Bundle(about, params, stats)


def main(_: list[str]) -> None:
  with one_line():
    if not _WORKDIR.value or not _OUT.value:
      raise UserError('--workdir and --out are needed; see --help')
    if not _OUT.value.endswith('.safetensors'):
      raise UserError(f'--out={_OUT.value}: name it .safetensors')
    config = checkpoint.read_config(_WORKDIR.value)
    # What is missing is told before the checkpoint is read.
    if 'vae' in config:
      if not _CLIPS.value:
        raise UserError('a VAE needs --clips=FOLDER for its statistics')
      _, params = checkpoint.restore_params(_WORKDIR.value, _STEP.value)
      made = vae_bundle(config, params, _CLIPS.value, _NUM_CLIPS.value)
    elif 'model' in config:
      if not _VAE.value:
        raise UserError('a transformer needs --vae=BUNDLE, its VAE')
      vae = bundle_lib.load(_VAE.value)
      _, params = checkpoint.restore_params(_WORKDIR.value, _STEP.value)
      made = bundle_lib.join(vae, config, params)
      others = {name: bundle_lib.load(name) for name in _AVERAGE.value}
      made = bundle_lib.average(made, others)
    else:
      raise UserError(
        f'{_WORKDIR.value}: is a run of {config.get("experiment")}, which has '
        'no bundle; give one of a Mirage VAE or transformer'
      )
    bundle_lib.save(_OUT.value, made)
    size = pathlib.Path(_OUT.value).stat().st_size / 1e6
    print(f'wrote {_OUT.value}: {size:.1f} MB')


if __name__ == '__main__':
  sys.exit(app.run(main))
