"""Grain pipelines of views: from a source of labelled images to batches."""

from collections.abc import Callable
import dataclasses
import functools
import os
from typing import Literal

import grain
import jax
import numpy as np

from infomax_jax import augment, images, prepared, subset
from infomax_jax.reader import Padded, Reader


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


class _Rows(grain.MapDataset):
  """One process's rows of every batch, of whole batches of every epoch.

  Whatever the number of processes, row k of batch n is the same example. No
  batch spans two epochs, so none holds an image twice: an image is no negative
  of itself.
  """

  def __init__(self, parent: grain.MapDataset, epoch: int, batch_size: int):
    """`parent` repeats every `epoch` elements."""
    super().__init__(parent)
    self._epoch, self._batch = epoch, batch_size
    self._share = batch_size // jax.process_count()
    self._start = jax.process_index() * self._share

  def __len__(self) -> int:
    epochs = len(self._parent) // self._epoch
    return epochs * (self._epoch // self._batch) * self._share

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    batch, row = divmod(index, self._share)
    epoch, batch = divmod(batch, self._epoch // self._batch)
    row += epoch * self._epoch + batch * self._batch + self._start
    return self._parent[row]


def _batches(ds, epoch, batch_size, workers):
  ds = _Rows(ds, epoch, batch_size).batch(batch_size // jax.process_count())
  ds = ds.to_iter_dataset(
    grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
  )
  if workers:
    ds = ds.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
  return ds


def _check_batch_size(batch_size):
  if batch_size % jax.process_count():
    raise ValueError(
      f'batch_size {batch_size} does not divide among the '
      f'{jax.process_count()} processes'
    )


def views(
  source: images.Source, cfg: DataConfig, batch_size: int, seed: int
) -> grain.IterDataset:
  """Shuffled, endless batches of two views of each image: this process's rows.

  `batch_size` counts the rows of all processes. What is drawn for an image
  depends on the seed and the epoch, not on processes, threads or workers.

  Returns:
    Batches {'view1', 'view2': uint8 [B S S 3], 'label': int32 [B]}; normalize
    them on the device with `augment.normalize`.

  Raises:
    ValueError: there are fewer images than a batch has; while reading, an image
      does not suit the recipe or more are corrupt than cfg.max_corrupt.
  """
  _check_batch_size(batch_size)
  recipe = cfg.build_recipe()
  reader = Reader(source, recipe, cfg.max_corrupt)
  if len(reader) < batch_size:
    raise ValueError(
      f'there are {len(reader)} images, fewer than a batch of {batch_size}: '
      'lower batch_size'
    )
  ds = grain.MapDataset.source(reader).seed(seed).shuffle()
  # Finite, since an endless dataset has no length to divide.
  ds = ds.repeat(1_000_000).random_map(_two_views(recipe))
  return _batches(ds, len(reader), batch_size, cfg.workers)


def _two_views(recipe: augment.Recipe) -> Callable:
  def transform(sample, rng: np.random.Generator):
    first, second = augment.views(sample['image'], rng, recipe)
    return {'view1': first, 'view2': second, 'label': sample['label']}

  return transform


def plain(
  source: images.Source, cfg: DataConfig, batch_size: int
) -> grain.IterDataset:
  """Every image once, in order, as evaluation shows it: this process's rows.

  `batch_size` counts the rows of all processes; the last batch is filled up.

  Returns:
    Batches {'image': uint8 [B S S 3], 'label': int32 [B], 'mask': bool [B]};
    the mask is False for corrupt images and for what fills up.

  Raises:
    ValueError: while reading, as `views`.
  """
  _check_batch_size(batch_size)
  recipe = cfg.build_recipe()
  reader = Reader(source, recipe, cfg.max_corrupt)
  padded = Padded(reader, recipe, batch_size)
  ds = grain.MapDataset.source(padded)
  return _batches(ds, len(padded), batch_size, cfg.workers)
