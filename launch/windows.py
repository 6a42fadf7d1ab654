"""Where the windows of a video lie, and what is remembered between them."""

from jaxtyping import Float
import numpy as np

from mirage_jax.audio import RATE, TOKEN_RATE


def num_frames(num_samples: int) -> int:
  """Video frames that so many samples at 16 kHz last, the last one begun."""
  return -(-num_samples * TOKEN_RATE // RATE)


def window_starts(num_chunks: int, size: int, overlap: int = 0) -> list[int]:
  """First chunks of windows of `size` that cover so many; no window ends late.

  A model has hardly seen a window of which half is the silence after the end.

  Args:
    num_chunks: of the video.
    size: chunks of a window.
    overlap: chunks that each one shares with the one before, at least; less
      than `size`.
  """
  last = max(num_chunks - size, 0)
  return [*range(0, last, size - overlap), last]


def overlapping(
  count: int, size: int, overlap: int
) -> list[tuple[int, int, int]]:
  """Stretches of `size` that cover so many frames; none ends late.

  Returns:
    For each its first frame, and the first and the end of those that are taken
    from it: joints lie in the middle of what two share.
  """
  last = max(count - size, 0)
  starts = [*range(0, last, size - overlap), last]
  joints = [
    (before + size + after) // 2
    for before, after in zip(starts, starts[1:], strict=False)
  ]
  return list(zip(starts, [0, *joints], [*joints, count], strict=True))


class Recent:
  """The last latents of a video that grows: its length costs no memory."""

  def __init__(self, size: int):
    self._size, self._end, self._kept = size, 0, None

  def add(self, latents: Float[np.ndarray, 'F Y X C']) -> None:
    """Goes on with these; of all so far, the last `size` are kept."""
    self._end += len(latents)
    parts = [latents] if self._kept is None else [self._kept, latents]
    self._kept = np.concatenate(parts)[-self._size :]

  def split(self, at: int) -> tuple[np.ndarray | None, np.ndarray | tuple]:
    """Those kept from before number `at`, [F Y X C], and those from it on."""
    if self._kept is None:
      return None, ()
    before = at - self._end + len(self._kept)
    return self._kept[:before], self._kept[before:]
