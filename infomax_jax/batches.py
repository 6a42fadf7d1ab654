"""Grain pipelines of views: from a source of labelled images to batches."""

from collections.abc import Callable

import grain
import jax
import numpy as np

from infomax_jax import augment, images
from infomax_jax.data import DataConfig
from infomax_jax.reader import Padded, Reader


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
