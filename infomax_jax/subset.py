"""Parts of a source by rule, and whether two sources fit."""

from jaxtyping import Int, UInt8
import numpy as np

from infomax_jax.images import Source


class Subset:
  """The images of a source at `indices`, in that order."""

  def __init__(self, source: Source, indices: Int[np.ndarray, 'N']):
    self._source = source
    self._indices = np.asarray(indices)
    self.classes = source.classes

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, 'Y X 3'], int]:
    return self._source[int(self._indices[index])]

  def name(self, index: int) -> str:
    return self._source.name(int(self._indices[index]))

  @property
  def labels(self) -> Int[np.ndarray, 'N']:
    return self._source.labels[self._indices]

  @property
  def ranks(self) -> Int[np.ndarray, 'N']:
    return self._source.ranks[self._indices]


def first_of_each(source: Source, count: int, skip_last: int = 0) -> Subset:
  """The first `count` images of each class by name.

  Args:
    source: images with labels; those without are left out.
    count: of each class; 0 for all, those without a label too.
    skip_last: of each class, the images at the end that never count.

  Raises:
    ValueError: a class has fewer images.
  """
  kept = []
  for label, members in _classes(source):
    members = members[: len(members) - skip_last]
    if len(members) < max(count, 1):
      raise ValueError(_too_few(source, label, len(members), count, skip_last))
    kept.append(members[:count] if count else members)
  if not count:
    kept.append(np.flatnonzero(source.labels < 0))
  return Subset(source, np.concatenate(kept))


def last_of_each(source: Source, count: int) -> Subset:
  """The last `count` images of each class by name.

  Raises:
    ValueError: a class has fewer images.
  """
  kept = []
  for label, members in _classes(source):
    if len(members) < count:
      raise ValueError(_too_few(source, label, len(members), count, 0))
    kept.append(members[-count:])
  return Subset(source, np.concatenate(kept))


def _classes(source):
  """(label, indices of its images sorted by name) of every class."""
  labels, ranks = source.labels, source.ranks
  if not (labels >= 0).any():
    raise ValueError(
      f'the images, such as {source.name(0)!r}, have no labels, so there is no '
      'number of images of each class to take: set it to 0'
    )
  for label in np.unique(labels[labels >= 0]):
    members = np.flatnonzero(labels == label)
    yield label, members[np.argsort(ranks[members])]


def _too_few(source, label, have, count, held_out):
  name = source.classes[label] if source.classes else label
  beside = f' beside the {held_out} held out' if held_out else ''
  return f'class {name!r} has {have} images{beside}, asked for: {max(count, 1)}'


def check_classes(
  first: Source, second: Source, first_name: str, second_name: str
):
  """Raises ValueError if labels of two sources mean different classes."""
  if first.classes == second.classes:
    return
  own = (
    _only(first_name, first, second),
    _only(second_name, second, first),
  )
  told = '; '.join(filter(None, own)) or 'the same classes in another order'
  raise ValueError(
    f'{first_name} has {len(first.classes)} classes and {second_name} '
    f'{len(second.classes)}; {told}: both need class folders of the same names'
  )


def _only(name, first, second, most=5):
  extra = sorted(set(first.classes) - set(second.classes))
  more = f' and {len(extra) - most} more' if len(extra) > most else ''
  return f'only {name} has {", ".join(extra[:most])}{more}' if extra else ''
