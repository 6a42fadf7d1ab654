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
import sys

from absl import app, flags
import numpy as np

from launch import clip_flags, evaluation, generate, guidance_flags
from launch.errors import UserError, one_line

_CLIPS = clip_flags.ClipFlags()
_SAMPLING = guidance_flags.SamplingFlags()
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
    files, weights = _CLIPS.files(), _CLIPS.weights()
    if weights.dit is None and not _VAE_ONLY.value:
      raise UserError(
        f'{_CLIPS.checkpoint}: holds a VAE alone; give --vae_only'
      )
    make, own_steps = None, 0
    if not _VAE_ONLY.value:
      generator = generate.Generator(
        weights, _CLIPS.checkpoint, _SAMPLING.quantised
      )
      make, own_steps = make_generate(generator), generator.own_steps
    plan = evaluation.make_plan(
      list(files),
      checkpoint=_CLIPS.checkpoint,
      size=weights.config['data']['size'],
      seed=_CLIPS.seed,
      own_reference=_REFERENCE.value == 'own',
      shuffle_audio=_SHUFFLE_AUDIO.value,
      vae_only=_VAE_ONLY.value,
      sampling=sampling(own_steps) | {'weights': weights.fingerprint()},
    )
    evaluation.Evaluation(
      plan,
      files,
      _CLIPS.out,
      evaluation.make_rebuild(weights),
      make,
      _NUM_PLOTS.value,
    ).run()


def sampling(own_steps: int = 0) -> dict[str, float | int | str]:
  """The sampler's settings as they stand in plan.json.

  The first five always do: plans of older runs have them.

  Args:
    own_steps: those of a distilled checkpoint, see `SamplingFlags.settings`.
  """
  settings = _SAMPLING.settings(_CLIPS.seed, own_steps)
  weights = settings.guidance
  return {
    'num_steps': settings.steps,
    'text': _TEXT.value,
    'audio_cfg': weights.weight('audio').value,
    'text_cfg': weights.weight('text').value,
    'reference_cfg': weights.weight('reference').value,
  } | _SAMPLING.changed()


def make_generate(generator: generate.Generator) -> evaluation.Generate:
  """The model under the flags' settings, which it can do, or UserError."""
  settings = _SAMPLING.settings(_CLIPS.seed, generator.own_steps)
  generator.check(_TEXT.value, settings)

  def make(wave: np.ndarray, image: np.ndarray, seed: int) -> np.ndarray:
    seeded = dataclasses.replace(settings, seed=seed)
    return generator(wave, image, _TEXT.value, seeded)

  return make


if __name__ == '__main__':
  sys.exit(app.run(main))
