"""Sampling settings compared on real clips: weight of the sound, steps, solver.

  python -m launch.sweep --data clips/ --split split.json --limit 10 \
      --audio_cfgs 1,2,3,4 --steps 4,8,16 --solvers euler,dpmpp_2m \
      --out out/sweep

Every clip is made with every combination, from one frame of another clip, and
judged as by launch.evaluate. OUT gets sweep.md, sweep.json and sweep.png, with
rows for the real clips and the autoencoder's reconstruction of them. A killed
run continues where it was when given the same command; more values, given
later, are added to the table. The clips in the table are those that all its
rows have.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import pathlib
import sys
from typing import Any, NamedTuple

from absl import app, flags
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
  shards,
  sweep_report,
)
from launch.errors import UserError, one_line
from launch.generate import Generator, Settings
from launch.stopwatch import Stopwatch

_CLIPS = clip_flags.ClipFlags()
_AUDIO_CFGS = flags.DEFINE_list('audio_cfgs', ['1', '2', '3', '4'], 'weights')
_STEPS = flags.DEFINE_list('steps', ['4', '8', '16'], 'numbers of steps')
_SOLVERS = flags.DEFINE_list('solvers', ['euler', 'dpmpp_2m'], 'solvers')
_CACHE = flags.DEFINE_string('cache', 'none', guidance_flags.CACHE_HELP)


class Cell(NamedTuple):
  """One combination."""

  audio_cfg: float
  steps: int
  solver: str

  @property
  def name(self) -> str:
    return f'{self.solver}_{self.steps}_{self.audio_cfg:g}'


def main(_: list[str]) -> None:
  with one_line():
    files = _CLIPS.files()
    cells = read_cells(_AUDIO_CFGS.value, _STEPS.value, _SOLVERS.value)
    sweep = Sweep(_CLIPS.weights(), files, _CLIPS.out, cells)
    evaluation.claim(_CLIPS.out / 'plan.json', sweep.plan)
    sweep.run()
    print(sweep.report())


def read_cells(
  weights: Sequence[str], steps: Sequence[str], solvers: Sequence[str]
) -> dict[Cell, Settings]:
  """All combinations, in the order of the table; UserError names a flag."""
  cells = {}
  for solver, count, weight in itertools.product(solvers, steps, weights):
    try:
      cell = Cell(float(weight), int(count), solver)
    except ValueError as error:
      raise UserError(
        f'--steps={",".join(steps)} --audio_cfgs={",".join(weights)}: give '
        'numbers with commas between'
      ) from error
    guidance = guidance_flags.make_guidance(audio=cell.audio_cfg)
    cells[cell] = Settings(
      cell.steps,
      guidance,
      solver=solver,
      caching=guidance_flags.make_caching(_CACHE.value),
    )
  return cells


class Sweep:
  """All cells over all clips; a file of scores for each of both."""

  def __init__(
    self,
    weights: bundle.Bundle,
    files: Mapping[str, pathlib.Path],
    out: pathlib.Path,
    cells: Mapping[Cell, Settings],
  ):
    self.files, self.out, self.cells = files, out, cells
    self.size = weights.config['data']['size']
    self.plan = evaluation.make_plan(
      list(files),
      checkpoint=_CLIPS.checkpoint,
      size=self.size,
      seed=_CLIPS.seed,
      sampling={'cache': _CACHE.value, 'weights': weights.fingerprint()},
    )
    self.generator = Generator(weights)
    self.rebuild = evaluation.make_rebuild(weights)
    self.mesh = faces.default_mesh()

  def path(self, clip: str, row: str) -> pathlib.Path:
    return self.out / 'clips' / clip / f'{row}.json'

  def run(self) -> None:
    """Makes and judges what is not there yet, clip by clip."""
    for n, clip in enumerate(self.plan.clips):
      rows = ['truth', 'rebuilt', *(cell.name for cell in self.cells)]
      if all(self.path(clip, row).exists() for row in rows):
        continue
      try:
        self.judge(n)
      except (media.MediaError, faces.NoFaceError) as error:
        print(f'{clip}: skipped, {error}', flush=True)

  def judge(self, n: int) -> None:
    """Makes and scores what clip n lacks."""
    clip_id, size = self.plan.clips[n], self.size
    clip = evaluation.load_clip(self.files[clip_id], size, self.mesh)
    other = self.files[self.plan.partners[n]]
    image = evaluation.load_clip(other, size, self.mesh).frames[0]
    rois = self.mesh.clip_rois(clip.frames)
    look = lambda frames: clip_scores.look(frames, self.mesh, rois)
    truth = look(clip.frames)
    rebuilt = look(evaluation.rebuild_clip(clip.frames, self.rebuild))
    score = lambda seen: clip_scores.score(seen, truth, rebuilt, evaluation.FPS)
    save = evaluation_report.save_json
    save(self.path(clip_id, 'truth'), score(truth))
    save(self.path(clip_id, 'rebuilt'), score(rebuilt))
    for number, (cell, settings) in enumerate(self.cells.items(), 1):
      path = self.path(clip_id, cell.name)
      if path.exists():
        continue
      frames, spent = self.make(clip.wave, image, settings, _CLIPS.seed + n)
      scores = score(look(frames)) | {'sampling_seconds': spent}
      save(path, scores)
      print(
        f'[clip {n + 1}/{len(self.files)}, {number}/{len(self.cells)}] '
        f'{clip_id} {cell.name}: mouth r {scores["mouth_correlation"]:.3f}, '
        f'{spent:.1f} s',
        flush=True,
      )

  def make(
    self, wave: np.ndarray, image: np.ndarray, settings: Settings, seed: int
  ) -> tuple[np.ndarray, float]:
    """Frames, and the seconds that sampling took, without compiling."""
    settings = dataclasses.replace(settings, seed=seed)
    with Stopwatch() as watch:
      parts = self.generator.windows(wave, image, '', settings, stage=watch)
      frames = np.concatenate(list(parts))
    return frames, watch.seconds['sample']

  def report(self) -> str:
    """Writes table, JSON and plot of the clips that every row has.

    Returns:
      The table.

    Raises:
      UserError: there is none.
    """
    names = [cell.name for cell in self.cells]
    rows = ['truth', 'rebuilt', *names]
    clips = [
      {'id': i, 'rows': {r: shards.read_json(self.path(i, r)) for r in rows}}
      for i in self.files
      if all(self.path(i, r).exists() for r in rows)
    ]
    if not clips:
      raise UserError(f'{self.out}: no clip could be judged')
    summary = summarise(clips, self.cells)
    evaluation_report.save_json(
      self.out / 'sweep.json',
      {'clips': [clip['id'] for clip in clips], 'rows': summary},
    )
    table = sweep_report.markdown(summary, len(clips))
    (self.out / 'sweep.md').write_text(table)
    sweep_report.save_plot(self.out / 'sweep.png', summary)
    return table


def summarise(
  clips: Sequence[Mapping[str, Any]], cells: Sequence[Cell]
) -> list[dict[str, Any]]:
  """Means over clips: truth, reconstruction, then a row for each cell."""
  rows = []
  for cell in cells:
    chosen = [
      {
        'id': clip['id'],
        'rows': {
          'truth': clip['rows']['truth'],
          'rebuilt': clip['rows']['rebuilt'],
          'generated': clip['rows'][cell.name],
        },
      }
      for clip in clips
    ]
    means = evaluation_report.summarise(chosen)
    if not rows:
      rows += [{'row': r} | means[r] for r in ('truth', 'rebuilt')]
    rows.append({'row': cell.name} | cell._asdict() | means['generated'])
  for row in rows:
    row.pop('lag_profile')
  return rows


if __name__ == '__main__':
  sys.exit(app.run(main))
