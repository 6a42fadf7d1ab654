r"""One plot of several runs: a held-out loss against steps, with what led there.

  python -m launch.curves --out curves.png runs/silent runs/attach runs/scratch

A run that started from another workdir (config.init_from) begins where that one
ended, so that all are compared at the steps spent in all. `--metric` takes any
name in metrics.jsonl. Runs of one name that differ in the seed alone, as
runs/0/attach and runs/1/attach, are a thick line, their mean, and thin ones.

Beside it, `--scores=FOLDER` draws how the lips follow the sound, of what
`launch.evaluate` left in FOLDER/NAME/STEP, where FOLDER lies beside the runs, NAME is
the last part of a workdir and STEP the checkpoint that was exported:

  python -m launch.export --workdir runs/attach --step 400 --vae vae.safetensors \
      --out attach_400.safetensors
  python -m launch.evaluate --checkpoint attach_400.safetensors --data CLIPS \
      --split split.json --subset val --out runs/scores/attach/400
  python -m launch.curves --out curves.png --scores scores runs/attach
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
  'scores',
  None,
  'beside each run, a folder of NAME/STEP with what launch.evaluate found',
)
LIPS = "mouth opening, r with the true clip's"

Curve = list[tuple[int, float]]  # (step, value)


def read_curve(workdir: str | os.PathLike, metric: str) -> Curve:
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


def read_lips(folder: str, workdir: str | os.PathLike) -> Curve:
  """(step, mean correlation of the mouth's opening) of a run, as far as scored.

  Args:
    folder: the name of one beside the run.
    workdir: the run.

  Raises:
    UserError: a folder's name is no step, or its scores are of no transformer.
  """
  curve, run = [], pathlib.Path(workdir)
  for path in (run.parent / folder / run.name).glob('*/scores.json'):
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


def by_seed(workdirs: Sequence[str]) -> dict[str, list[str]]:
  """Runs of one name that but for the seed learn alike, by a title for them."""
  groups = {}
  for workdir in workdirs:
    config = {
      key: value
      for key, value in checkpoint.read_config(workdir).items()
      if key not in checkpoint.FREE_KEYS | {'seed', 'init_from'}
    }
    key = pathlib.Path(workdir).name, json.dumps(config, sort_keys=True)
    groups.setdefault(key, []).append(workdir)
  names = [name for name, _ in groups]
  titles = {}
  for (name, _), runs in groups.items():
    title = name if names.count(name) == 1 else runs[0]
    titles[title + (f', {len(runs)} seeds' if len(runs) > 1 else '')] = runs
  return titles


def mean(curves: Sequence[Curve]) -> Curve:
  """At the steps that all curves have."""
  tables = [dict(curve) for curve in curves]
  steps = sorted(set.intersection(*(set(table) for table in tables)))
  return [(s, sum(t[s] for t in tables) / len(tables)) for s in steps]


def save_plot(
  path: str | os.PathLike, panels: Mapping[str, Mapping[str, Sequence[Curve]]]
) -> None:
  """A PNG: a panel each metric; a colour each title, for the mean of its runs."""
  figure = load_figure()(figsize=(8 * len(panels) ** 0.5, 4.5), dpi=120)
  axes = figure.subplots(1, len(panels), squeeze=False)[0]
  for axis, (metric, groups) in zip(axes, panels.items(), strict=True):
    # The same colour in every panel, though there may be no points.
    for number, (title, curves) in enumerate(groups.items()):
      look = {'marker': 'o'} if metric == LIPS else {}
      look['color'] = f'C{number}'
      axis.plot(*_xy(mean(curves)), label=title, linewidth=1.5, **look)
      for curve in curves if len(curves) > 1 else ():
        axis.plot(*_xy(curve), linewidth=0.7, alpha=0.5, color=look['color'])
    axis.set_xlabel('steps, with those of the run it started from')
    axis.set_ylabel(metric)
    axis.grid(alpha=0.3)
  axes[0].legend(frameon=False)
  figure.tight_layout()
  with atomic.replacing(path) as half:
    figure.savefig(half, format='png')


def _xy(curve):
  return zip(*curve, strict=True) if curve else ((), ())


def main(argv: list[str]) -> None:
  with one_line():
    workdirs = argv[1:]
    if not workdirs or not _OUT.value:
      raise UserError('--out and the workdirs of runs are needed; see --help')
    read = {_METRIC.value: lambda run: read_curve(run, _METRIC.value)}
    if _SCORES.value:
      read[LIPS] = lambda run: read_lips(_SCORES.value, run)
    runs = by_seed(list(dict.fromkeys(workdirs)))
    panels = {
      metric: {
        title: [of_all_steps(run, curve(run)) for run in seeds]
        for title, seeds in runs.items()
      }
      for metric, curve in read.items()
    }
    for metric, groups in panels.items():
      for title, curves in groups.items():
        for step, value in mean(curves)[-1:]:
          print(f'{title}: {metric} {value:.4g} at step {step}')
    lips = panels.get(LIPS, {}).values()
    if _SCORES.value and not any(curve for curves in lips for curve in curves):
      raise UserError(
        f'--scores={_SCORES.value}: no folder of that name beside these runs has '
        'NAME/STEP/scores.json of one'
      )
    save_plot(_OUT.value, panels)
    print(f'wrote {_OUT.value}')


def of_all_steps(workdir: str, curve: Curve) -> Curve:
  """A run's curve at the steps that were spent in all."""
  offset = steps_before(workdir)
  return [(step + offset, value) for step, value in curve]


if __name__ == '__main__':
  sys.exit(app.run(main))
