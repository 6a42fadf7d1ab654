"""Which images a run is of, and how views of them are made."""

import dataclasses
import functools
import os
from typing import Literal

from infomax_jax import augment, images, prepared, subset


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What images there are, and how views are made of them.

  Attributes:
    train: A folder of class folders, a tar of them (`images.tar`, or
      `images.tar/inside` for one of its folders), or a split of a data set that
      TFDS prepared (`tfds:stl10:train+unlabelled`).
    eval: Likewise, or '' for what `hold_out` keeps back of `train`.
    recipe: How views are made: 'cifar', 'stl10' or 'imagenet' (and Places).
    size: Rows and columns of a view; 0 for the recipe's.
    strong: Add Fast AutoAugment's ImageNet policy to the views.
    aspect: Law of the crop's aspect ratio, see `augment_crop.draw_box`.
    without: Parts of the recipe to leave out, see `augment.PARTS`.
    version: Of the paper, whose code the recipe's constants are from: 1 or 2.
    first: Train on the first so many images of each class by file name; 0 for
      all.
    hold_out: Keep back the last so many of each class; 0 if `eval` is given.
    max_corrupt: Images that cannot be read before a run stops. Each reading
      process counts its own.
    workers: Processes that make views; 0 for threads of the main one. To
      resume a run takes the number it was started with.
    tfds_dir: Where TFDS keeps data sets; '' for its default.
  """

  train: str
  eval: str = ''
  recipe: Literal['cifar', 'stl10', 'imagenet'] = 'cifar'
  size: int = 0
  strong: bool = False
  aspect: Literal['log', 'uniform'] = 'log'
  without: tuple[str, ...] = ()
  version: Literal[1, 2] = 2
  first: int = 0
  hold_out: int = 0
  max_corrupt: int = 100
  workers: int = 0
  tfds_dir: str = ''

  def __post_init__(self):
    if self.eval and self.hold_out:
      raise ValueError(
        f'data.eval={self.eval!r} and data.hold_out={self.hold_out} both name '
        'the images to evaluate on: set one of them'
      )
    for name in ('size', 'first', 'hold_out', 'max_corrupt', 'workers'):
      if getattr(self, name) < 0:
        raise ValueError(f'data.{name} is {getattr(self, name)}, below 0')
    self.build_recipe()

  def build_recipe(self) -> augment.Recipe:
    """The recipe with this config's changes."""
    return augment.recipe(
      self.recipe,
      self.size,
      self.strong,
      self.aspect,
      tuple(self.without),
      self.version,
    )


def open_source(place: str, tfds_dir: str = '') -> images.Source:
  """The images at a place, as `DataConfig.train` may name it.

  Raises:
    FileNotFoundError: nothing is there; the message says what to do.
    ValueError: it is not laid out as a source must be.
  """
  if place.startswith('tfds:'):
    name, _, split = place.removeprefix('tfds:').rpartition(':')
    if not name or not split:
      raise ValueError(f'{place!r} lacks a split: write tfds:NAME:SPLIT')
    return prepared.Prepared(name, split, tfds_dir or None)
  if os.path.isdir(place):
    return images.Folder(place)
  head, tar, inside = place.partition('.tar/')
  if tar:
    return images.Tar(f'{head}.tar', inside)
  if os.path.isfile(place):
    return images.Tar(place)
  raise FileNotFoundError(
    f'there is no {place!r}: give a folder of class folders of images, a tar of '
    'them, or tfds:NAME:SPLIT'
  )


class Splits:
  """The images of both splits, found when first asked for and then kept.

  Both properties raise FileNotFoundError if nothing is there (the message says
  what to do), and ValueError if the config names no such images, classes differ
  between the splits, or a class has too few images.
  """

  def __init__(self, cfg: DataConfig):
    self._cfg = cfg

  @functools.cached_property
  def _all(self):
    return open_source(self._cfg.train, self._cfg.tfds_dir)

  @functools.cached_property
  def train(self) -> images.Source:
    """What to train on, after `first` and `hold_out`."""
    cfg = self._cfg
    if cfg.first or cfg.hold_out:
      return subset.first_of_each(self._all, cfg.first, cfg.hold_out)
    return self._all

  @functools.cached_property
  def eval(self) -> images.Source:
    """The held-out images."""
    cfg = self._cfg
    if cfg.hold_out:
      return subset.last_of_each(self._all, cfg.hold_out)
    if not cfg.eval:
      raise ValueError(
        'there is nothing to evaluate on: set data.eval, or data.hold_out to a '
        'number of images of each class'
      )
    held_out = open_source(cfg.eval, cfg.tfds_dir)
    if self._all.classes:
      ours, theirs = f'data.train={cfg.train!r}', f'data.eval={cfg.eval!r}'
      subset.check_classes(self._all, held_out, ours, theirs)
    return held_out
