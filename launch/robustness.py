"""What a model does with sounds that others trip over, a row for each.

  python -m launch.robustness --data clips/ --split split.json --limit 4 \
      --out out/robustness

Real clips are made as they are, with noise as loud as the speech, over a
telephone, 1 to 5 frames early and late, cut to a second; with silence and music
in place of speech; and sentences of a synthesiser. OUT gets robustness.md,
robustness.json and, of --long seconds of speech in one go, drift.png and
drift.json: how identity, colour, sharpness and lips keep, second by second. A
killed run continues where it was when given the same command.
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
  closures,
  evaluation,
  evaluation_report,
  faces,
  guidance_flags,
  robustness_drift,
  robustness_report,
  robustness_sounds as sounds,
  shards,
  speech,
)
from launch.errors import one_line
from launch.generate import Generator
from mirage_jax import evals, evals_image
from mirage_jax.audio import RATE

_CLIPS = clip_flags.ClipFlags(4, 'so many clips a row')
_LONG = flags.DEFINE_integer(
  'long', 60, 'seconds of the drift curve; 0 leaves it out', 0
)
_SPOKEN = flags.DEFINE_bool('spoken', True, 'a row for a synthesiser')
_SAMPLING = guidance_flags.SamplingFlags()

SENTENCES = (
  'Bob may bring a big map, so please put my blue bag by the lamp.',
  'My mother bought a brown umbrella, because it might rain tomorrow.',
)


class Case(NamedTuple):
  """What is done to a clip's sound.

  Attributes:
    change: wave -> wave.
    late: Frames by which the lips shall be late; None where nobody speaks.
  """

  change: Callable[[Float[np.ndarray, 'S']], Float[np.ndarray, 'S']]
  late: int | None = 0


CASES = {
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
    rows = study.rows()
    if _SPOKEN.value:
      rows['synthesised'] = study.kept('synthesised', study.spoken)
    if _LONG.value:
      rows[f'{_LONG.value} seconds'] = study.long(_LONG.value)
    evaluation_report.save_json(study.out / 'robustness.json', rows)
    table = robustness_report.markdown(rows, _CLIPS.limit)
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
    self.settings = _SAMPLING.settings(_CLIPS.seed)
    self.plan = evaluation.make_plan(
      list(files),
      checkpoint=_CLIPS.checkpoint,
      size=self.size,
      seed=_CLIPS.seed,
      sampling=_SAMPLING.changed(),
    )
    self.mesh = faces.default_mesh()
    self.generator = Generator(weights, _CLIPS.checkpoint, _SAMPLING.quantised)

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
    self, wave: np.ndarray, image: np.ndarray, seed: int
  ) -> np.ndarray:
    settings = dataclasses.replace(self.settings, seed=_CLIPS.seed + seed)
    return self.generator(wave, image, '', settings)

  def rows(self) -> dict[str, dict[str, Any]]:
    """The mean figures of every case over the clips."""
    names = list(CASES)
    results = {name: [] for name in names}
    for n in range(min(_CLIPS.limit, len(self.plan.clips))):
      clip_id = self.plan.clips[n]
      for name in names:
        part = self.kept(
          f'{clip_id}/{name}', lambda n=n, name=name: self.judge(n, CASES[name])
        )
        results[name].append(part)
    return {
      name: robustness_report.mean(results[name], CASES[name].late)
      for name in names
    }

  def judge(self, n: int, case: Case) -> dict[str, Any]:
    """The figures of one clip with one sound."""
    clip = self.load(n)
    other = self.plan.clips.index(self.plan.partners[n])
    made = self.generate(case.change(clip.wave), self.load(other).frames[0], n)
    rois = self.mesh.clip_rois(clip.frames)
    truth = clip_scores.look(clip.frames, self.mesh, rois)
    seen = clip_scores.look(made, self.mesh, rois[: len(made)])
    mouth = truth.mouth[: len(made)]
    figures = {
      'face_found': float(seen.found),
      'movement': float(np.std(seen.mouth) / max(np.std(truth.mouth), 1e-9)),
      'opening': float(np.mean(seen.mouth) / max(np.mean(truth.mouth), 1e-9)),
      'sharpness': float(
        evals_image.sharpness(made) / evals_image.sharpness(clip.frames)
      ),
    }
    if case.late is not None:
      profile = evals.lag_profile(seen.mouth, mouth, clip_scores.MAX_LAG)
      figures['lag_profile'] = profile.tolist()
    return figures

  def spoken(self) -> dict[str, Any]:
    """How often the lips close where a synthesiser's sentences ask for it."""
    image, hits, chances = self.load(0).frames[0], [], []
    for n, sentence in enumerate(SENTENCES):
      spoken = speech.synthesise(sentence)
      made = self.generate(spoken.wave, image, n)
      look = clip_scores.look(made, self.mesh)
      found = closures.count(look.mouth, spoken.phones)
      hits += found.hits.tolist()
      chances += [found.chance] * len(found.hits)
    return {
      'closures': sum(hits),
      'closures_of': len(hits),
      'closures_by_chance': float(sum(chances)),
    }

  def long(self, seconds: int) -> dict[str, Any]:
    """Speech of real clips, one after the other, in one go, and its drift."""
    curves = self.kept(
      f'long{seconds}',
      lambda: robustness_drift.measure(
        self.load, len(self.plan.clips), seconds, self.generate, self.mesh
      ),
    )
    evaluation_report.save_json(self.out / 'drift.json', curves)
    window = self.generator.window_frames
    robustness_report.save_drift(self.out / 'drift.png', curves)
    return robustness_drift.summarise(curves, window)


if __name__ == '__main__':
  sys.exit(app.run(main))
