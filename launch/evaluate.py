"""Scores a model on real clips: lips, blinks, fidelity, flicker, with controls.

  python -m launch.evaluate --checkpoint model.safetensors --data clips/ \
      --split split.json --subset val --shuffle_audio --out out/eval

Each clip is generated from its own audio and one frame of another clip, then
compared with the real one and with the autoencoder's reconstruction of it. Use
`--reference own` for the pixel measures: a head in another clip's pose is far
from the true pixels even when it is real.
OUT gets scores.json (per clip and mean), table.md, curves.png, and for the
first few clips a filmstrip and a video. A killed run continues where it was
when given the same command; `--vae_only` judges the autoencoder alone. It is
sampled as by launch.sample, with the same flags for guidance, solver and cache.
"""

import dataclasses
import pathlib
import sys

from absl import app, flags
import numpy as np

from launch import bundle, evaluation, generate, guidance_flags
from launch.errors import UserError, one_line

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', str(bundle.DEFAULT), 'a bundle; the shipped one if unset'
)
_DATA = flags.DEFINE_string('data', None, 'folder of video files with sound')
_SPLIT = flags.DEFINE_string(
  'split', None, 'JSON {subset: [names without suffix]}; all files if unset'
)
_SUBSET = flags.DEFINE_string('subset', 'val', 'which list of the split')
_LIMIT = flags.DEFINE_integer('limit', None, 'only the first so many clips')
_OUT = flags.DEFINE_string('out', None, 'folder for scores, tables, pictures')
_SEED = flags.DEFINE_integer('seed', 0, 'of the first clip; one more for each')
_SAMPLING = guidance_flags.SamplingFlags('num_steps')
_TEXT = flags.DEFINE_string('text', '', 'prompt for every clip')
_REFERENCE = flags.DEFINE_enum(
  'reference', 'other', ['other', 'own'], 'the clip that gives the first frame'
)
_SHUFFLE_AUDIO = flags.DEFINE_bool(
  'shuffle_audio', False, "also generate from another clip's audio"
)
_VAE_ONLY = flags.DEFINE_bool('vae_only', False, 'judge the autoencoder alone')
_NUM_PLOTS = flags.DEFINE_integer('num_plots', 4, 'clips to draw')


def main(_: list[str]) -> None:
  with one_line():
    if not _DATA.value or not _OUT.value:
      raise UserError('--data and --out are needed; see --help')
    split = pathlib.Path(_SPLIT.value) if _SPLIT.value else None
    files = evaluation.list_clips(
      pathlib.Path(_DATA.value), split, _SUBSET.value, _LIMIT.value
    )
    weights = bundle.load(_CHECKPOINT.value)
    if weights.dit is None and not _VAE_ONLY.value:
      raise UserError(
        f'{_CHECKPOINT.value}: holds a VAE alone; give --vae_only'
      )
    plan = evaluation.make_plan(
      list(files),
      checkpoint=_CHECKPOINT.value,
      size=weights.config['data']['size'],
      seed=_SEED.value,
      own_reference=_REFERENCE.value == 'own',
      shuffle_audio=_SHUFFLE_AUDIO.value,
      vae_only=_VAE_ONLY.value,
      sampling=sampling(),
    )
    evaluation.Evaluation(
      plan,
      files,
      pathlib.Path(_OUT.value),
      evaluation.make_rebuild(weights),
      None if _VAE_ONLY.value else make_generate(weights),
      _NUM_PLOTS.value,
    ).run()


def sampling() -> dict[str, float | int | str]:
  """The sampler's settings as they stand in plan.json.

  The first five always do: plans of older runs have them.
  """
  weights = _SAMPLING.guidance()
  return {
    'num_steps': _SAMPLING.settings(_SEED.value).steps,
    'text': _TEXT.value,
    'audio_cfg': weights.weight('audio').value,
    'text_cfg': weights.weight('text').value,
    'reference_cfg': weights.weight('reference').value,
  } | _SAMPLING.changed()


def make_generate(weights: bundle.Bundle) -> evaluation.Generate:
  """The bundle's model under the flags' settings."""
  generator = generate.Generator(
    weights, _CHECKPOINT.value, _SAMPLING.quantised
  )
  settings = _SAMPLING.settings(_SEED.value)

  def make(wave: np.ndarray, image: np.ndarray, seed: int) -> np.ndarray:
    seeded = dataclasses.replace(settings, seed=seed)
    return generator(wave, image, _TEXT.value, seeded)

  return make


if __name__ == '__main__':
  sys.exit(app.run(main))
