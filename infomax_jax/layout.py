"""The order of an encoder's layers and the size of the map after each.

The three layouts of the authors' code (`model.py`), told apart by their stem
and carried over to other image sizes: after the stem, 4x4 convolutions of
stride 2 and at the end, on 14 or 15 rows, one of 2x2, until 7 rows are left;
each doubles the channels. From there 3x3 convolutions give 5, 3 and 1 rows.
"""

import itertools
from typing import Literal, NamedTuple

Stem = Literal['residual', 'plain', 'strided']
LARGEST = 1024  # rows of an image; how far a message looks for sizes that fit


class Layer(NamedTuple):
  """One entry of an encoder, without padding unless it says so.

  Attributes:
    kind: 'conv' (bias and ReLU), 'residual' (one residual layer), 'block' (the
      same, then n_depth - 1 residual layers of 1x1), 'norm' (only with use_bn)
      or 'output' (the norm of r1).
    inputs: Channels that come in.
    features: Channels that go out.
    width: Rows and columns of the kernel.
    stride: Rows and columns from one window to the next.
    pad: Rows and columns of reflection added on each side.
    size: Rows and columns of the map that goes out.
  """

  kind: Literal['conv', 'residual', 'block', 'norm', 'output']
  inputs: int
  features: int
  width: int
  stride: int
  pad: int
  size: int


def usual_stem(image_size: int) -> Stem:
  """The stem that the authors use for images of about that size."""
  if image_size < 64:
    return 'residual'
  return 'plain' if image_size < 128 else 'strided'


def sizes(image_size: int, stem: Stem) -> list[int]:
  """Rows after the stem and after each halving; the last is 7 if it fits."""
  rows = image_size - 2
  if stem == 'strided':
    rows = (image_size - 1) // 2 - 1
  out = [rows]
  while out[-1] > 7:
    width = 2 if out[-1] < 16 else 4
    out.append((out[-1] - width) // 2 + 1)
  return out


def layers(
  image_size: int, stem: Stem, channels: int, ndf: int, n_rkhs: int
) -> tuple[Layer, ...]:
  """Every layer from the image to r1, in the order of `layer_list` there.

  Raises:
    ValueError: No 7x7, 5x5 and 1x1 maps come out of images of this size.
  """
  rows = sizes(image_size, stem)
  if rows[-1] != 7:
    raise ValueError(_misfit(image_size, stem, rows))
  out = []

  def add(kind, features, width, stride, size, pad=0):
    inputs = out[-1].features if out else channels
    out.append(Layer(kind, inputs, features, width, stride, pad, size))

  if stem == 'strided':
    add('conv', ndf, 5, 2, rows[0] + 2, pad=2)
  add('conv', ndf, 3, 1, rows[0])
  if stem == 'residual':
    add('residual', ndf, 1, 1, rows[0])
  for before, after in itertools.pairwise(rows):
    add('block', 2 * out[-1].features, 2 if before < 16 else 4, 2, after)
  features = out[-1].features
  add('norm', features, 1, 1, 7)
  add('block', features, 3, 1, 5)
  add('block', features, 3, 1, 3)
  add('residual', n_rkhs, 3, 1, 1)
  add('output', n_rkhs, 1, 1, 1)
  return tuple(out)


def taps(entries: tuple[Layer, ...]) -> dict[int, int]:
  """Rows of a map -> index of the last layer that gives a map of that size."""
  return {entry.size: i for i, entry in enumerate(entries)}


def _misfit(image_size, stem, rows):
  fits = [n for n in range(9, LARGEST) if sizes(n, stem)[-1] == 7]
  near = sorted(sorted(fits, key=lambda n: abs(n - image_size))[:2])
  steps = ', '.join(map(str, rows))
  return (
    f'image_size {image_size} has no 7x7 map: the {stem!r} stem and halvings '
    f'give {steps} rows. The nearest sizes that do are {near[0]} and {near[1]}.'
  )
