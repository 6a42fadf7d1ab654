"""Faces of a part of a video, each followed and cut out steadily."""

from collections.abc import Callable, Sequence
import dataclasses

from jaxtyping import Float, UInt8
import numpy as np
from PIL import Image

from launch import faces

STRIDE = 4  # Frames from one look for faces to the next.
SMOOTH = 5  # Looks in a running median.
NEAR = 0.7  # Sides of a face that it may move between two looks.
SIZE = 96  # Pixels of the crops trained on.

Detect = Callable[[UInt8[np.ndarray, 'H W 3']], Sequence[faces.Face]]


@dataclasses.dataclass
class Found:
  """One face as it was seen: frames, and a row x, y, side for each."""

  times: list[int]
  rows: list[np.ndarray]


def tracks(
  frames: UInt8[np.ndarray, 'N H W 3'], detect: Detect
) -> list[Float[np.ndarray, 'N 3']]:
  """Middle x, y and side in each frame of every face that mostly stays.

  That is, in at least half of the frames looked at, the largest first. Between
  looks rows are interpolated; a running median takes out what jitters.

  Args:
    frames: consecutive ones.
    detect: `FaceMesh.detect`, or like it.
  """
  looks = faces.sample_frames(len(frames), 1 + (len(frames) - 1) // STRIDE)
  open_: list[Found] = []
  for n in looks:
    for face in detect(frames[n]):
      x0, y0, x1, y1 = face.box
      row = np.array([(x0 + x1) / 2, (y0 + y1) / 2, max(x1 - x0, y1 - y0)])
      at = nearest([f.rows[-1] for f in open_], row)
      if at is None:
        open_.append(Found([n], [row]))
      elif open_[at].times[-1] != n:
        open_[at].times.append(n)
        open_[at].rows.append(row)
  kept = [f for f in open_ if 2 * len(f.times) >= len(looks)]
  smooth = [_smooth(f, len(frames)) for f in kept]
  return sorted(smooth, key=lambda rows: -rows[:, 2].mean())


def nearest(
  known: Sequence[Float[np.ndarray, '3']], row: Float[np.ndarray, '3']
) -> int | None:
  """Index of the face that may be this one a little later; None if none is."""
  gaps = [np.hypot(*(k - row)[:2]) / max(k[2], row[2]) for k in known]
  if not gaps or min(gaps) > NEAR:
    return None
  return int(np.argmin(gaps))


def crops(
  frames: UInt8[np.ndarray, 'N H W 3'], track: Float[np.ndarray, 'N 3']
) -> UInt8[np.ndarray, 'N 96 96 3']:
  """The squares that `faces.face_crop_box` would cut, frame by frame.

  Their corners are no whole pixels, so that a small face does not shake; parts
  outside the picture repeat its edge.
  """
  height, width = frames.shape[1:3]
  out = np.empty((len(frames), SIZE, SIZE, 3), np.uint8)
  for n, (x, y, side) in enumerate(track):
    size = faces.CROP_MARGIN * side
    corner = np.array([x, y - faces.CROP_RISE * side]) - size / 2
    left, top = np.floor(corner).astype(int) - 1
    reach = np.arange(int(np.ceil(size)) + 3)
    rows = np.clip(top + reach, 0, height - 1)
    columns = np.clip(left + reach, 0, width - 1)
    square = Image.fromarray(frames[n][rows[:, None], columns])
    x0, y0 = corner - (left, top)
    box = (x0, y0, x0 + size, y0 + size)
    out[n] = square.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box)
  return out


def _smooth(found, count):
  rows, last = np.array(found.rows), len(found.rows) - 1
  medians = []
  for i in range(len(rows)):
    # As many on either side, or a moving face would lag behind at the ends.
    side = min(SMOOTH // 2, i, last - i)
    medians.append(np.median(rows[i - side : i + side + 1], axis=0))
  columns = np.array(medians).T
  at = np.arange(count)
  return np.stack([np.interp(at, found.times, c) for c in columns], -1)
