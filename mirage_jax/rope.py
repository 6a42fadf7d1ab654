"""Learned 3-D rotary positions on one clock for all streams.

A stream has one parameter of frequencies, (3, heads, D/2), shared by all
blocks: the angle of a pair is the sum over (time, row, column) of position
times frequency (Mochi 1, after RoPE-ViT, Heo et al. 2024). A pair is (d,
d + D/2), not Mochi's (2d, 2d + 1): the same function after a permutation of the
query and key channels, and contiguous in memory.

Time is in latents, and a chunk of 25 frames has 5 latents: the first holds one
frame, the others six.
"""

from collections.abc import Sequence

import flax.struct
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

CHUNK_FRAMES = 25
CHUNK_LATENTS = 5

# Fastest and slowest turn, in radians per latent (time) or per unit (space).
# 2 pi per latent is one radian per video frame, enough to tell the frames
# inside a latent apart. The slowest spans some ten seconds.
TIME_RANGE = (2 * np.pi, 2 * np.pi / 100)
SPACE_RANGE = (1.0, 0.1)  # RoPE-ViT's, for neighbours one unit apart


def frame_time(frames: np.ndarray) -> np.ndarray:
  """Latent time of video frames: where in the chunk's latents a frame lies.

  Frame r of a chunk lies in latent 0 if r = 0, else in latent 1 + (r - 1) // 6,
  whose middle frame gets the latent's own integer time.

  Args:
    frames: Frame numbers, any shape; may be negative.

  Returns:
    float32 times of the same shape, in latents.
  """
  chunk, r = np.divmod(np.asarray(frames), CHUNK_FRAMES)
  inside = np.where(r == 0, 0.0, (r + 2.5) / 6)
  return (CHUNK_LATENTS * chunk + inside).astype(np.float32)


def grid_positions(
  time: Float[Array, 'B F'], rows: int, columns: int, area: float
) -> Float[Array, 'B T 3']:
  """Positions of the tokens of F latent frames of rows x columns patches.

  Space is centred at 0 and scaled so that rows * columns becomes `area`, as in
  Mochi: a model sees the same extent at any resolution.
  """
  scale = (area / (rows * columns)) ** 0.5
  y = (jnp.arange(rows, dtype=jnp.float32) - (rows - 1) / 2) * scale
  x = (jnp.arange(columns, dtype=jnp.float32) - (columns - 1) / 2) * scale
  batch, num_frames = time.shape
  shape = (batch, num_frames, rows, columns)
  axes = (
    time[:, :, None, None],
    y[None, None, :, None],
    x[None, None, None, :],
  )
  grid = jnp.stack([jnp.broadcast_to(axis, shape) for axis in axes], -1)
  return grid.reshape(batch, -1, 3)


def line_positions(time: Float[Array, 'B T']) -> Float[Array, 'B T 3']:
  """Positions of tokens that have a time and no place (row = column = 0)."""
  return jnp.stack([time, jnp.zeros_like(time), jnp.zeros_like(time)], -1)


def init_frequencies(
  key: jax.Array, shape: Sequence[int], *, space: bool
) -> Float[Array, '3 H P']:
  """Frequencies to train from scratch; Mochi's own init is unpublished.

  The first third of the pairs turn with time alone, log-spaced, and are the
  same in every stream, so that video and audio tokens agree on time at once.
  The others turn in the image plane, log-spaced, each head along its own random
  pair of axes (RoPE-ViT's mixed init), or not at all without `space`.
  """
  _, heads, pairs = shape
  num_time = -(-pairs // 3)
  time = np.geomspace(*TIME_RANGE, num_time)
  frequencies = jnp.zeros(tuple(shape), jnp.float32)
  frequencies = frequencies.at[0, :, :num_time].set(time[None, :])
  if not space:
    return frequencies
  num_space = pairs - num_time
  size = np.geomspace(*SPACE_RANGE, -(-num_space // 2))
  size = np.repeat(size, 2)[None, :num_space]
  # Pairs alternate between a head's first axis and the one at right angles.
  turn = np.arange(num_space)[None, :] % 2 * (np.pi / 2)
  angle = jax.random.uniform(key, (heads, 1), maxval=2 * np.pi) + turn
  frequencies = frequencies.at[1, :, num_time:].set(size * jnp.sin(angle))
  return frequencies.at[2, :, num_time:].set(size * jnp.cos(angle))


def init_alignment(
  shape: Sequence[int], strength: float
) -> Float[Array, 'H D']:
  """A bias of normalised queries and keys that lets equal times attend.

  Added to both before they turn, it adds strength^2 * sum_p cos(w_p dt) to
  their product, p over the pairs that `init_frequencies` turns with time alone.
  It falls linearly over the heads, to zero in the last.
  """
  heads, size = shape
  falls = np.linspace(strength, 0.0, heads + 1)[:-1]
  bias = np.zeros((heads, size), np.float32)
  bias[:, : -(-(size // 2) // 3)] = falls[:, None]
  return jnp.asarray(bias)


@flax.struct.dataclass
class Tables:
  """Where the pairs of some tokens are turned to.

  Attributes:
    turns: Cosines, then sines, of every angle, float32 [_ H T 2P]. They have no
      gradient: frequencies get theirs where they turn something, so that none of
      every angle is summed up over all blocks.
    positions: Of the tokens [_ T 3], without a gradient, too.
    frequencies: [3 H P].
  """

  turns: jax.Array
  positions: jax.Array
  frequencies: jax.Array

  def after(self, start: int) -> 'Tables':
    """Those of the tokens from `start` on."""
    positions = self.positions[:, start:]
    return self.replace(turns=self.turns[:, :, start:], positions=positions)


def rotary_tables(
  frequencies: Float[Array, '3 H P'], positions: Float[Array, 'B T 3']
) -> Tables:
  """Cosines and sines of every token's angles."""
  # Not a product of matrices: three deep it would waste a matrix unit, and libtpu
  # takes minutes to compile it in float32.
  parts = [
    positions[:, None, :, axis, None] * frequencies[None, axis, :, None]
    for axis in range(3)
  ]
  angles = parts[0] + parts[1] + parts[2]
  turns = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
  stop = jax.lax.stop_gradient
  return Tables(stop(turns), stop(positions), frequencies)


def apply_rotary(
  x: Float[Array, 'B T H D'], tables: Tables
) -> Float[Array, 'B T H D']:
  """Turns the pairs (d, d + D/2) of queries or keys; keeps the dtype."""
  return _turn(x, tables.turns, tables.positions, tables.frequencies)


@jax.custom_vjp
def _turn(x, turns, positions, frequencies):
  return _forward(x, turns, positions, frequencies)[0]


def _forward(x, turns, positions, frequencies):
  del frequencies  # They are in the turns.
  first, second = _turned(x, turns)
  out = jnp.concatenate([first, second], axis=-1).astype(x.dtype)
  return out, (x, turns, positions)


def _backward(saved, gradient):
  x, turns, positions = saved
  first, second = _turned(x, turns)
  ahead, after = jnp.split(gradient.astype(jnp.float32), 2, axis=-1)
  # The way of a point on a circle is at right angles to its place.
  angles = after * first - ahead * second
  dx = jnp.concatenate(_turned(gradient, turns, back=True), axis=-1)
  frequencies = [
    jnp.sum(positions[:, :, axis, None, None] * angles, axis=(0, 1))
    for axis in range(3)
  ]
  return dx.astype(x.dtype), None, None, jnp.stack(frequencies)


_turn.defvjp(_forward, _backward)


def _turned(x, turns, back=False):
  """Both halves, in float32."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = jnp.split(jnp.swapaxes(turns, 1, 2), 2, axis=-1)
  sin = -sin if back else sin
  return [first * cos - second * sin, second * cos + first * sin]


def reference_times(seconds: float, past: int) -> np.ndarray:
  """Latent times of an image `seconds` off the window's start and of a past."""
  image = seconds * CHUNK_LATENTS
  return np.array([image, *range(-past, 0)], np.float32)
