"""The policy is the published one, and its operations are PIL's."""

import collections

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
import pytest

from infomax_jax import augment, augment_policy

# Of fa_resnet50_rimagenet: how often an operation occurs, the sums of its
# probabilities and of its levels.
PUBLISHED = {
  'ShearX': (60, 23.5711, 28.5116),
  'ShearY': (70, 30.0984, 32.0676),
  'TranslateX': (50, 21.6762, 25.3850),
  'TranslateY': (44, 19.2867, 22.0692),
  'Rotate': (66, 30.0690, 30.8342),
  'AutoContrast': (88, 44.9372, 40.6263),
  'Invert': (33, 10.2481, 20.4674),
  'Equalize': (44, 14.0179, 21.4719),
  'Solarize': (36, 12.3180, 20.9956),
  'Posterize': (78, 37.6538, 39.6446),
  'Contrast': (75, 34.8393, 38.0912),
  'Color': (75, 37.4995, 42.7756),
  'Brightness': (96, 48.2245, 47.9610),
  'Sharpness': (105, 55.9846, 61.8313),
  'Cutout': (76, 39.3435, 29.0936),
}


class Fixed:
  """A generator that gives what it is told."""

  def __init__(self, side=0.9, middle=(0.0, 0.0)):
    self._side, self._middle = side, list(middle)

  def random(self):
    return self._side

  def uniform(self, low, high):
    return self._middle.pop(0)


@pytest.fixture
def image():
  rng = np.random.default_rng(0)
  return Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8))


def test_the_table_is_the_published_one():
  table = augment_policy.sub_policies()
  assert len(table) == 498 and {len(pair) for pair in table} == {2}
  sums = collections.defaultdict(lambda: np.zeros(3))
  for pair in table:
    for name, probability, level in pair:
      sums[name] += (1, probability, level)
  assert set(sums) == set(PUBLISHED)
  for name, expected in PUBLISHED.items():
    np.testing.assert_allclose(sums[name], expected, atol=2e-3)
  assert table[0] == (('ShearY', 0.1414, 0.5131), ('Sharpness', 0.929, 0.9788))
  assert table[-1] == (
    ('AutoContrast', 0.5405, 0.7472),
    ('Equalize', 0.0565, 0.5628),
  )


def test_operations_are_pils(image):
  def affine(*rows):
    return image.transform(image.size, Image.Transform.AFFINE, rows)

  enhance = lambda kind, factor: kind(image).enhance(factor)
  expected = {
    'ShearX': affine(1, 0.15, 0, 0, 1, 0),
    'ShearY': affine(1, 0, 0, 0.15, 1, 0),
    'TranslateX': affine(1, 0, 0.225 * 30, 0, 1, 0),
    'TranslateY': affine(1, 0, 0, 0, 1, 0.225 * 40),
    'Rotate': image.rotate(15),
    'AutoContrast': ImageOps.autocontrast(image),
    'Invert': ImageOps.invert(image),
    'Equalize': ImageOps.equalize(image),
    'Solarize': ImageOps.solarize(image, 192),
    'Posterize': ImageOps.posterize(image, 7),
    'Contrast': enhance(ImageEnhance.Contrast, 1.45),
    'Color': enhance(ImageEnhance.Color, 1.45),
    'Brightness': enhance(ImageEnhance.Brightness, 1.45),
    'Sharpness': enhance(ImageEnhance.Sharpness, 1.45),
  }
  for name, result in expected.items():
    got = augment_policy.operate(image, name, 0.75, Fixed())
    np.testing.assert_array_equal(got, result, err_msg=name)
  turned = augment_policy.operate(image, 'Rotate', 0.75, Fixed(side=0.1))
  np.testing.assert_array_equal(turned, image.rotate(-15))


@pytest.mark.parametrize('middle', [(12.3, 20.7), (0.5, 39.9), (29.9, 0.1)])
def test_cutout_is_the_rectangle_its_authors_draw(image, middle):
  side = 0.2 * 0.8 * 30
  left, top = (int(max(0, m - side / 2)) for m in middle)
  corner = (min(30, left + side), min(40, top + side))
  expected = image.copy()
  ImageDraw.Draw(expected).rectangle((left, top, *corner), (125, 123, 114))
  got = augment_policy.operate(image, 'Cutout', 0.8, Fixed(middle=middle))
  np.testing.assert_array_equal(got, expected)


def test_probabilities_hold_and_the_state_decides(image):
  operations = []

  def count(image, name, level, rng):
    operations.append(name)
    return image

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(augment_policy, 'operate', count)
    for seed in range(3000):
      augment_policy.apply(image, np.random.default_rng(seed))
  mean = sum(p for _, p, _ in PUBLISHED.values()) / 498
  assert abs(len(operations) / 3000 - mean) < 0.05
  assert set(operations) == set(PUBLISHED)
  results = []
  for _ in range(2):
    rng = np.random.default_rng(5)
    results.append([augment_policy.apply(image, rng) for _ in range(30)])
  for first, second in zip(*results, strict=True):
    np.testing.assert_array_equal(first, second)
    assert first.size == image.size and first.mode == 'RGB'


def test_strong_views_differ_from_the_usual(image):
  bare = augment.recipe('stl10', size=16, strong=True, without=augment.PARTS)
  plain = augment.plain(np.asarray(image), bare)
  changed = 0
  for seed in range(60):
    rng = np.random.default_rng(seed)
    pair = augment.views(np.asarray(image), rng, bare)
    changed += sum((view != plain).any() for view in pair)
  assert 60 < changed < 115
