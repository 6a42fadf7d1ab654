"""Reading a source to the end though some of its images cannot be read."""

import logging
from typing import Any

import numpy as np

from infomax_jax import augment, images

_log = logging.getLogger(__name__)


class Reader:
  """Reads a source; counts and names images that cannot be read.

  Attributes:
    skipped: {name: why it could not be read} of all such images so far, in this
      process.
  """

  def __init__(self, source: images.Source, recipe: augment.Recipe, limit: int):
    """`limit` images may be unreadable; one more raises ValueError."""
    self.skipped: dict[str, str] = {}
    self._source, self._recipe, self._limit = source, recipe, limit
    self._warned_of_small = False

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """{'image', 'label'}; the next readable image instead of a corrupt one."""
    for step in range(len(self)):
      sample = self.read((index + step) % len(self))
      if sample is not None:
        return sample
    raise ValueError(f'none of the {len(self)} images can be read')

  def read(self, index: int) -> dict[str, Any] | None:
    """{'image': uint8 [Y X 3], 'label': int32}, or None for a corrupt image.

    Raises:
      ValueError: there are more corrupt images than the limit, or the image
        does not suit the recipe.
    """
    try:
      image, label = self._source[index]
    except images.CorruptImage as error:
      self._skip(error.name, error.reason)
      return None
    self._check_size(image, index)
    return {'image': image, 'label': np.int32(label)}

  def _skip(self, name, reason):
    known = name in self.skipped
    # Before counting: of threads that skip at once, the last sees all of them.
    self.skipped[name] = reason
    count = len(self.skipped)
    if not known and count <= self._limit:
      _log.warning(
        'skipped corrupt image %d of at most %d: %s: %s',
        *(count, self._limit, name, reason),
      )
    if count > self._limit:
      named = [f'{n} ({why})' for n, why in list(self.skipped.items())[:10]]
      more = f' and {count - len(named)} more' if count > len(named) else ''
      raise ValueError(
        f'{count} images cannot be read, more than '
        f'data.max_corrupt={self._limit}: {"; ".join(named)}{more}'
      )

  def _check_size(self, image, index):
    rows, columns = image.shape[:2]
    size = self._recipe.size
    if self._recipe.geometry == 'translate':
      if (rows, columns) != (size, size):
        raise ValueError(
          f'{self._source.name(index)} has {rows}x{columns} pixels, but '
          f"data.recipe='cifar' shifts images of exactly {size}x{size}: set "
          "data.recipe='imagenet' and data.size to crop from any size"
        )
    elif min(rows, columns) < size and not self._warned_of_small:
      self._warned_of_small = True
      _log.warning(
        '%s has %dx%d pixels, less than the crop of %dx%d: it and others like '
        'it are enlarged',
        *(self._source.name(index), rows, columns, size, size),
      )


class Padded:
  """A reader's plain images in order, up to a whole number of batches."""

  def __init__(self, reader: Reader, recipe: augment.Recipe, batch_size: int):
    self._reader, self._recipe, self._batch = reader, recipe, batch_size

  def __len__(self) -> int:
    return -(-len(self._reader) // self._batch) * self._batch

  def __getitem__(self, index: int) -> dict[str, Any]:
    sample = self._reader.read(index) if index < len(self._reader) else None
    if sample is None:
      image = np.zeros((self._recipe.size, self._recipe.size, 3), np.uint8)
      label = np.int32(images.UNLABELLED)
      return {'image': image, 'label': label, 'mask': np.bool_(False)}
    image = augment.plain(sample['image'], self._recipe)
    return {'image': image, 'label': sample['label'], 'mask': np.bool_(True)}
