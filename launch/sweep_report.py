"""The table and the plot that `launch.sweep` leaves behind."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from launch import atomic
from launch.evaluation_report import ROW_TITLES
from launch.filmstrip import TRUE, load_figure

# Column title, key, format.
COLUMNS = (
  ('mouth r', 'mouth_correlation', '.3f'),
  ('with another clip', 'control_correlation', '.3f'),
  ('best lag', 'best_lag', '+d'),
  ('sharpness', 'sharpness_ratio', '.2f'),
  ('flicker', 'flicker_ratio', '.2f'),
  ('blinks/min', 'blinks_per_minute', '.1f'),
  ('drift', 'drift', '.2f'),
  ('face found', 'face_found', '.2f'),
  ('seconds', 'sampling_seconds', '.1f'),
)
PANELS = COLUMNS[0], COLUMNS[3], COLUMNS[5]
NOTE = """\
Mean over {clips} clips. *mouth r*: Pearson correlation of the mouth's opening
with the true one; *with another clip*: with that of another clip, what a mouth
reaches by opening and closing at no right time; *best lag* in frames, positive:
late; *sharpness* and *flicker*: ratio to the truth outside of the mouth; *drift*:
RMS colour change from first to last second, in 8-bit levels; *seconds*: of
sampling a clip, without compiling and decoding.
"""


def markdown(rows: Sequence[Mapping[str, Any]], clips: int) -> str:
  """A line for each row; the best mouth r of the cells is bold."""
  titles = ['solver', 'steps', 'audio weight', *(c[0] for c in COLUMNS)]
  lines = [f'| {" | ".join(titles)} |', '|---' * len(titles) + '|']
  best = max(
    (row for row in rows if 'solver' in row),
    key=lambda row: row['mouth_correlation'],
  )
  for row in rows:
    cells = [ROW_TITLES.get(row['row'], ''), '', '']
    if 'solver' in row:
      cells = [row['solver'], str(row['steps']), f'{row["audio_cfg"]:g}']
    for _, key, form in COLUMNS:
      cells.append(format(row[key], form) if key in row else '-')
    if row is best:
      cells[3] = f'**{cells[3]}**'
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n\n' + NOTE.format(clips=clips)


def save_plot(
  path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]
) -> None:
  """A PNG: each measure over the weight, a line for each solver and steps."""
  figure = load_figure()(figsize=(5 * len(PANELS), 4.2), dpi=100)
  cells = [row for row in rows if 'solver' in row]
  lines = dict.fromkeys((row['solver'], row['steps']) for row in cells)
  solvers = list(dict.fromkeys(solver for solver, _ in lines))
  for axis, (title, key, _) in zip(
    figure.subplots(1, len(PANELS)), PANELS, strict=True
  ):
    for solver, steps in lines:
      chosen = sorted(
        (row['audio_cfg'], row[key])
        for row in cells
        if (row['solver'], row['steps']) == (solver, steps)
      )
      axis.plot(
        *zip(*chosen, strict=True),
        marker='o',
        linestyle=('-', '--', ':', '-.')[solvers.index(solver) % 4],
        label=f'{solver}, {steps} steps',
      )
    for row, style in zip(rows[:2], ('-', ':'), strict=True):
      axis.axhline(
        row[key],
        color=TRUE,
        linewidth=1,
        linestyle=style,
        label=ROW_TITLES[row['row']],
      )
    axis.set_xlabel('weight of the sound')
    axis.set_title(title)
  handles, labels = axis.get_legend_handles_labels()
  figure.legend(
    handles, labels, loc='outside lower center', ncols=4, frameon=False
  )
  figure.tight_layout(rect=(0, 0.02 + 0.06 * -(-len(labels) // 4), 1, 1))
  with atomic.replacing(path) as half:
    figure.savefig(half)
