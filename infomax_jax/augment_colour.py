"""Changes of colour as torchvision makes them on PIL images, bit for bit.

All take and give 8-bit RGB PIL images. A factor of 1 and a shift of 0 change
nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image


class Jitter(NamedTuple):
  """One drawn colour change: factors, a shift of hue, and their order."""

  brightness: float
  contrast: float
  saturation: float
  hue: float  # Turns of the colour wheel.
  order: tuple[int, ...] = (0, 1, 2, 3)  # Which field comes first, second, ...


def draw_jitter(
  rng: np.random.Generator, strength: float, hue: float
) -> Jitter:
  """Factors from U(1 - strength, 1 + strength), hue from U(-hue, hue)."""
  factors = rng.uniform(1 - strength, 1 + strength, 3).tolist()
  order = tuple(rng.permutation(4).tolist())
  return Jitter(*factors, rng.uniform(-hue, hue), order)


def apply_jitter(image: Image.Image, jitter: Jitter) -> Image.Image:
  """The four changes one after the other, in the drawn order."""
  for field in jitter.order:
    image = _CHANGES[field](image, jitter[field])
  return image


def brightness(image: Image.Image, factor: float) -> Image.Image:
  """Away from (or beyond) black."""
  return Image.blend(Image.new('RGB', image.size), image, factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
  """Away from the image's mean luma, rounded."""
  mean = int(np.asarray(image.convert('L')).mean() + 0.5)
  flat = Image.new('RGB', image.size, (mean, mean, mean))
  return Image.blend(flat, image, factor)


def saturation(image: Image.Image, factor: float) -> Image.Image:
  """Away from the grey version of the image."""
  return Image.blend(grey(image), image, factor)


def hue(image: Image.Image, shift: float) -> Image.Image:
  """Turns the colour wheel, in PIL's 8-bit HSV.

  Args:
    image: 8-bit RGB.
    shift: turns in [-0.5, 0.5]; whole steps of 1 / 255 count, towards zero.
  """
  # 256 steps on a wheel that torchvision measures in 255ths.
  steps = int(shift * 255) % 256
  pixels = np.array(image.convert('HSV'))
  pixels[..., 0] += np.uint8(steps)  # Wraps around.
  return Image.frombytes('HSV', image.size, pixels.tobytes()).convert('RGB')


def grey(image: Image.Image) -> Image.Image:
  """The luma in all three channels."""
  return image.convert('L').convert('RGB')


_CHANGES: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
  brightness,
  contrast,
  saturation,
  hue,
)
