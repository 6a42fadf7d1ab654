"""What curves say: lips against a reference, blinks, lip closures.

Curves are one number per video frame (mouth or eye opening, from landmarks
of any source). Nothing here knows where they come from. Each measure has its
control beside it: a number without the value chance would give says little.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
import numpy as np

BILABIALS = frozenset('pbm')
# Names of silence; symbols without a letter (piper's '_', '^', '.') count too.
SILENCES = frozenset(['sil', 'pau', 'sp', 'spn', '<eps>'])


def pearson(a: Float[np.ndarray, 'N'], b: Float[np.ndarray, 'N']) -> float:
  """Pearson's correlation in [-1, 1]; 0 when either curve is constant.

  A frozen mouth follows nothing, so it must score as unrelated, not as NaN.

  Raises:
    ValueError: the curves differ in length or have fewer than 2 points.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape or a.ndim != 1 or a.size < 2:
    raise ValueError(
      f'curves of shapes {a.shape} and {b.shape} cannot be paired'
    )
  a, b = a - a.mean(), b - b.mean()
  scale = np.sqrt(np.sum(a**2) * np.sum(b**2))
  tiny = 1e-12 * a.size
  return float(np.sum(a * b) / scale) if scale > tiny else 0.0


def lag_profile(
  curve: Float[np.ndarray, 'N'], ref: Float[np.ndarray, 'N'], max_lag: int = 10
) -> Float[np.ndarray, 'L']:
  """Correlation at lags -max_lag..max_lag frames, each over what overlaps.

  At a positive lag the curve is taken to be late: `curve[n + lag]` is paired
  with `ref[n]`. Averaged over clips, its argmax is a dataset's offset, far
  steadier than the mean of each clip's own argmax.
  """
  if len(curve) < max_lag + 2:
    raise ValueError(f'{len(curve)} frames are too few for lags of {max_lag}')
  profile = []
  for lag in range(-max_lag, max_lag + 1):
    end = len(curve) - abs(lag)
    late, early = max(lag, 0), max(-lag, 0)
    pair = curve[late : late + end], ref[early : early + end]
    profile.append(pearson(*pair))
  return np.array(profile)


def best_lag(
  curve: Float[np.ndarray, 'N'], ref: Float[np.ndarray, 'N'], max_lag: int = 10
) -> tuple[int, float]:
  """The lag in frames (positive: `curve` is late) that correlates best.

  Returns the lag and the correlation there.
  """
  profile = lag_profile(curve, ref, max_lag)
  best = int(np.argmax(profile))
  return best - max_lag, float(profile[best])


def derangement(count: int, seed: int = 0) -> Int[np.ndarray, 'count']:
  """A permutation of 0..count-1 that leaves nothing in place (one cycle).

  Raises:
    ValueError: fewer than 2 things cannot be deranged.
  """
  if count < 2:
    raise ValueError(f'a derangement needs at least 2 items, not {count}')
  order = np.random.default_rng(seed).permutation(count)
  partner = np.empty(count, np.int64)
  partner[order] = np.roll(order, 1)
  return partner


def blinks(
  eye: Float[np.ndarray, 'N'],
  fps: float,
  shut: float = 0.6,
  open_again: float = 0.75,
  longest: float = 0.8,
) -> list[tuple[int, int]]:
  """Blinks as frame ranges [start, end).

  The open eye's level is the 80th percentile within 1 s on either side, so
  that gaze, squinting and the size of the eye cancel. A blink begins when the
  curve falls under `shut` of that level and ends once it is above
  `open_again`; the hysteresis keeps one blink one. Eyes shut for more than
  `longest` seconds are not a blink.

  Args:
    eye: eye opening, any positive unit.
    fps: frames per second.
    shut, open_again: fractions of the open level.
    longest: seconds.
  """
  half = max(round(fps), 1)
  level = np.array(
    [
      np.percentile(eye[max(n - half, 0) : n + half + 1], 80)
      for n in range(len(eye))
    ]
  )
  ratio = np.asarray(eye) / np.maximum(level, 1e-9)
  found, start = [], None
  for n, value in enumerate(ratio):
    if start is None and value < shut:
      start = n
    elif start is not None and value > open_again:
      found.append((start, n))
      start = None
  if start is not None:
    found.append((start, len(ratio)))
  return [(a, b) for a, b in found if b - a <= longest * fps]


def blink_rate(eye: Float[np.ndarray, 'N'], fps: float) -> float:
  """Blinks per minute; people talking make 10 to 40 (Bentivoglio 1997: 26)."""
  return 60.0 * fps * len(blinks(eye, fps)) / len(eye)


class Closures(NamedTuple):
  """Lip closures at /p b m/.

  Attributes:
    hits: for each bilabial, whether the lips closed.
    chance: expected rate had the same windows lain anywhere in the speech.
  """

  hits: Bool[np.ndarray, 'P']
  chance: float

  @property
  def rate(self) -> float:
    """Hits over bilabials; NaN when there are none."""
    return float(np.mean(self.hits)) if len(self.hits) else float('nan')


def closure_hits(
  opening: Float[np.ndarray, 'N'],
  phones: Sequence[tuple[str, float, float]],
  fps: float,
  tolerance: float = 0.04,
  closed: float = 0.2,
) -> Closures:
  """Do the lips close at each /p b m/?

  A bilabial is hit when the smallest opening among the frames stamped within
  [start - tolerance, end + tolerance] is at most `closed` of the way from the
  clip's low (5th percentile) to its high (95th) while it speaks. Speech runs
  from the first to the last phone that is no silence; without that bound the
  rest before and after would make closing look easy.

  The control is exact, not drawn: each window is slid over every frame of the
  speech and the share of places that would count as a hit is averaged.

  Args:
    opening: mouth opening per frame, any unit.
    phones: (symbol, start, end) in seconds; 'p', 'b', 'm' in any case.
    fps: frames per second; frame n is stamped n / fps.
    tolerance: seconds allowed before and after the phone.
    closed: fraction of the clip's own range.

  Raises:
    ValueError: no phone but silence falls within the curve.
  """
  opening = np.asarray(opening, np.float64)
  spoken = [
    p
    for p in phones
    if p[0].lower() not in SILENCES and any(c.isalpha() for c in p[0])
  ]
  first = min((start for _, start, _ in spoken), default=0.0)
  last = max((end for _, _, end in spoken), default=0.0)
  begin = max(int(np.floor(first * fps)), 0)
  finish = min(int(np.ceil(last * fps)), len(opening))
  if finish - begin < 2:
    raise ValueError('no phone but silence within the curve')
  low, high = np.percentile(opening[begin:finish], [5, 95])
  is_closed = opening <= low + closed * (high - low)
  hits, chances = [], []
  for symbol, start, end in spoken:
    a = max(int(np.ceil((start - tolerance) * fps - 1e-6)), 0)
    b = min(int((end + tolerance) * fps + 1e-6) + 1, len(opening))
    if symbol.lower() not in BILABIALS or a >= b:
      continue
    hits.append(is_closed[a:b].any())
    # A window longer than the speech has one place: all of it.
    width = min(b - a, finish - begin)
    places = np.lib.stride_tricks.sliding_window_view(
      is_closed[begin:finish], width
    )
    chances.append(places.any(axis=-1).mean())
  chance = float(np.mean(chances)) if chances else float('nan')
  return Closures(np.array(hits, bool), chance)
