"""The table and the plot that `launch.robustness` leaves behind."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from jaxtyping import Float
import numpy as np

from launch import atomic, loudness
from launch.clip_scores import MAX_LAG, Look
from launch.filmstrip import MADE, TRUE, load_figure
from mirage_jax import evals, evals_image

# Column title, key, format.
COLUMNS = (
  ('mouth r', 'mouth_correlation', '.3f'),
  ('lag, frames', 'lag', '+d'),
  ('lag due', 'lag_due', '+d'),
  ('r with loudness', 'loudness', '.2f'),
  ('mouth moves', 'movement', '.2f'),
  ('mouth opens', 'opening', '.2f'),
  ('sharpness', 'sharpness', '.2f'),
  ('face found', 'face_found', '.2f'),
)
NOTE = """\
Mean over {clips} clips. *mouth r*: correlation of the mouth's opening with the
true one at the *lag due*; *lag*: the one at which it is greatest; *r with
loudness*: of the opening and the level of the sound, where nobody was filmed;
*mouth moves*, *opens*: deviation of the opening, and its mean above the real
clip's least, over those of the real clip, 0 for a mouth that stays shut;
*sharpness*: ratio to the real clip.
Synthesised sentences are all spoken by one American voice.
"""
DRIFT = (
  ('identity', 'identity: PSNR of the mean face, dB'),
  ('colour', 'colour: change, 8-bit levels'),
  ('sharpness', 'sharpness, ratio'),
  ('lips', 'lips: r over 3 s'),
)


def figures(
  seen: Look, truth: Look, wave: Float[np.ndarray, 'S']
) -> dict[str, float]:
  """What can be said of a clip whatever its sound is.

  Args:
    seen: what was made.
    truth: a real clip of the same person.
    wave: the sound of what was made.
  """
  level = loudness.level(wave, len(seen.mouth))
  sharp = [evals_image.sharpness(clip.frames) for clip in (seen, truth)]
  return {
    'face_found': float(seen.found),
    'loudness': evals.pearson(seen.mouth, level),
    **_moves(seen.mouth, truth.mouth),
    'sharpness': float(sharp[0] / max(sharp[1], 1e-9)),
  }


def pauses(truth: Look, wave: Float[np.ndarray, 'S']) -> dict[str, float]:
  """How far a real mouth moves and opens in the least loud third of frames.

  What a mouth made for silence is to be held against: people breathe.
  """
  order = np.argsort(loudness.level(wave, len(truth.mouth)), kind='stable')
  quiet = truth.mouth[order[: -(-len(order) // 3)]]
  return _moves(quiet, truth.mouth)


def _moves(mouth, real):
  shut = np.min(real)
  opening = [np.mean(curve) - shut for curve in (mouth, real)]
  return {
    'movement': float(np.std(mouth) / max(np.std(real), 1e-9)),
    'opening': float(opening[0] / max(opening[1], 1e-9)),
  }


def mean(
  results: Sequence[Mapping[str, Any]], late: int | None
) -> dict[str, Any]:
  """A row: means over clips, and the lag of their mean profile.

  Args:
    results: figures of each clip; 'lag_profile' where somebody speaks.
    late: the lag that is due, or None.
  """
  numbers = [k for k, v in results[0].items() if isinstance(v, float)]
  row = {k: float(np.mean([r[k] for r in results])) for k in numbers}
  if late is not None:
    profile = np.mean([r['lag_profile'] for r in results], axis=0)
    row['lag'] = int(np.argmax(profile)) - MAX_LAG
    row['lag_due'] = late
    row['mouth_correlation'] = float(profile[late + MAX_LAG])
  return row


def markdown(rows: Mapping[str, Mapping[str, Any]], clips: int) -> str:
  """A line for each row; what fits no column stands below."""
  titles = ['sound', *(column[0] for column in COLUMNS)]
  lines = [f'| {" | ".join(titles)} |', '|---' * len(titles) + '|']
  notes = []
  for name, row in rows.items():
    cells = [
      format(row[key], form) if key in row else '-' for _, key, form in COLUMNS
    ]
    lines.append(f'| {name} | {" | ".join(cells)} |')
    if 'closures' in row:
      notes.append(
        f'{name}: lips shut at {row["closures"]} of {row["closures_of"]} '
        f'/p b m/ (by chance {row["closures_by_chance"]:.1f})'
      )
    if 'after_it' in row:
      notes.append(
        f'{name}: lips r = {row["first_window"]:.3f} in the first window, '
        f'{row["after_it"]:.3f} after it; identity {row["identity_begin"]:.1f} '
        f'dB at the beginning, {row["identity_end"]:.1f} at the end '
        f'(autoencoder alone {row["identity_noise"]:.1f}), colour off by '
        f'{row["colour_begin"]:.1f} and {row["colour_end"]:.1f} levels '
        f'({row["colour_noise"]:.1f})'
      )
    if 'colour_trend' in row:
      identity, colour = _trend(row, 'identity'), _trend(row, 'colour')
      notes.append(
        f'{name}: a minute adds {identity} dB of identity, {colour} levels of '
        'colour (+- standard errors)'
      )
  return '\n'.join([*lines, '', NOTE.format(clips=clips), *notes]) + '\n'


def _trend(row, name):
  return f'{row[f"{name}_trend"]:+.1f} +- {row[f"{name}_trend_error"]:.1f}'


def save_drift(path: str | os.PathLike, drift: Mapping[str, Any]) -> None:
  """A PNG: the four curves over the seconds, and the autoencoder's noise."""
  figure = load_figure()(figsize=(9, 8), dpi=100)
  for axis, (key, title) in zip(
    figure.subplots(len(DRIFT), 1, sharex=True), DRIFT, strict=True
  ):
    # The first second against itself says nothing of identity.
    start = 1 if key == 'identity' else 0
    curve = drift[key][start:]
    axis.plot(range(start + 1, start + 1 + len(curve)), curve, color=MADE)
    axis.set_title(title, loc='left', fontsize=10)
    if key in drift['noise']:
      noise = drift['noise'][key]
      axis.axhline(noise, color=TRUE, linewidth=1, linestyle=':')
      axis.annotate('autoencoder alone', (1, noise), fontsize=8, va='bottom')
  axis.set_xlabel('second')
  figure.tight_layout()
  with atomic.replacing(path) as half:
    figure.savefig(half)
