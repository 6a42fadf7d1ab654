"""The picture of `launch.segment`."""

import colorsys

from jaxtyping import Float, UInt8
import numpy as np
from PIL import Image

TILE, GAP = 112, 4  # pixels


def draw(
  images: UInt8[np.ndarray, 'N Y X 3'], maps: Float[np.ndarray, 'M R R k']
) -> Image.Image:
  """A row for each image: itself, its segments, and every component's map.

  A segment has the colour of its component, shaded by the image; maps
  go from black to white between the least and the most sure of an image's.
  """
  maps = maps[: len(images)]
  colours = palette(maps.shape[-1])
  rows = [_row(*pair, colours) for pair in zip(images, maps, strict=True)]
  wide = rows[0].shape[1]
  line = np.full((GAP, wide, 3), 255, np.uint8)
  parts = [part for row in rows for part in (row, line)][:-1]
  return Image.fromarray(np.concatenate(parts))


def palette(count: int) -> Float[np.ndarray, 'k 3']:
  """As many bright colours, evenly around the wheel, in [0, 1]."""
  return np.array(
    [colorsys.hsv_to_rgb(i / count, 0.75, 1.0) for i in range(count)]
  )


def _row(image, maps, colours):
  picture = _resize(image, Image.Resampling.BICUBIC)
  # Without smoothing: what there is are seven positions a side.
  segments = np.uint8(255 * colours[maps.argmax(-1)])
  segments = _resize(segments, Image.Resampling.NEAREST)
  grey = picture.mean(-1, keepdims=True)
  mixed = np.uint8(0.55 * segments + 0.45 * grey)
  tiles = [picture, mixed]
  bright = 255 * (maps - maps.min()) / max(np.ptp(maps), 1e-6)
  for j in range(maps.shape[-1]):
    shown = np.uint8(bright[..., j : j + 1].repeat(3, -1))
    tiles.append(_resize(shown, Image.Resampling.NEAREST))
  line = np.full((TILE, GAP, 3), 255, np.uint8)
  parts = [part for tile in tiles for part in (tile, line)][:-1]
  return np.concatenate(parts, 1)


def _resize(pixels, resampling):
  return np.asarray(Image.fromarray(pixels).resize((TILE, TILE), resampling))
