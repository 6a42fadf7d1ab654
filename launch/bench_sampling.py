"""Ways to sample faster against the plain 64 steps: time, and what it costs.

One process makes each clip in all ways, in turns, so that a load from outside
slows all alike. Time is that of sampling alone: no compiling, no decoding.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import statistics
from typing import Any, NamedTuple

from jaxtyping import Float, UInt8
import numpy as np

from launch import bundle, clip_scores, evaluation, faces, media, speech
from launch.generate import Generator, Settings
from launch.stopwatch import Stopwatch
from mirage_jax import evals, evals_image, quantise
from mirage_jax.cache import Caching

PLAIN = 'plain'
SENTENCES = (
  'Place blue at F two now.',
  'My mother bought a big brown map.',
  'Please put the lamp above the table.',
  'Bob may bring five more boxes.',
)


class Way(NamedTuple):
  """One way to sample."""

  generator: Generator
  settings: Settings


class Clip(NamedTuple):
  """What to speak, whose face, and the true frames if there are any."""

  wave: Float[np.ndarray, 'S']
  image: UInt8[np.ndarray, 'size size 3']
  truth: UInt8[np.ndarray, 'N size size 3'] | None = None


def make_ways(
  weights: bundle.Bundle,
  plain: Settings,
  few: bundle.Bundle | int,
  caching: Caching,
  schemes: Sequence[str],
) -> dict[str, Way]:
  """The ways to compare, by the names of their figures.

  Args:
    weights: what samples.
    plain: how, with all steps and nothing to save time.
    few: the distilled student, or how many steps of the same model are few.
    caching: see `mirage_jax.cache`.
    schemes: of `mirage_jax.quantise`; the first one is 'quantised', the others
      go by their own names.
  """
  generator = Generator(weights)
  if isinstance(few, int):
    few_step = Way(generator, dataclasses.replace(plain, steps=few))
  else:
    student = Generator(few)
    few_step = Way(student, student.usual)
  cached = dataclasses.replace(plain, caching=caching)
  made = {
    PLAIN: Way(generator, plain),
    'cached': Way(generator, cached),
    'few_step': few_step,
  }
  for name, scheme in zip(['quantised', *schemes[1:]], schemes, strict=True):
    made[name] = Way(Generator(weights, quantised=scheme), plain)
  return made


def spoken_clips(count: int) -> Iterable[Clip]:
  """Sentences of the synthesiser, spoken by the shipped face."""
  image = media.read_image(bundle.DEFAULT.with_name('face.png'))
  for n in range(count):
    yield Clip(speech.synthesise(SENTENCES[n % len(SENTENCES)]).wave, image)


def real_clips(
  files: Mapping[str, Any], size: int, mesh: faces.FaceMesh
) -> Iterable[Clip]:
  """Clips of files, each with the first frame of another."""
  ids = list(files)
  load = lambda n: evaluation.load_clip(files[ids[n]], size, mesh)
  for n, partner in enumerate(evals.derangement(len(ids))):
    clip = load(n)
    yield Clip(clip.wave, load(partner).frames[0], clip.frames)


def measure(
  ways: Mapping[str, Way],
  clips: Iterable[Clip],
  mesh: faces.FaceMesh,
  rebuild: evaluation.Rebuild,
  say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, dict[str, float]]]:
  """Per clip and way: seconds, and figures against the truth and the plain way.

  Where there is a truth, it and what the autoencoder, `rebuild`, makes of it
  have figures, too.

  Returns:
    'seconds'; 'mouth_correlation' with the true curve, where there is one;
    'mouth_to_plain', correlation with the plain way's curve; 'psnr_to_plain',
    of the frames, dB.
  """
  results = []
  for number, clip in enumerate(clips):
    if not results:
      warm_up(ways, clip)
    made = {name: timed(way, clip, number) for name, way in ways.items()}
    results.append(judge(made, clip, mesh, rebuild))
    shown = ', '.join(
      f'{k} {seconds:.1f} s' for k, (_, seconds) in made.items()
    )
    say(f'clip {number + 1}: {shown}')
  return results


def warm_up(ways: Mapping[str, Way], clip: Clip) -> None:
  """Compiles: the programs do not depend on the number of steps.

  But with caching there are some, all of which a round of guidance needs.
  """
  for way in ways.values():
    settings = way.settings
    if not way.generator.own_steps:
      steps = min(settings.steps, settings.caching.guidance + 1)
      settings = dataclasses.replace(settings, steps=max(2, steps))
    way.generator(clip.wave, clip.image, '', settings)


def timed(
  way: Way, clip: Clip, seed: int
) -> tuple[UInt8[np.ndarray, 'N H W 3'], float]:
  """The frames, and the seconds that sampling took."""
  settings = dataclasses.replace(way.settings, seed=seed)
  with Stopwatch() as watch:
    windows = way.generator.windows(
      clip.wave, clip.image, '', settings, stage=watch
    )
    frames = np.concatenate(list(windows))
  return frames, watch.seconds['sample']


def judge(
  made: Mapping[str, tuple[np.ndarray, float]],
  clip: Clip,
  mesh: faces.FaceMesh,
  rebuild: evaluation.Rebuild,
) -> dict[str, dict[str, float]]:
  """The figures of one clip, per way; see `measure`."""
  frames = {name: f for name, (f, _) in made.items()}
  if clip.truth is not None:
    rebuilt = evaluation.rebuild_clip(clip.truth, rebuild)
    frames = {'truth': clip.truth, 'rebuilt': rebuilt} | frames
  rois = mesh.clip_rois(frames.get('truth', frames[PLAIN]))
  looks = {k: clip_scores.look(f, mesh, rois) for k, f in frames.items()}
  figures = {}
  for name in frames:
    mouth = looks[name].mouth
    figures[name] = {
      'mouth_to_plain': evals.pearson(mouth, looks[PLAIN].mouth),
      'psnr_to_plain': evals_image.psnr(frames[name], frames[PLAIN]),
    }
    if name in made:
      figures[name]['seconds'] = made[name][1]
    if 'truth' in looks:
      figures[name]['mouth_correlation'] = evals.pearson(
        mouth, looks['truth'].mouth
      )
  return figures


def summarise(
  ways: Mapping[str, Way], results: Sequence[Mapping[str, Mapping[str, float]]]
) -> dict[str, Any]:
  """The ratios of time, and the mean figures of each way.

  A speedup is the median over clips of the plain way's seconds over the way's,
  both of the same clip; an error, the standard one of the mean that is lost.
  """
  figures = {}
  for name in results[0]:
    rows = [result[name] for result in results]
    figures[name] = {k: float(np.mean([r[k] for r in rows])) for k in rows[0]}
    if name in ways:
      figures[name]['seconds'] = statistics.median(r['seconds'] for r in rows)
      figures[name]['megabytes'] = ways[name].generator.num_bytes / 1e6
  measured = 'mouth_correlation' in figures[PLAIN]
  summary = {}
  for name in ways:
    if name == PLAIN:
      continue
    summary[f'{name}_speedup'] = statistics.median(
      r[PLAIN]['seconds'] / r[name]['seconds'] for r in results
    )
    key = 'mouth_correlation' if measured else 'mouth_to_plain'
    lost = [r[PLAIN][key] - r[name][key] for r in results]
    summary[f'{name}_lost_correlation'] = float(np.mean(lost))
    if len(lost) > 1:
      error = statistics.stdev(lost) / len(lost) ** 0.5
      summary[f'{name}_lost_correlation_error'] = error
  return summary | {
    'against': 'truth' if measured else PLAIN,
    'clips': len(results),
    'figures': figures,
    'ways': {name: describe(way) for name, way in ways.items()},
  }


def describe(way: Way) -> str:
  """In a few words."""
  settings = way.settings
  parts = [f'{settings.steps} steps', settings.solver]
  if way.generator.own_steps:
    parts.append('distilled')
  caching = settings.caching
  for name, every in (
    ('branches', caching.guidance),
    ('attention', caching.attention),
    ('blocks', caching.blocks),
  ):
    if every > 1:
      parts.append(f'{name} at every {every}. step')
  if way.generator.quantised != quantise.NONE:
    parts.append(f'{way.generator.quantised} matmuls')
  return ', '.join(parts)


def table(summary: Mapping[str, Any]) -> list[str]:
  """Lines of at most 80 columns."""
  lines = [
    f'{summary["clips"]} clips, lips against the {summary["against"]}; lost: of '
    'mouth r, with its standard error',
    '',
    f'{"":<13}{"seconds":>8}{"speedup":>8}{"MB":>6}{"mouth r":>8}{"lost":>8}{"+-":>7}'
    f'{"to plain":>9}{"PSNR to it":>11}',
  ]
  for name, row in summary['figures'].items():
    cells = (
      (row.get('seconds'), '8.2f'),
      (1.0 if name == PLAIN else summary.get(f'{name}_speedup'), '8.2f'),
      (row.get('megabytes'), '6.1f'),
      (row.get('mouth_correlation'), '8.3f'),
      (summary.get(f'{name}_lost_correlation'), '8.3f'),
      (summary.get(f'{name}_lost_correlation_error'), '7.3f'),
      (row['mouth_to_plain'], '9.3f'),
      (row['psnr_to_plain'], '11.1f'),
    )
    shown = ''.join(_cell(value, form) for value, form in cells)
    lines.append(f'{name:<13}{shown}')
  lines += ['', *(f'{k}: {v}' for k, v in summary['ways'].items())]
  return lines


def _cell(value, form):
  if value is None:
    return f'{"-":>{form.split(".")[0]}}'
  return format(value, form)
