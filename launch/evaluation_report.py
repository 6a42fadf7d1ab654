"""The tables and plots that `launch.evaluate` leaves behind."""

from collections.abc import Mapping, Sequence
import json
import os
from typing import Any

from jaxtyping import Float
import numpy as np

from launch import atomic
from launch.clip_scores import MAX_LAG
from launch.filmstrip import MADE, TRUE, load_figure
from mirage_jax import evals

ROW_TITLES = {
  'truth': 'ground truth',
  'rebuilt': 'VAE reconstruction',
  'generated': 'generated',
  'shuffled': "generated from another clip's audio",
}
# Column title, key of the summary, format.
COLUMNS = (
  ('face found', 'face_found', '.3f'),
  ('mouth r', 'mouth_correlation', '.3f'),
  ('r with another clip', 'control_correlation', '.3f'),
  ('best lag (frames)', 'best_lag', '+d'),
  ('blinks/min', 'blinks_per_minute', '.1f'),
  ('PSNR', 'psnr_whole_truth', '.2f'),
  ('SSIM', 'ssim_whole_truth', '.3f'),
  ('PSNR static', 'psnr_static_truth', '.2f'),
  ('SSIM static', 'ssim_static_truth', '.3f'),
  ('PSNR static, to VAE', 'psnr_static_rebuilt', '.2f'),
  ('SSIM static, to VAE', 'ssim_static_rebuilt', '.3f'),
  ('PSNR aligned, to VAE', 'psnr_aligned_rebuilt', '.2f'),
  ('SSIM aligned, to VAE', 'ssim_aligned_rebuilt', '.3f'),
  ('flicker', 'flicker_ratio', '.2f'),
  ('sharpness', 'sharpness_ratio', '.2f'),
  ('drift', 'drift', '.2f'),
)
EXPLANATION = """\
Mean over {clips} clips. *face found*: share of clips in which a face detector
finds one. *mouth r*: Pearson correlation of the mouth-opening
curve with the true one, frame by frame; *with another clip*: with the true
curve of another clip, the level that a mouth reaches by opening and closing
at no right time; *best lag*: where the mean correlation over lags peaks
(positive: late). *PSNR* (dB) and *SSIM* to the truth: whole frames, and
*static*, outside a box around mouth and chin; *to VAE*: to the autoencoder's
reconstruction of the truth; *aligned*: the face without mouth and chin, after
laying it onto the true pose. *flicker* and *sharpness*: ratio to the truth, same region. *drift*: RMS
colour change between first and last second, in 8-bit levels.
"""


def summarise(clips: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
  """Means over clips, per row of the table.

  Args:
    clips: results with 'id' and 'rows': {row: `clip_scores.score`}, in an
      order that makes the control pairing reproducible.

  Returns:
    {row: {key: mean}}; correlations and ratios are means over clips, the lag
    is that of the mean profile, the blink rate is over all the time there is.
  """
  partners = evals.derangement(len(clips)) if len(clips) > 1 else None
  summary = {}
  for row in [r for r in ROW_TITLES if clips and r in clips[0]['rows']]:
    scores = [clip['rows'][row] for clip in clips]
    numbers = [k for k, v in scores[0].items() if isinstance(v, (int, float))]
    mean = {k: float(np.mean([s[k] for s in scores])) for k in numbers}
    profile = np.mean([s['lag_profile'] for s in scores], axis=0)
    mean['lag_profile'] = profile.tolist()
    mean['best_lag'] = int(np.argmax(profile)) - MAX_LAG
    minutes = sum(s['seconds'] for s in scores) / 60
    mean['blinks_per_minute'] = sum(s['blinks'] for s in scores) / minutes
    if partners is not None:
      others = [clips[p]['rows']['truth']['mouth'] for p in partners]
      pairs = zip([s['mouth'] for s in scores], others, strict=True)
      mean['control_correlation'] = float(
        np.mean([paired_correlation(a, b) for a, b in pairs])
      )
    summary[row] = mean
  return summary


def paired_correlation(a: Sequence[float], b: Sequence[float]) -> float:
  """Correlation over the frames that both curves have."""
  length = min(len(a), len(b))
  return evals.pearson(np.array(a[:length]), np.array(b[:length]))


def markdown(
  summary: Mapping[str, Mapping[str, Any]], clips: int, skipped: int = 0
) -> str:
  """The table for people, one measure a line so that it fits a page."""
  rows = list(summary)
  titles = [ROW_TITLES[row] for row in rows]
  lines = ['| | ' + ' | '.join(titles) + ' |', '|---' * (len(rows) + 1) + '|']
  for title, key, form in COLUMNS:
    cells = [
      format(summary[row][key], form)
      if key in summary[row] and not key.endswith(f'_{row}')
      else '-'  # unknown, or the row compared with itself
      for row in rows
    ]
    lines.append(f'| {title} | ' + ' | '.join(cells) + ' |')
  text = '\n'.join(lines) + '\n\n' + EXPLANATION.format(clips=clips)
  if skipped:
    text += (
      f'\n{skipped} more could not be judged: see `skipped` in the JSON.\n'
    )
  return text


def save_curves(
  path: str | os.PathLike, clips: Sequence[Mapping[str, Any]], fps: float
) -> None:
  """A PNG: mouth and eye curves of a few clips, every row of the table."""
  figure = load_figure()(figsize=(16, 2.2 * len(clips)), dpi=100)
  grid = figure.subplots(len(clips), 2, squeeze=False)
  for axes, clip in zip(grid, clips, strict=True):
    for axis, key in zip(axes, ('mouth', 'eyes'), strict=True):
      for row, scores in clip['rows'].items():
        draw_row(axis, np.array(scores[key]), row, fps)
      axis.set_ylabel(key)
    axes[0].set_title(clip['id'], loc='left', fontsize=10)
  for axis in grid[-1]:
    axis.set_xlabel('seconds')
  handles, labels = grid[0][0].get_legend_handles_labels()
  figure.legend(handles, labels, loc='upper right', frameon=False, ncols=4)
  figure.tight_layout()
  with atomic.replacing(path) as half:
    figure.savefig(half)


def draw_row(axis, curve: Float[np.ndarray, 'N'], row: str, fps: float) -> None:
  """The truth is dark, the generated coloured, controls are broken lines."""
  style = {
    'truth': {'color': TRUE, 'linewidth': 1.5},
    'rebuilt': {'color': TRUE, 'linewidth': 1, 'linestyle': ':'},
    'generated': {'color': MADE, 'linewidth': 1.8},
    'shuffled': {'color': MADE, 'linewidth': 1, 'linestyle': '--'},
  }[row]
  axis.plot(np.arange(len(curve)) / fps, curve, label=ROW_TITLES[row], **style)


def save_json(path: str | os.PathLike, value: Any) -> None:
  """JSON that is whole or not there."""
  with atomic.replacing(path) as half:
    half.write_text(json.dumps(value, indent=1) + '\n')
