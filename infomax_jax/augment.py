"""Two views of one image, as AMDIM's published code draws them.

"Learning Representations by Maximizing Mutual Information Across Views"
(arXiv 1906.00910) and its code's datasets.py. The flip is drawn once for both
views; everything else is drawn for each: a crop or a shift, a change of colour,
grey. Views are uint8: that is what every one of these operations gives, it is
a quarter of the bytes to carry to the device, and `normalize` there loses
nothing.
"""

import dataclasses
from typing import Literal

from jaxtyping import Array, Float, UInt8
import numpy as np
from PIL import Image

from infomax_jax import augment_colour, augment_crop, augment_policy

PARTS = ('flip', 'geometry', 'jitter', 'grey')


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How views of one data set are made.

  Attributes:
    size: Rows and columns of a view.
    geometry: 'translate' moves a size x size image, 'crop' cuts from an image
      of any size.
    mean: Of the data set's colours, for `normalize`; 1 is white.
    std: Likewise.
    hue: Largest turn of the colour wheel.
    resize: Shorter side before the centre crop of evaluation; 0 takes the image
      as it is.
    flip: Probability of the flip that both views share.
    geometric: Probability of a random crop or shift; without one a view looks
      as in evaluation.
    jitter: Probability of a change of colour.
    grey: Probability of losing colour.
    strength: Largest change of brightness, contrast and saturation.
    shift: Pixels of the largest shift of 'translate'.
    scale: Least and largest share of the area for 'crop'.
    ratio: Least and largest width over height for 'crop'.
    aspect: Law of that ratio, see `augment_crop.draw_box`.
    strong: Draw a sub-policy of Fast AutoAugment first, for each view.
  """

  size: int
  geometry: Literal['translate', 'crop']
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  hue: float
  resize: int
  flip: float = 0.5
  geometric: float = 1.0
  jitter: float = 0.8
  grey: float = 0.25
  strength: float = 0.4
  shift: int = 4
  scale: tuple[float, float] = (0.3, 1.0)
  ratio: tuple[float, float] = (0.7, 1.4)
  aspect: Literal['log', 'uniform'] = 'log'
  strong: bool = False


# CIFAR-10 and -100, STL-10, ImageNet and Places: sizes, probabilities and
# constants of the published code.
RECIPES = {
  'cifar': Recipe(
    size=32,
    geometry='translate',
    mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
    std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
    hue=0.2,
    resize=0,
    geometric=0.8,
  ),
  'stl10': Recipe(
    size=64,
    geometry='crop',
    mean=(0.43, 0.42, 0.39),
    std=(0.27, 0.26, 0.27),
    hue=0.2,
    resize=70,
  ),
  'imagenet': Recipe(
    size=128,
    geometry='crop',
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    hue=0.1,
    resize=146,
  ),
}


def recipe(
  name: str,
  size: int = 0,
  strong: bool = False,
  aspect: Literal['log', 'uniform'] = 'log',
  without: tuple[str, ...] = (),
  version: Literal[1, 2] = 2,
) -> Recipe:
  """The published recipe of a data set, changed where told.

  Args:
    name: 'cifar', 'stl10' or 'imagenet'.
    size: rows and columns of a view, 0 for the published ones. The resize of
      evaluation grows with it.
    strong: add Fast AutoAugment's ImageNet policy.
    aspect: law of the crop's aspect ratio.
    without: of `PARTS`, what to leave out (the paper's ablation).
    version: of the paper. Neither prints these constants; the code of its first
      had less grey, milder crops and more hue on ImageNet.

  Raises:
    ValueError: an unknown name or version, or a part that no recipe has.
  """
  if name not in RECIPES:
    raise ValueError(f'no recipe {name!r}; there are: {", ".join(RECIPES)}')
  if wrong := sorted(set(without) - set(PARTS)):
    raise ValueError(f'views have no part {wrong[0]!r}; they have: {PARTS}')
  if aspect not in ('log', 'uniform'):
    raise ValueError(f"aspect must be 'log' or 'uniform', got {aspect!r}")
  if version not in (1, 2):
    raise ValueError(f'the paper has versions 1 and 2, not {version!r}')
  base = RECIPES[name]
  if version == 1:
    base = dataclasses.replace(base, grey=0.2, scale=(0.4, 1.0), hue=0.2)
  changes = {'strong': strong, 'aspect': aspect}
  if size:
    changes |= dict(size=size, resize=round(base.resize * size / base.size))
  fields = {'geometry': 'geometric'}
  changes |= {fields.get(part, part): 0.0 for part in without}
  return dataclasses.replace(base, **changes)


def views(
  image: UInt8[np.ndarray, 'Y X 3'], rng: np.random.Generator, recipe: Recipe
) -> tuple[UInt8[np.ndarray, 'S S 3'], UInt8[np.ndarray, 'S S 3']]:
  """Two views of one image; the same state of `rng` gives the same."""
  picture = Image.fromarray(image)
  if rng.random() < recipe.flip:
    picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  return _view(picture, rng, recipe), _view(picture, rng, recipe)


def _view(image, rng, recipe):
  if recipe.strong:
    # On the whole image, as Fast AutoAugment's own pipeline has it. How AMDIM's
    # authors joined the two is not published.
    image = augment_policy.apply(image, rng)
  if rng.random() < recipe.geometric:
    image = _look(image, rng, recipe)
  elif recipe.resize:
    image = augment_crop.centre(image, recipe.resize, recipe.size)
  if rng.random() < recipe.jitter:
    jitter = augment_colour.draw_jitter(rng, recipe.strength, recipe.hue)
    image = augment_colour.apply_jitter(image, jitter)
  if rng.random() < recipe.grey:
    image = augment_colour.grey(image)
  return np.asarray(image)


def _look(image, rng, recipe):
  if recipe.geometry == 'translate':
    dx, dy = rng.integers(-recipe.shift, recipe.shift + 1, 2).tolist()
    return augment_crop.translate(image, dx, dy)
  box = augment_crop.draw_box(
    rng, *image.size, recipe.scale, recipe.ratio, recipe.aspect
  )
  return augment_crop.resized_crop(image, box, recipe.size)


def plain(
  image: UInt8[np.ndarray, 'Y X 3'], recipe: Recipe
) -> UInt8[np.ndarray, 'S S 3']:
  """The one view of evaluation: the image itself, or its centre crop."""
  if not recipe.resize:
    return image
  picture = Image.fromarray(image)
  return np.asarray(augment_crop.centre(picture, recipe.resize, recipe.size))


def normalize(
  images: UInt8[Array, '*B Y X 3'], recipe: Recipe
) -> Float[Array, '*B Y X 3']:
  """float32 in units of the data set's spread; numpy and JAX arrays alike."""
  shape = (1,) * (images.ndim - 1) + (3,)
  mean = np.asarray(recipe.mean, np.float32).reshape(shape)
  std = np.asarray(recipe.std, np.float32).reshape(shape)
  return (images.astype(np.float32) / np.float32(255) - mean) / std
