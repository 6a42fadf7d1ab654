"""What frames say: fidelity, flicker, drift, sharpness, seams.

Frames are uint8; masks are True where a pixel counts. Values in 8-bit levels
unless said otherwise. SSIM is scikit-image's (the `eval` extra).
"""

from jaxtyping import Bool, Float, UInt8
import numpy as np

# MediaPipe mesh: below the nose, chin, lip corners. Between them lies all that
# moves with the mouth.
NOSE_BASE, CHIN, LIP_LEFT, LIP_RIGHT = 2, 152, 61, 291
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Wang et al. 2004: an 11 x 11 Gaussian window with sigma 1.5.
SSIM_SIGMA = 1.5


def mouth_static(
  landmarks: Float[np.ndarray, 'N 468 3'], height: int, width: int
) -> Bool[np.ndarray, 'height width']:
  """True outside one box around mouth and chin, over the whole clip.

  The box spans from under the nose to below the chin, and the lips' width plus
  half of it on both sides, at their furthest in any frame.

  Args:
    landmarks: pixels of the frames, N frames (of several clips, if wanted).
    height, width: of the frames.
  """
  x, y = landmarks[..., 0], landmarks[..., 1]
  left, right = x[..., LIP_LEFT].min(), x[..., LIP_RIGHT].max()
  top, bottom = y[..., NOSE_BASE].min(), y[..., CHIN].max()
  aside, below = 0.5 * (right - left), 0.1 * (bottom - top)
  rows, columns = np.arange(height), np.arange(width)
  in_rows = (rows >= np.floor(top)) & (rows <= np.ceil(bottom + below))
  in_columns = (columns >= left - aside) & (columns <= right + aside)
  return ~(in_rows[:, None] & in_columns[None])


def psnr(
  frames: UInt8[np.ndarray, 'N H W 3'],
  reference: UInt8[np.ndarray, 'N H W 3'],
  mask: Bool[np.ndarray, 'H W'] | None = None,
) -> float:
  """Peak signal-to-noise ratio in dB, mean over frames; at most 100.

  Raises:
    ValueError: the shapes differ.
  """
  _check_pair(frames, reference)
  difference = frames.astype(np.float32) - reference.astype(np.float32)
  square = np.square(difference).mean(axis=-1)
  per_frame = square.mean((1, 2)) if mask is None else square[:, mask].mean(1)
  floor = 255.0**2 / 10.0**10
  return float(np.mean(10 * np.log10(255.0**2 / np.maximum(per_frame, floor))))


def ssim(
  frames: UInt8[np.ndarray, 'N H W 3'],
  reference: UInt8[np.ndarray, 'N H W 3'],
  mask: Bool[np.ndarray, 'H W'] | None = None,
) -> float:
  """Structural similarity (Wang et al. 2004), mean over frames and colours.

  Raises:
    ValueError: the shapes differ, or a side is under 11 pixels.
  """
  from skimage import metrics  # the eval extra, not needed by training

  _check_pair(frames, reference)
  values = []
  for frame, target in zip(frames, reference, strict=True):
    _, similarity = metrics.structural_similarity(
      frame,
      target,
      channel_axis=-1,
      data_range=255,
      gaussian_weights=True,
      sigma=SSIM_SIGMA,
      use_sample_covariance=False,
      full=True,
    )
    similarity = similarity.mean(axis=-1)
    values.append(
      similarity.mean() if mask is None else similarity[mask].mean()
    )
  return float(np.mean(values))


def flicker(
  frames: UInt8[np.ndarray, 'N H W 3'],
  mask: Bool[np.ndarray, 'H W'] | None = None,
) -> float:
  """Mean absolute second difference in time: what moves without going on.

  Steady motion and slow change cancel; noise and pumping brightness do not.
  Read it as a ratio to the reference clip's, whose camera has noise too.

  Raises:
    ValueError: fewer than 3 frames.
  """
  if len(frames) < 3:
    raise ValueError(f'flicker needs 3 frames, not {len(frames)}')
  x = frames.astype(np.float32)
  bend = np.abs(x[2:] - 2 * x[1:-1] + x[:-2]).mean(axis=-1)
  return float(bend.mean() if mask is None else bend[:, mask].mean())


def drift(
  frames: UInt8[np.ndarray, 'N H W 3'], fps: float, cells: int = 8
) -> float:
  """How far colours wander: last second against first, per coarse cell.

  The mean over each second and over a cells x cells grid leaves light, colour
  and framing; what speaks and blinks averages out.

  Args:
    frames: a clip; use it on long ones, where drift shows.
    fps: frames per second.
    cells: grid cells per side.

  Returns:
    Root mean square difference over cells and colours, in levels.
  """
  span = max(min(round(fps), len(frames) // 2), 1)
  first = frames[:span].astype(np.float32).mean(axis=0)
  last = frames[-span:].astype(np.float32).mean(axis=0)
  means = [
    cell.mean((0, 1))
    for row in np.array_split(last - first, cells, axis=0)
    for cell in np.array_split(row, cells, axis=1)
    if cell.size
  ]
  return float(np.sqrt(np.mean(np.square(means))))


def sharpness(
  frames: UInt8[np.ndarray, 'N H W 3'],
  mask: Bool[np.ndarray, 'H W'] | None = None,
) -> float:
  """Variance of the luma's Laplacian, mean over frames; a ratio tells most.

  Pech-Pacheco et al. 2000. Blur lowers it, and so does a lost texture; noise
  and ringing raise it.
  """
  luma = frames.astype(np.float32) @ LUMA
  inner = luma[:, 1:-1, 1:-1]
  laplacian = (
    luma[:, :-2, 1:-1]
    + luma[:, 2:, 1:-1]
    + luma[:, 1:-1, :-2]
    + luma[:, 1:-1, 2:]
    - 4 * inner
  )
  if mask is None:
    return float(laplacian.var(axis=(1, 2)).mean())
  return float(laplacian[:, mask[1:-1, 1:-1]].var(axis=1).mean())


def seam(
  frames: UInt8[np.ndarray, 'N H W 3'], first: int, reach: int = 12
) -> float:
  """Jump into frame `first` over the median jump nearby; 1: no seam to see.

  Args:
    frames: a clip that was continued at frame `first`.
    first: index of the first frame made by the continuation, at least 1.
    reach: number of frame pairs on either side to compare with.

  Raises:
    ValueError: `first` has no frame before it or nothing to compare with.
  """
  if not 0 < first < len(frames) or len(frames) < 3:
    raise ValueError(f'no seam at frame {first} of {len(frames)}')
  start = max(first - 1 - reach, 0)
  near = frames[start : first + reach + 1].astype(np.float32)
  jumps = np.abs(np.diff(near, axis=0)).mean((1, 2, 3))
  at = first - 1 - start
  return float(jumps[at] / max(np.median(np.delete(jumps, at)), 1e-6))


def _check_pair(frames: np.ndarray, reference: np.ndarray) -> None:
  if frames.shape != reference.shape:
    raise ValueError(
      f'frames of shapes {frames.shape} and {reference.shape} cannot be compared'
    )
