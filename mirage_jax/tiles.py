"""The VAE on frames too large for a device: in tiles that overlap and blend.

Its group norms see whole frames, so what tiles give is not the whole's, unless
one tile covers it: then it is, to the bit. Tiles are cut and blended as diffusers'
`enable_tiling` does it. Of 720p one activation of Mochi's decoder,
25 frames of 128 channels in float32, is 11.8 GB; of a tile of 256 by 256, 0.84.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float
import numpy as np

from mirage_jax.vae import Vae


@dataclasses.dataclass(frozen=True)
class Tiling:
  """How frames are cut; the defaults are diffusers'.

  Attributes:
    size: Pixels of a tile's side.
    stride: Pixels from one tile to the next; what they share is blended.
  """

  size: int = 256
  stride: int = 192

  def check(self, factor: int) -> None:
    """Raises ValueError unless both are whole latents of `factor` pixels."""
    if self.size % factor or self.stride % factor:
      raise ValueError(
        f'tiles of {self.size} every {self.stride} pixels must be multiples of '
        f'the {factor} pixels of a latent.'
      )
    if not 0 < self.stride <= self.size:
      raise ValueError(
        f'tiles of {self.size} pixels cannot lie every {self.stride}.'
      )


def encode(
  vae: Vae, params: Any, frames: Float[Array, 'B N Yp Xp 3'], tiling: Tiling
) -> Float[np.ndarray, 'B F Y X C']:
  """Posterior means of one chunk, as `Vae.encode` gives them.

  Raises:
    ValueError: The tiles are no whole latents.
  """
  factor = vae.cfg.space_factor
  tiling.check(factor)
  run = jax.jit(lambda x: vae.apply({'params': params}, x, method='encode')[0])
  inner = (tiling.size, tiling.stride)
  outer = (tiling.size // factor, tiling.stride // factor)
  return tiled(run, frames, inner, outer)


def decode(
  vae: Vae, params: Any, latents: Float[Array, 'B F Y X C'], tiling: Tiling
) -> Float[np.ndarray, 'B N Yp Xp 3']:
  """Frames of one chunk, as `Vae.decode` gives them.

  Raises:
    ValueError: The tiles are no whole latents.
  """
  factor = vae.cfg.space_factor
  tiling.check(factor)
  run = jax.jit(lambda z: vae.apply({'params': params}, z, method='decode'))
  inner = (tiling.size // factor, tiling.stride // factor)
  return tiled(run, latents, inner, (tiling.size, tiling.stride))


def tiled(
  run: Callable[[Array], Array],
  x: Float[Array, 'B F Y X C'],
  inner: tuple[int, int],
  outer: tuple[int, int],
) -> Float[np.ndarray, 'B N _ _ K']:
  """`run` on tiles of `x`, joined.

  Args:
    run: [B F y x C] -> [B N y' x' K]; sides change by outer / inner.
    x: What is cut.
    inner: Side of a tile and its stride, in places of `x`.
    outer: The same in places of the result.
  """
  size, stride = inner
  height, width = x.shape[2:4]
  if height <= size and width <= size:
    return np.asarray(run(x))
  above, rows = [], []
  for i in range(0, height, stride):
    row = []
    for j in range(0, width, stride):
      tile = np.array(run(x[:, :, i : i + size, j : j + size]))
      if above:
        _blend(above[j // stride], tile, outer[0] - outer[1], 2)
      if row:
        _blend(row[-1], tile, outer[0] - outer[1], 3)
      row.append(tile)
    kept = [tile[:, :, : outer[1], : outer[1]] for tile in row]
    rows.append(np.concatenate(kept, axis=3))
    above = row
  return np.concatenate(rows, axis=2)


def _blend(before, tile, extent, axis):
  """Passes from `before`'s end to `tile`, which changes, over `extent` places."""
  extent = min(before.shape[axis], tile.shape[axis], extent)
  if not extent:
    return
  shape = [1] * tile.ndim
  shape[axis] = extent
  part = (np.arange(extent, dtype=tile.dtype) / extent).reshape(shape)
  end = [slice(None)] * tile.ndim
  end[axis] = slice(before.shape[axis] - extent, None)
  begin = [slice(None)] * tile.ndim
  begin[axis] = slice(extent)
  begin, end = tuple(begin), tuple(end)
  tile[begin] = before[end] * (1 - part) + tile[begin] * part
