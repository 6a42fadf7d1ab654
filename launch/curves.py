"""One plot of several runs: a held-out loss against steps, with what led there.

  python -m launch.curves --out curves.png runs/silent runs/attach runs/scratch

A run that started from another workdir (config.init_from) begins where that one
ended, so that all are compared at the steps spent in all. `--metric` takes any
name in metrics.jsonl; what `launch.evaluate` found can be set beside it.
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


def save_plot(
  path: str | os.PathLike,
  curves: Mapping[str, Sequence[tuple[int, float]]],
  metric: str,
) -> None:
  """A PNG of curves of (step, value), a line for each name."""
  figure = load_figure()(figsize=(8, 4.5), dpi=120)
  axis = figure.subplots()
  for name, curve in curves.items():
    axis.plot(*zip(*curve, strict=True), label=name, linewidth=1.5)
  axis.set_xlabel('steps, with those of the run it started from')
  axis.set_ylabel(metric)
  axis.legend(frameon=False)
  axis.grid(alpha=0.3)
  figure.tight_layout()
  with atomic.replacing(path) as half:
    figure.savefig(half, format='png')


def main(argv: list[str]) -> None:
  with one_line():
    workdirs = argv[1:]
    if not workdirs or not _OUT.value:
      raise UserError('--out and the workdirs of runs are needed; see --help')
    curves = {}
    for workdir in workdirs:
      offset = steps_before(workdir)
      curve = read_curve(workdir, _METRIC.value)
      curves[workdir] = [(step + offset, value) for step, value in curve]
      last, value = curves[workdir][-1]
      print(f'{workdir}: {_METRIC.value} {value:.4g} at step {last}')
    save_plot(_OUT.value, curves, _METRIC.value)
    print(f'wrote {_OUT.value}')


if __name__ == '__main__':
  sys.exit(app.run(main))
