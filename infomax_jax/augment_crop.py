"""Where the two views look: crops and shifts, and the one crop of evaluation.

All take and give 8-bit RGB PIL images.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

_TRIES = 10


class Box(NamedTuple):
  """A crop in pixels of the image."""

  left: int
  top: int
  width: int
  height: int


def draw_box(
  rng: np.random.Generator,
  width: int,
  height: int,
  scale: tuple[float, float],
  ratio: tuple[float, float],
  aspect: Literal['log', 'uniform'] = 'log',
) -> Box:
  """A random crop by area and aspect ratio, as torchvision draws it.

  Args:
    rng: the same state gives the same box.
    width: of the image, in pixels.
    height: of the image, in pixels.
    scale: least and largest share of the image's area.
    ratio: least and largest width over height.
    aspect: 'log' draws the ratio log-uniformly (torchvision from 0.3 on),
      'uniform' draws it uniformly and turns half of the boxes (0.2).

  Returns:
    A box inside the image. After ten that do not fit: the middle of the image,
    cut to the nearest allowed ratio ('log'), or its middle square ('uniform').
  """
  for _ in range(_TRIES):
    area = width * height * rng.uniform(*scale)
    if aspect == 'log':
      shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    else:
      shape = rng.uniform(*ratio)
    w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
    if aspect == 'uniform' and rng.random() < 0.5:
      w, h = h, w
    if 0 < w <= width and 0 < h <= height:
      left = int(rng.integers(0, width - w + 1))
      top = int(rng.integers(0, height - h + 1))
      return Box(left, top, w, h)
  if aspect == 'uniform':
    w = h = min(width, height)
  else:
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
  return Box((width - w) // 2, (height - h) // 2, w, h)


def resized_crop(image: Image.Image, box: Box, size: int) -> Image.Image:
  """The box, bicubic with antialiasing, as size x size pixels.

  Cut out first: pixels outside of the box must not weigh on its edges.
  """
  left, top, width, height = box
  cut = image.crop((left, top, left + width, top + height))
  return cut.resize((size, size), Image.Resampling.BICUBIC)


def translate(image: Image.Image, dx: int, dy: int) -> Image.Image:
  """Moves the picture right by dx and down by dy; its reflection fills up."""
  pixels = np.asarray(image)
  rows, columns = _reflected(image.height, dy), _reflected(image.width, dx)
  return Image.fromarray(pixels.take(rows, 0).take(columns, 1))


def _reflected(length, move):
  """Where each of `length` places comes from, mirrored at either end."""
  source = np.abs(np.arange(length) - move)
  return length - 1 - np.abs(length - 1 - source)


def centre(image: Image.Image, resize: int, size: int) -> Image.Image:
  """The shorter side to `resize` pixels, bicubic; then the middle square."""
  width, height = image.size
  # Truncated and rounded to even as in torchvision's Resize and CenterCrop.
  if width <= height:
    new = (resize, int(resize * height / width))
  else:
    new = (int(resize * width / height), resize)
  image = image.resize(new, Image.Resampling.BICUBIC)
  left, top = (round((n - size) / 2) for n in new)
  return image.crop((left, top, left + size, top + size))
