"""One picture of a talking clip: frames, sound and lips on one time axis."""

import os

from jaxtyping import Float, UInt8
import numpy as np

from launch import atomic
from launch.errors import UserError

WIDTH, DPI = 16.0, 100  # inches, dots per inch: 1600 pixels
SIDES = 0.06, 0.99  # the axes' left and right, as fractions of the width
MADE, TRUE = '#c2410c', '#334155'
# Points of the waveform's outline; more than the picture has columns.
OUTLINE = 2000


def save_filmstrip(
  path: str | os.PathLike,
  frames: UInt8[np.ndarray, 'N H W 3'],
  wave: Float[np.ndarray, 'S'],
  opening: Float[np.ndarray, 'N'],
  *,
  reference_frames: UInt8[np.ndarray, 'M H W 3'] | None = None,
  reference_opening: Float[np.ndarray, 'M'] | None = None,
  fps: float = 25,
  rate: int = 16000,
  title: str = '',
) -> None:
  """Writes a PNG 1600 pixels wide: frames above the waveform above the curve.

  Every frame shown stands over its own time. With a reference, its frames and
  its curve are drawn too.

  Args:
    path: of the PNG; replaced only when the new one is whole.
    frames: the clip, shown at even steps as densely as the width allows.
    wave: its sound, mono.
    opening: mouth opening per frame.
    reference_frames, reference_opening: of the true clip.
    fps: frames per second of both clips.
    rate: samples per second.
    title: one line at the top.

  Raises:
    UserError: matplotlib is missing, or the file cannot be written.
  """
  figure_type = load_figure()
  seconds = max(len(frames) / fps, len(wave) / rate)
  aspect = frames.shape[1] / frames.shape[2]
  strips = [(frames, 'generated' if reference_frames is not None else '')]
  if reference_frames is not None:
    strips.insert(0, (reference_frames, 'reference'))
  count = frames_across(seconds)
  strip_height = WIDTH * (SIDES[1] - SIDES[0]) / count * aspect
  heights = [strip_height] * len(strips) + [0.9, 1.6]
  figure = figure_type(figsize=(WIDTH, sum(heights) + 0.9), dpi=DPI)
  axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
  for axis, (pictures, label) in zip(axes, strips, strict=False):
    draw_frames(axis, pictures, seconds, count, fps, label)
  draw_wave(axes[-2], wave, rate)
  draw_curves(axes[-1], opening, reference_opening, fps)
  axes[-1].set_xlim(0, seconds)
  axes[-1].set_xlabel('seconds')
  if title:
    axes[0].set_title(title, fontsize=11, loc='left')
  height = figure.get_figheight()
  figure.subplots_adjust(
    SIDES[0], 0.5 / height, SIDES[1], 1 - 0.3 / height, hspace=0.04
  )
  figure.align_ylabels()
  with atomic.replacing(path) as half:
    figure.savefig(half, dpi=DPI)


def load_figure() -> type:
  """Matplotlib's Figure, which needs neither pyplot nor a display."""
  try:
    from matplotlib.figure import Figure  # the eval extra
  except ImportError as error:
    raise UserError(
      'pictures need matplotlib: run `pip install ".[eval]"`'
    ) from error
  return Figure


def frames_across(seconds: float) -> int:
  """About four frames a second, but none narrower than 120 pixels."""
  return int(np.clip(round(4 * seconds), 6, 12))


def draw_frames(axis, frames, seconds, count, fps, label) -> None:
  """Frames side by side, each starting at its own time on the axis."""
  slot = seconds / count
  for k in range(count):
    n = round(k * slot * fps)
    if n < len(frames):
      extent = (k * slot, (k + 1) * slot, 0, 1)
      axis.imshow(frames[n], extent=extent, interpolation='lanczos')
  axis.set(xlim=(0, seconds), ylim=(0, 1), aspect='auto', yticks=[])
  axis.set_ylabel(label)
  axis.tick_params(bottom=False)
  for spine in axis.spines.values():
    spine.set_visible(False)


def draw_wave(axis, wave, rate) -> None:
  """The outline between each column's lowest and highest sample."""
  peak = max(float(np.abs(wave).max(initial=0)), 1e-4)
  columns = min(OUTLINE, len(wave))
  edges = np.linspace(0, len(wave), columns, endpoint=False).astype(int)
  low, high = (f.reduceat(wave, edges) for f in (np.minimum, np.maximum))
  axis.fill_between(edges / rate, low, high, color=TRUE, linewidth=0)
  axis.set(ylim=(-1.05 * peak, 1.05 * peak), yticks=[])
  axis.set_ylabel('sound')
  axis.tick_params(bottom=False)


def draw_curves(axis, opening, reference, fps) -> None:
  """Mouth opening, each frame's value at the time it is shown."""
  if reference is not None:
    at = np.arange(len(reference)) / fps
    axis.plot(at, reference, color=TRUE, linewidth=1.5, label='reference')
  at = np.arange(len(opening)) / fps
  axis.plot(at, opening, color=MADE, linewidth=1.8, label='generated')
  if reference is not None:
    axis.legend(loc='upper right', frameon=False, ncols=2)
  axis.set_ylabel('mouth opening')
  axis.grid(axis='x', alpha=0.3)
