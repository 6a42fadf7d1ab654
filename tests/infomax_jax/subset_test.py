"""Rules take the images they name."""

import numpy as np
import pytest

from infomax_jax import subset


class Planted:
  """Labels and names as given; an image is its index."""

  def __init__(self, labels, ranks=None, classes=('a', 'b', 'c')):
    self.labels = np.array(labels, np.int32)
    self.ranks = np.array(range(len(labels)) if ranks is None else ranks)
    self.classes = classes

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, index):
    return np.full((1, 1, 3), index, np.uint8), int(self.labels[index])

  def name(self, index):
    return f'{index}.png'


def taken(source):
  return [int(source[i][0][0, 0, 0]) for i in range(len(source))]


SOURCE = Planted([0, 1, 0, 1, -1, 0, 1, 0], ranks=[7, 6, 5, 4, 3, 2, 1, 0])


def test_first_and_last_of_each_class_by_name():
  assert taken(subset.first_of_each(SOURCE, 2)) == [7, 5, 6, 3]
  assert taken(subset.last_of_each(SOURCE, 1)) == [0, 1]
  assert taken(subset.first_of_each(SOURCE, 2, skip_last=1)) == [7, 5, 6, 3]
  # All but what is held out, and what has no label.
  rest = subset.first_of_each(SOURCE, 0, skip_last=1)
  assert taken(rest) == [7, 5, 2, 6, 3, 4]
  assert rest.labels.tolist() == [0, 0, 0, 1, 1, -1]
  assert [rest.name(i) for i in (0, 5)] == ['7.png', '4.png']
  assert rest.ranks.tolist() == [0, 2, 5, 1, 4, 3]
  assert taken(subset.first_of_each(rest, 1)) == [7, 6]


def test_too_few_images_are_said():
  with pytest.raises(ValueError, match="class 'b' has 3 images, asked for: 4"):
    subset.first_of_each(SOURCE, 4)
  with pytest.raises(
    ValueError, match="'b' has 2 images beside the 1 held out"
  ):
    subset.first_of_each(SOURCE, 3, skip_last=1)
  with pytest.raises(ValueError, match="'a' has 4 images, asked for: 5"):
    subset.last_of_each(SOURCE, 5)
  with pytest.raises(ValueError, match="class 'b' has 0 images beside the 3"):
    subset.first_of_each(SOURCE, 0, skip_last=3)
  with pytest.raises(ValueError, match="such as '0.png', have no labels"):
    subset.first_of_each(Planted([-1, -1]), 1)


def test_classes_that_differ_are_said():
  abc, same = Planted([0]), Planted([1])
  subset.check_classes(abc, same, 'train', 'eval')
  abd = Planted([0], classes=('a', 'b', 'd', 'e', 'f', 'g', 'h', 'i'))
  said = (
    'train has 3 classes and eval 8; only train has c; '
    'only eval has d, e, f, g, h and 1 more'
  )
  with pytest.raises(ValueError, match=said):
    subset.check_classes(abc, abd, 'train', 'eval')
  cba = Planted([0], classes=('c', 'b', 'a'))
  with pytest.raises(ValueError, match='the same classes in another order'):
    subset.check_classes(abc, cba, 'train', 'eval')
