"""The mouth region of face crops, and changes of it for training.

Crops are those of `launch.prepare --stage clips`: a square that holds hair,
face and neck, the same for all frames of a clip.
"""

import functools
from typing import NamedTuple

from jaxtyping import Float, UInt8
import numpy as np

SIZE = 40  # Rows and columns of what the encoder sees.
# Where the mouth is, in sides of the crop.
MIDDLE = (0.73, 0.5)
SIDE = 0.46
GREY = (0.299, 0.587, 0.114)


class Look(NamedTuple):
  """One change of how a clip looks; the defaults change nothing."""

  down: float = 0.0  # Shifts, in sides of the region.
  right: float = 0.0
  zoom: float = 1.0
  turn: float = 0.0  # Radians.
  flip: bool = False
  grey: tuple[float, float, float] = GREY  # Weights of red, green and blue.
  gamma: float = 1.0
  light: tuple[float, float] = (0.0, 0.0)  # Rise over the region, down, right.
  blur: float = 0.0  # Standard deviation in pixels.
  noise: float = 0.0  # Standard deviation; the picture's range is 1.


def draw_look(rng: np.random.Generator) -> Look:
  """Another face in another light, before another camera."""
  return Look(
    down=rng.uniform(-0.12, 0.12),
    right=rng.uniform(-0.12, 0.12),
    zoom=2 ** rng.uniform(-0.3, 0.3),
    turn=rng.uniform(-0.2, 0.2),
    flip=bool(rng.random() < 0.5),
    grey=tuple(rng.dirichlet(np.array(GREY) * 8)),
    gamma=2 ** rng.uniform(-0.8, 0.8),
    light=tuple(rng.uniform(-0.7, 0.7, 2)),
    blur=rng.uniform(0, 1.5) if rng.random() < 0.4 else 0.0,
    noise=rng.uniform(0, 0.04) if rng.random() < 0.5 else 0.0,
  )


def mouth_frames(
  crops: UInt8[np.ndarray, 'N S S 3'],
  look: Look | None = None,
  rng: np.random.Generator | None = None,
) -> Float[np.ndarray, 'N 40 40']:
  """Grey mouth regions without what stays the same through the clip.

  Each pixel has zero mean over time and the whole has unit variance, so that
  skin, beard and lighting leave little behind.

  Args:
    crops: consecutive frames of one face.
    look: changes; None for none.
    rng: draws the noise of a look.
  """
  look = look or Look()
  grey = crops.astype(np.float32) @ np.array(look.grey, np.float32)
  x = _sample(grey, look) / 255
  if look.gamma != 1:
    x = np.maximum(x, 0) ** np.float32(look.gamma)
  if look.light != (0, 0):
    u = np.linspace(-0.5, 0.5, SIZE, dtype=np.float32)
    x *= 1 + look.light[0] * u[:, None] + look.light[1] * u
  if look.blur:
    kernel = _blur(look.blur)
    x = kernel @ x @ kernel.T
  if look.noise:
    x += rng.standard_normal(x.shape, np.float32) * np.float32(look.noise)
  x -= x.mean(0, keepdims=True)
  return x / max(float(x.std()), 0.01)


def _sample(grey, look):
  """Bilinear samples of the region: [N S S] -> [N 40 40]."""
  side = grey.shape[-1]
  u = (np.arange(SIZE) + 0.5) / SIZE - 0.5
  down, right = np.meshgrid(u, -u if look.flip else u, indexing='ij')
  cos, sin = np.cos(look.turn), np.sin(look.turn)
  size = SIDE * side / look.zoom
  rows = size * (cos * down + sin * right + look.down)
  columns = size * (cos * right - sin * down + look.right)
  rows = np.clip(rows + MIDDLE[0] * side - 0.5, 0, side - 1.001)
  columns = np.clip(columns + MIDDLE[1] * side - 0.5, 0, side - 1.001)
  y, x = rows.astype(int), columns.astype(int)
  part_y = (rows - y).ravel().astype(np.float32)
  part_x = (columns - x).ravel().astype(np.float32)
  flat, at = grey.reshape(len(grey), -1), (y * side + x).ravel()
  upper = flat[:, at] * (1 - part_x) + flat[:, at + 1] * part_x
  at = at + side
  lower = flat[:, at] * (1 - part_x) + flat[:, at + 1] * part_x
  mixed = upper * (1 - part_y) + lower * part_y
  return mixed.reshape(-1, SIZE, SIZE)


@functools.lru_cache(1)
def _blur(sigma):
  at = np.arange(SIZE)
  kernel = np.exp(-0.5 * ((at[:, None] - at) / sigma) ** 2)
  return (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)
