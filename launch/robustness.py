"""What a model does with sounds that others trip over, a row for each.

  python -m launch.robustness --data clips/ --split split.json --limit 4 \
      --out out/robustness

Beside the real clips and what the autoencoder makes of them, they are made as
recorded, with noise as loud as the speech, over a telephone, 1 to 5 frames
early and late, cut to a second; with silence and music in place of speech; and
sentences of a synthesiser in several languages. OUT gets robustness.md,
robustness.json and, of --long seconds of speech in one go, drift.png and
drift.json: how identity, colour, sharpness and lips keep, second by second. A
killed run continues where it was when given the same command; rows that are not
wanted, as --long=0, can be made later.
"""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
import sys
from typing import Any, NamedTuple

from absl import app, flags
from jaxtyping import Float
import numpy as np

from launch import (
  bundle,
  clip_flags,
  clip_scores,
  evaluation,
  evaluation_report,
  faces,
  guidance_flags,
  media,
  robustness_drift,
  robustness_report,
  robustness_sounds as sounds,
  robustness_spoken,
  shards,
)
from launch.errors import UserError, one_line
from launch.generate import Generator
from launch.steps_bar import StepsBar
from mirage_jax import evals
from mirage_jax.audio import RATE, TOKEN_RATE

_CLIPS = clip_flags.ClipFlags(4, 'so many clips a row')
_LONG = flags.DEFINE_integer(
  'long', 60, 'seconds of the drift curve; 0 leaves it out', 0
)
_SPOKEN = flags.DEFINE_bool(
  'spoken', True, 'rows for a synthesiser, a language each'
)
_SAMPLING = guidance_flags.SamplingFlags()


class Case(NamedTuple):
  """What is done to a clip's sound.

  Attributes:
    change: wave -> wave.
    late: Frames by which the lips shall be late; None where nobody speaks.
    frames: 'generated'; or those of the clip, 'real', or also 'rebuilt'; or of
      the real ones those with the least sound, 'pauses'.
  """

  change: Callable[[Float[np.ndarray, 'S']], Float[np.ndarray, 'S']]
  late: int | None = 0
  frames: str = 'generated'


CASES = {
  'the real clip': Case(lambda wave: wave, frames='real'),
  'its quiet third': Case(lambda wave: wave, None, frames='pauses'),
  'autoencoder alone': Case(lambda wave: wave, frames='rebuilt'),
  'as recorded': Case(lambda wave: wave),
  'noise, 0 dB': Case(lambda wave: sounds.with_noise(wave, 0)),
  'telephone, 8 kHz': Case(sounds.by_telephone),
  'one second': Case(lambda wave: wave[:RATE]),
  'silence': Case(np.zeros_like, None),
  'music': Case(lambda wave: sounds.music(len(wave)), None),
}
CASES |= {
  f'{abs(k)} frame{"s" * (abs(k) > 1)} {"late" if k > 0 else "early"}': Case(
    lambda wave, k=k: sounds.shifted(wave, k), k
  )
  for k in (*range(-5, 0), *range(1, 6))
}


def main(_: list[str]) -> None:
  with one_line():
    files = _CLIPS.files(limited=False)
    study = Study(_CLIPS.weights(), files, _CLIPS.out)
    evaluation.claim(study.out / 'plan.json', study.plan)
    if 0 < _LONG.value * TOKEN_RATE <= study.generator.window_frames + 2:
      raise UserError(
        f'--long={_LONG.value}: drift shows in what comes after the first '
        f'window of {study.generator.window_frames / TOKEN_RATE:g} s; give '
        'more, or 0 for none'
      )
    rows = study.rows()
    if _SPOKEN.value:
      rows |= study.spoken()
    if _LONG.value:
      rows[f'{_LONG.value} seconds'] = study.long(_LONG.value)
    evaluation_report.save_json(study.out / 'robustness.json', rows)
    table = robustness_report.markdown(rows, study.judged)
    (study.out / 'robustness.md').write_text(table)
    print(table)


class Study:
  """All rows; what is made is kept as a file in `out`."""

  def __init__(
    self,
    weights: bundle.Bundle,
    files: Mapping[str, pathlib.Path],
    out: pathlib.Path,
  ):
    self.files, self.out = files, out
    self.size = weights.config['data']['size']
    self.plan = evaluation.make_plan(
      list(files),
      checkpoint=_CLIPS.checkpoint,
      size=self.size,
      seed=_CLIPS.seed,
      sampling=_SAMPLING.changed() | {'weights': weights.fingerprint()},
    )
    self.mesh = faces.default_mesh()
    self.generator = Generator(weights, _CLIPS.checkpoint, _SAMPLING.quantised)
    self.settings = _SAMPLING.settings(_CLIPS.seed, self.generator.own_steps)
    self.rebuild = evaluation.make_rebuild(weights)
    self.judged = 0

  def kept(self, name: str, make: Callable[[], Any]) -> Any:
    """What `make` returned, now or in an earlier run."""
    path = self.out / 'parts' / f'{name}.json'
    if not path.exists():
      evaluation_report.save_json(path, make())
      print(f'{name}: done', flush=True)
    return shards.read_json(path)

  def load(self, n: int) -> evaluation.Clip:
    file = self.files[self.plan.clips[n]]
    return evaluation.load_clip(file, self.size, self.mesh)

  def generate(
    self,
    wave: np.ndarray,
    image: np.ndarray,
    seed: int,
    progress: Callable[[], None] = lambda: None,
  ) -> np.ndarray:
    settings = dataclasses.replace(self.settings, seed=_CLIPS.seed + seed)
    return self.generator(wave, image, '', settings, progress)

  def rows(self) -> dict[str, dict[str, Any]]:
    """The mean figures of every case over the clips that can be used.

    Raises:
      UserError: there is none.
    """
    results = []
    for n in range(min(_CLIPS.limit, len(self.plan.clips))):
      try:
        results.append(self.judge_all(n))
      except (media.MediaError, faces.NoFaceError) as error:
        print(f'{self.plan.clips[n]}: skipped, {error}', flush=True)
    self.judged = len(results)
    if not results:
      raise UserError('no clip can be used, see above; give others')
    return {
      name: robustness_report.mean([r[name] for r in results], case.late)
      for name, case in CASES.items()
    }

  def judge_all(self, n: int) -> dict[str, dict[str, Any]]:
    """The figures of one clip with every sound."""
    clip_id = self.plan.clips[n]
    return {
      name: self.kept(
        f'{clip_id}/{name}', lambda case=case: self.judge(n, case)
      )
      for name, case in CASES.items()
    }

  def judge(self, n: int, case: Case) -> dict[str, Any]:
    """The figures of one clip with one sound."""
    clip = self.load(n)
    wave = case.change(clip.wave)
    if case.frames == 'generated':
      other = self.plan.clips.index(self.plan.partners[n])
      made = self.generate(wave, self.load(other).frames[0], n)
    elif case.frames == 'rebuilt':
      made = evaluation.rebuild_clip(clip.frames, self.rebuild)
    else:
      made = clip.frames
    rois = self.mesh.clip_rois(clip.frames)
    truth = clip_scores.look(clip.frames, self.mesh, rois)
    if case.frames == 'pauses':
      return robustness_report.pauses(truth, wave)
    seen = clip_scores.look(made, self.mesh, rois[: len(made)])
    found = robustness_report.figures(seen, truth, wave)
    if case.late is not None:
      mouth = truth.mouth[: len(made)]
      profile = evals.lag_profile(seen.mouth, mouth, clip_scores.MAX_LAG)
      found['lag_profile'] = profile.tolist()
    return found

  def spoken(self) -> dict[str, dict[str, Any]]:
    """A row for each language of a synthesiser."""
    first = []  # Loaded for the first row that is not there yet.

    def measure(text):
      clip = first[0] if first else self.load_first()
      first[:] = [clip]
      rois = self.mesh.clip_rois(clip.frames)
      truth = clip_scores.look(clip.frames, self.mesh, rois)
      return robustness_spoken.measure(
        text, clip.frames[0], truth, rois, self.generate, self.mesh
      )

    return {
      name: self.kept(name, lambda text=text: measure(text))
      for name, text in robustness_spoken.TEXTS.items()
    }

  def load_first(self) -> evaluation.Clip:
    """The first clip that can be used; `rows` has found that there is one."""
    for n in range(len(self.plan.clips)):
      try:
        return self.load(n)
      except (media.MediaError, faces.NoFaceError):
        continue  # It was told of when its row was made.
    raise UserError('no clip can be used, see above; give others')

  def long(self, seconds: int) -> dict[str, Any]:
    """Speech of real clips, one after the other, in one go, and its drift."""
    name, count = f'{seconds} seconds', len(self.plan.clips)

    def generate(wave, image, seed):
      overlap = self.settings.joints.overlap
      windows = self.generator.num_windows(len(wave), overlap)
      with StepsBar(name, windows * self.settings.steps) as advance:
        return self.generate(wave, image, seed, advance)

    curves = self.kept(
      name,
      lambda: robustness_drift.measure(
        self.load, count, seconds, generate, self.rebuild, self.mesh
      ),
    )
    evaluation_report.save_json(self.out / 'drift.json', curves)
    window = self.generator.window_frames
    robustness_report.save_drift(self.out / 'drift.png', curves)
    return robustness_drift.summarise(curves, window)


if __name__ == '__main__':
  sys.exit(app.run(main))
