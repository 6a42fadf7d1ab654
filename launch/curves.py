r"""One plot of several runs: a held-out loss against steps, with what led there.

  python -m launch.curves --out curves.png runs/silent runs/attach runs/scratch

A run that started from another workdir (config.init_from) begins where that one
ended, so that all are compared at the steps spent in all. `--metric` takes any
name in metrics.jsonl. Beside it, `--scores=FOLDER` draws how the lips follow the
sound, of what `launch.evaluate` left in FOLDER/NAME/STEP, where NAME is the last
part of a workdir and STEP the checkpoint that was exported:

  python -m launch.export --workdir runs/attach --step 400 --vae vae.safetensors \
      --out attach_400.safetensors
  python -m launch.evaluate --checkpoint attach_400.safetensors --data CLIPS \
      --split split.json --subset val --out scores/attach/400
"""

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
import sys

from absl import app, flags

from launch import atomic, checkpoint
from launch.errors import UserError, one_line
from launch.filmstrip import load_figure

_OUT = flags.DEFINE_string('out', None, 'the .png to write')
_METRIC = flags.DEFINE_string('metric', 'eval/loss', 'what to draw')
_SCORES = flags.DEFINE_string(
  'scores', None, 'folder of NAME/STEP with what launch.evaluate found'
)
LIPS = "mouth opening, r with the true clip's"


def read_curve(
  workdir: str | os.PathLike, metric: str
) -> list[tuple[int, float]]:
  """(step, value) of a metric in a run's metrics.jsonl, steps of this run.

  Raises:
    UserError: there is no such file, or nothing of that name in it.
  """
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    raise UserError(f'{path} not found: is {workdir} the --workdir of a run?')
  lines = path.read_text(encoding='utf-8').splitlines(keepends=True)
  # A run that goes on may be in the middle of the last line.
  rows = [json.loads(line) for line in lines if line.endswith('\n')]
  curve = [(r['step'], r[metric]) for r in rows if r.get(metric) is not None]
  if not curve:
    names = sorted({name for row in rows for name in row} - {'step', 'time'})
    raise UserError(
      f'{path} has no {metric}; give --metric one of {", ".join(names)}'
    )
  return curve


def steps_before(workdir: str | os.PathLike) -> int:
  """Steps of the runs that led to this run's start, as far as they are there.

  Raises:
    UserError: a run among them has no checkpoint, or starts from itself.
  """
  total, seen = 0, {pathlib.Path(workdir).resolve()}
  while source := checkpoint.read_config(workdir).get('init_from'):
    workdir = pathlib.Path(source)
    if not workdir.is_dir():
      break  # A bundle does not tell its steps.
    if workdir.resolve() in seen:
      raise UserError(f'{workdir}: its runs start from each other')
    seen.add(workdir.resolve())
    total += int(checkpoint.step_path(workdir).name)
  return total


def read_lips(
  folder: str | os.PathLike, workdir: str | os.PathLike
) -> list[tuple[int, float]]:
  """(step, mean correlation of the mouth's opening) of a run, as far as scored.

  Raises:
    UserError: a folder's name is no step, or its scores are of no transformer.
  """
  curve = []
  for path in pathlib.Path(folder, pathlib.Path(workdir).name).glob(
    '*/scores.json'
  ):
    step = path.parent.name
    try:
      scores = json.loads(path.read_text(encoding='utf-8'))
      value = scores['mean']['generated']['mouth_correlation']
      curve.append((int(step), value))
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(
        f'{path}: must lie in a folder named by the step, and have been made by '
        f'launch.evaluate of a transformer ({error!r})'
      ) from error
  return sorted(curve)


def save_plot(
  path: str | os.PathLike,
  panels: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]],
) -> None:
  """A PNG of curves of (step, value): a panel each metric, a line each run."""
  figure = load_figure()(figsize=(8 * len(panels) ** 0.5, 4.5), dpi=120)
  axes = figure.subplots(1, len(panels), squeeze=False)[0]
  for axis, (metric, curves) in zip(axes, panels.items(), strict=True):
    # The same colour for a run in every panel, though it has no points there.
    for name, curve in curves.items():
      steps, values = zip(*curve, strict=True) if curve else ((), ())
      dots = 'o' if metric == LIPS else None
      axis.plot(steps, values, marker=dots, label=name, linewidth=1.5)
    axis.set_xlabel('steps, with those of the run it started from')
    axis.set_ylabel(metric)
    axis.grid(alpha=0.3)
  axes[0].legend(frameon=False)
  figure.tight_layout()
  with atomic.replacing(path) as half:
    figure.savefig(half, format='png')


def main(argv: list[str]) -> None:
  with one_line():
    workdirs = argv[1:]
    if not workdirs or not _OUT.value:
      raise UserError('--out and the workdirs of runs are needed; see --help')
    read = {_METRIC.value: lambda run: read_curve(run, _METRIC.value)}
    if _SCORES.value:
      read[LIPS] = lambda run: read_lips(_SCORES.value, run)
    panels = {metric: {} for metric in read}
    for workdir in workdirs:
      offset = steps_before(workdir)
      for metric, curve in ((m, of(workdir)) for m, of in read.items()):
        panels[metric][workdir] = [(s + offset, value) for s, value in curve]
        for step, value in panels[metric][workdir][-1:]:
          print(f'{workdir}: {metric} {value:.4g} at step {step}')
    if _SCORES.value and not any(panels[LIPS].values()):
      raise UserError(
        f'--scores={_SCORES.value}: has no NAME/STEP/scores.json of these runs'
      )
    save_plot(_OUT.value, panels)
    print(f'wrote {_OUT.value}')


if __name__ == '__main__':
  sys.exit(app.run(main))
