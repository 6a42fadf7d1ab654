"""Turns workdirs of trainings into one file of weights, a bundle.

The VAE first, with the statistics of its latents over prepared clips:

  python -m launch.export --workdir runs/vae --clips data/grid/clips/train \
      --out vae.safetensors

then the transformer together with the VAE it was trained on:

  python -m launch.export --workdir runs/dit --vae vae.safetensors \
      --out mirage.safetensors
"""

from collections.abc import Mapping
import pathlib
import sys

from absl import app, flags
import numpy as np
import tqdm

from launch import bundle as bundle_lib
from launch import checkpoint
from launch.errors import UserError, one_line
from mirage_jax import config as config_lib
from mirage_jax import data
from mirage_jax import latents
from mirage_jax.vae import CHUNK, Vae, VaeConfig

_WORKDIR = flags.DEFINE_string('workdir', None, 'a run of launch.train')
_STEP = flags.DEFINE_integer('step', None, 'of which checkpoint; the last')
_OUT = flags.DEFINE_string('out', None, 'the .safetensors file to write')
_CLIPS = flags.DEFINE_string(
  'clips', None, 'for a VAE: folder of clips shards to take statistics over'
)
_NUM_CLIPS = flags.DEFINE_integer('num_clips', 50, 'how many of them')
_VAE = flags.DEFINE_string('vae', None, "for a transformer: its VAE's bundle")


def vae_bundle(
  config: Mapping, params: Mapping, clips: str, num_clips: int
) -> bundle_lib.Bundle:
  """A VAE's weights with the statistics of its latents over some clips."""
  vae = Vae(config_lib.build(VaeConfig, config['vae']))
  channels = vae.cfg.latent_channels
  unit = {'mean': np.zeros(channels), 'std': np.ones(channels)}
  records = data.open_shards(clips)
  picks = np.linspace(0, len(records) - 1, min(num_clips, len(records)))
  parts = []
  for i in tqdm.tqdm(picks.astype(int), 'latent statistics', unit='clip'):
    frames = records[int(i)]['frames']
    frames = frames[: len(frames) // CHUNK * CHUNK]
    parts.append(latents.encode_video(vae, params, unit, frames))
  stats = latents.channel_stats(np.concatenate(parts))
  about = {'vae': config['vae'], 'data': {'size': config['data']['size']}}
  return bundle_lib.Bundle(about, params, stats)


def mirage_bundle(
  config: Mapping, params: Mapping, vae: bundle_lib.Bundle
) -> bundle_lib.Bundle:
  """A transformer's weights joined to its VAE's bundle."""
  names = ('num_chunks', 'text_length', 'past')
  window = {name: config['data'][name] for name in names}
  about = {
    'vae': vae.config['vae'],
    'dit': config['model'],
    'data': {**vae.config['data'], **window},
  }
  return bundle_lib.Bundle(about, vae.vae, vae.stats, params)


def main(_: list[str]) -> None:
  with one_line():
    if not _WORKDIR.value or not _OUT.value:
      raise UserError('--workdir and --out are needed; see --help')
    config, params = checkpoint.restore_params(_WORKDIR.value, _STEP.value)
    if 'vae' in config:
      if not _CLIPS.value:
        raise UserError('a VAE needs --clips=FOLDER for its statistics')
      made = vae_bundle(config, params, _CLIPS.value, _NUM_CLIPS.value)
    else:
      if not _VAE.value:
        raise UserError('a transformer needs --vae=BUNDLE, its VAE')
      made = mirage_bundle(config, params, bundle_lib.load(_VAE.value))
    bundle_lib.save(_OUT.value, made)
    size = pathlib.Path(_OUT.value).stat().st_size / 1e6
    print(f'wrote {_OUT.value}: {size:.1f} MB')


if __name__ == '__main__':
  sys.exit(app.run(main))
