"""Turns workdirs of trainings into one file of weights, a bundle.

The VAE first, with the statistics of its latents over prepared clips:

  python -m launch.export --workdir runs/vae --clips data/grid/clips/train \
      --out vae.safetensors

(one of launch.convert, as Mochi's, has its own statistics: --size of its frames in
place of --clips) then the transformer together with the VAE it was trained on:

  python -m launch.export --workdir runs/dit --vae vae.safetensors \
      --out mirage.safetensors

(of a run on features of encoders, launch.features has left with them which
encoders those were; --features says where if they have moved since).

A run that went on from another's weights often does better on new clips as the
mean of both: --average=EARLIER.safetensors.

Of a run with config.lora, a distillation too, what it learned is merged into
what it began with. Or it is a small file of its own: with --base one that is a
checkpoint as it is, beside the bundle that it changes,

  python -m launch.export --workdir runs/distil --base mirage.safetensors \
      --out mirage_fast.safetensors

with --changes_only one for any bundle of the same transformer:

  python -m launch.export --changes changes.safetensors --vae mirage.safetensors \
      --out changed.safetensors
"""

from collections.abc import Mapping
import pathlib
import sys
from typing import Any

from absl import app, flags
import numpy as np
import rich.console
import rich.progress

from launch import bundle as bundle_lib, changes as changes_lib, checkpoint
from launch.errors import UserError, one_line
from mirage_jax import config as config_lib, data, latents
from mirage_jax.vae import CHUNK, Vae, VaeConfig

_WORKDIR = flags.DEFINE_string('workdir', None, 'a run of launch.train')
_STEP = flags.DEFINE_integer('step', None, 'of which checkpoint; the last')
_OUT = flags.DEFINE_string('out', None, 'the .safetensors file to write')
_CLIPS = flags.DEFINE_string(
  'clips', None, 'for a VAE: folder of clips shards to take statistics over'
)
_SIZE = flags.DEFINE_integer(
  'size', None, "for a VAE of launch.convert: pixels of a frame's side", 8
)
_NUM_CLIPS = flags.DEFINE_integer('num_clips', 50, 'how many of them', 1)
_VAE = flags.DEFINE_string('vae', None, "for a transformer: its VAE's bundle")
_FEATURES = flags.DEFINE_string(
  'features',
  None,
  'for a transformer trained on features of launch.features: their folder, if '
  'it is no longer where the run had it',
)
_AVERAGE = flags.DEFINE_multi_string(
  'average', [], 'for a transformer: bundles to take the mean with'
)
_CHANGES_ONLY = flags.DEFINE_bool(
  'changes_only', False, 'for a run with config.lora: only what it learned'
)
_CHANGES = flags.DEFINE_string(
  'changes', None, 'a file of --changes_only, to merge into that of --vae'
)
_BASE = flags.DEFINE_string(
  'base', None, 'for a run with config.lora: the bundle that it changes'
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
      parts.append(latents.encode_video(vae, params, unit, frames[:whole]))
  if not parts:
    raise UserError(
      f'--clips={clips}: no clip there has {CHUNK} frames; give a folder that '
      '`launch.prepare --stage clips` made'
    )
  stats = latents.channel_stats(np.concatenate(parts))
  return bundle_lib.Bundle(_about_vae(config), params, stats)


def from_vae(
  workdir: str, config: Mapping[str, Any], step: int | None
) -> bundle_lib.Bundle:
  """A VAE that was trained or converted; see `from_workdir`."""
  stats = config.get('stats')
  if not _CLIPS.value and not stats:
    raise UserError('a VAE needs --clips=FOLDER for its statistics')
  if 'data' not in config:
    if not _SIZE.value:
      raise UserError(
        f'{workdir}: was converted, and does not tell how large frames are: '
        'give --size=PIXELS'
      )
    config = {**config, 'data': {'size': _SIZE.value}}
  _, params = checkpoint.restore_params(workdir, step)
  if _CLIPS.value:
    return vae_bundle(config, params, _CLIPS.value, _NUM_CLIPS.value)
  stats = {name: np.array(x, np.float32) for name, x in stats.items()}
  return bundle_lib.Bundle(_about_vae(config), params, stats)


def _about_vae(config):
  return {'vae': config['vae'], 'data': {'size': config['data']['size']}}


def from_workdir(workdir: str, step: int | None) -> bundle_lib.Bundle:
  """The bundle that the flags ask for; what lacks is told before it is read."""
  config = checkpoint.read_config(workdir)
  if 'vae' in config:
    return from_vae(workdir, config, step)
  if 'model' not in config:
    raise UserError(
      f'{workdir}: is a run of {config.get("experiment")}, which has '
      'no bundle; give one of a Mirage VAE or transformer'
    )
  if not _VAE.value:
    raise UserError('a transformer needs --vae=BUNDLE, its VAE')
  vae = bundle_lib.load(_VAE.value)
  _, params = changes_lib.transformer(workdir, step)
  made = bundle_lib.join(vae, config, params, _FEATURES.value)
  others = {name: bundle_lib.load(name) for name in _AVERAGE.value}
  return bundle_lib.average(made, others)


def main(_: list[str]) -> None:
  with one_line():
    out = _OUT.value
    if not (_WORKDIR.value or _CHANGES.value) or not out:
      raise UserError('--workdir and --out are needed; see --help')
    if _WORKDIR.value and _CHANGES.value:
      raise UserError('--changes is for a bundle, --vae: leave out --workdir')
    if not out.endswith('.safetensors'):
      raise UserError(f'--out={out}: name it .safetensors')
    if _CHANGES.value:
      if not _VAE.value:
        raise UserError('--changes needs --vae=BUNDLE, which they change')
      bundle_lib.save(out, bundle_lib.changed(_CHANGES.value, _VAE.value))
    elif _BASE.value or _CHANGES_ONLY.value:
      changes_lib.export(_WORKDIR.value, _STEP.value, out, _BASE.value)
    else:
      bundle_lib.save(out, from_workdir(_WORKDIR.value, _STEP.value))
    size = pathlib.Path(out).stat().st_size / 1e6
    print(f'wrote {out}: {size:.1f} MB')


if __name__ == '__main__':
  sys.exit(app.run(main))
