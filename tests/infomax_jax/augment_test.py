"""Views equal PIL's golden results, and are drawn as often as published."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from infomax_jax import augment, augment_colour, augment_crop

GOLDEN = pathlib.Path(__file__).parents[3] / 'shared/golden/amdim/augment.npz'
CROP = dataclasses.replace(augment.RECIPES['stl10'], size=8, resize=9)
STILL = {'flip': 0.0, 'geometric': 0.0, 'jitter': 0.0, 'grey': 0.0}


@pytest.fixture(scope='module')
def golden():
  if not GOLDEN.exists():
    pytest.skip(f'the original operations, {GOLDEN.name}, are not here')
  with np.load(GOLDEN) as data:
    return dict(data)


def of(golden, name):
  """{what follows the name: golden image}."""
  return {
    k.split('/')[1]: v for k, v in golden.items() if k.startswith(f'{name}/')
  }


@pytest.mark.parametrize(
  ('name', 'count'),
  [('brightness', 4), ('contrast', 4), ('saturation', 4), ('hue', 5)],
)
def test_changes_of_colour_are_the_originals(golden, name, count):
  image = Image.fromarray(golden['image48'])
  cases = of(golden, name)
  assert len(cases) == count
  for value, expected in cases.items():
    changed = getattr(augment_colour, name)(image, float(value))
    np.testing.assert_array_equal(changed, expected)


def test_hue_turns_by_whole_steps_of_a_255th():
  image = Image.fromarray(noise(16))
  for shift, steps in ((0.25, 63), (-0.25, -63), (0.001, 0)):
    hsv = np.asarray(image.convert('HSV')).copy()
    hsv[..., 0] += np.array(steps).astype(np.uint8)
    expected = Image.fromarray(hsv, 'HSV').convert('RGB')
    got = augment_colour.hue(image, shift)
    np.testing.assert_array_equal(got, expected)


def test_grey_is_the_original_in_all_channels(golden):
  got = np.asarray(augment_colour.grey(Image.fromarray(golden['image48'])))
  for channel in range(3):
    np.testing.assert_array_equal(got[..., channel], golden['gray'])


def test_crops_are_the_originals(golden):
  image = Image.fromarray(golden['image48'])
  for sides, expected in of(golden, 'crop_bicubic32').items():
    left, top, right, bottom = map(int, sides.split('_'))
    box = augment_crop.Box(left, top, right - left, bottom - top)
    crop = augment_crop.resized_crop(image, box, 32)
    np.testing.assert_array_equal(crop, expected)


def test_shifts_are_the_originals(golden):
  image = Image.fromarray(golden['image32'])
  for shift, expected in of(golden, 'translate').items():
    dx, dy = map(int, shift.split('_'))
    moved = augment_crop.translate(image, dx, dy)
    np.testing.assert_array_equal(moved, expected)


def noise(height, width=None, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width or height, 3), np.uint8)


def many(image, recipe, count):
  for seed in range(count):
    yield augment.views(image, np.random.default_rng(seed), recipe)


def only(name, **probabilities):
  """A recipe in which nothing happens but what is given."""
  return dataclasses.replace(
    augment.RECIPES[name], **{**STILL, **probabilities}
  )


def test_the_flip_is_shared_and_half():
  image = noise(32)
  flips = []
  for pair in many(image, only('cifar', flip=0.5), 400):
    first, second = (np.array_equal(v, image[:, ::-1]) for v in pair)
    assert first == second
    assert first or np.array_equal(pair[0], image)
    flips.append(first)
  assert abs(np.mean(flips) - 0.5) < 0.08


@pytest.mark.parametrize(
  ('part', 'published'), [('geometric', 0.8), ('jitter', 0.8), ('grey', 0.25)]
)
def test_other_parts_are_drawn_for_each_view(part, published):
  image = noise(32)
  probability = getattr(augment.RECIPES['cifar'], part)
  assert probability == published
  recipe = only('cifar', **{part: probability})
  changed = np.array(
    [
      [not np.array_equal(view, image) for view in pair]
      for pair in many(image, recipe, 400)
    ]
  )
  expected = published * (80 / 81 if part == 'geometric' else 1)
  np.testing.assert_allclose(changed.mean(0), expected, atol=0.07)
  both = changed.all(1).mean()
  assert abs(both - expected**2) < 0.08  # Independent.


def test_shifts_reach_four_pixels_either_way():
  image = np.zeros((32, 32, 3), np.uint8)
  image[16, 10] = 255
  shifts = []
  for pair in many(image, only('cifar', geometric=1.0), 400):
    for view in pair:
      row, column = np.argwhere(view[..., 0] == 255)[0]
      shifts.append((row - 16, column - 10))
  counts = np.zeros((9, 9))
  np.add.at(counts, tuple(np.add(shifts, 4).T), 1)
  assert (counts > 0).all() and counts.sum() == 800
  assert counts.sum(0).min() > 50 and counts.sum(1).min() > 50


def test_factors_hue_and_order():
  rng = np.random.default_rng(0)
  drawn = [augment_colour.draw_jitter(rng, 0.4, 0.1) for _ in range(2000)]
  factors = np.array([j[:3] for j in drawn])
  assert 0.6 <= factors.min() < 0.61 and 1.39 < factors.max() <= 1.4
  np.testing.assert_allclose(factors.mean(0), 1, atol=0.02)
  hues = np.array([j.hue for j in drawn])
  assert -0.1 <= hues.min() < -0.099 and 0.099 < hues.max() <= 0.1
  assert len({j.order for j in drawn}) == 24
  assert [augment.RECIPES[n].hue for n in augment.RECIPES] == [0.2, 0.2, 0.1]


def test_the_order_of_changes_is_kept():
  image = Image.fromarray(noise(8))
  jitter = augment_colour.Jitter(1.4, 0.6, 1.3, 0.1, (3, 1, 0, 2))
  expected = augment_colour.hue(image, 0.1)
  expected = augment_colour.contrast(expected, 0.6)
  expected = augment_colour.brightness(expected, 1.4)
  expected = augment_colour.saturation(expected, 1.3)
  got = np.asarray(augment_colour.apply_jitter(image, jitter))
  np.testing.assert_array_equal(got, expected)
  other = augment_colour.apply_jitter(image, jitter._replace(order=range(4)))
  assert (got != np.asarray(other)).any()


@pytest.mark.parametrize('aspect', ['log', 'uniform'])
def test_boxes_have_the_published_areas_and_ratios(aspect):
  rng = np.random.default_rng(0)
  boxes = np.array(
    [
      augment_crop.draw_box(rng, 500, 500, (0.3, 1.0), (0.7, 1.4), aspect)
      for _ in range(4000)
    ]
  )
  left, top, width, height = boxes.T
  assert boxes[:, :2].min() == 0
  assert max((left + width).max(), (top + height).max()) == 500
  area, ratio = width * height / 500**2, width / height
  assert 0.29 < area.min() < 0.31 and area.max() > 0.95
  if aspect == 'log':  # Symmetric in neither law; [0.7, 1.4] as it is.
    assert 0.69 < ratio.min() < 0.72 and 1.38 < ratio.max() < 1.41
  else:  # Turned half of the time: as often wide as high.
    assert abs(np.mean(ratio > 1) - 0.5) < 0.03
    assert 1.40 < ratio.max() < 1.44


def test_a_box_that_cannot_fit_is_the_middle():
  rng = np.random.default_rng(0)
  draw = lambda aspect, *size: augment_crop.draw_box(
    rng, *size, (0.9, 1.0), (0.7, 1.4), aspect
  )
  assert draw('log', 300, 10) == (143, 0, 14, 10)
  assert draw('log', 7, 100) == (0, 45, 7, 10)
  assert draw('uniform', 300, 10) == (145, 0, 10, 10)


def test_views_have_the_size_and_the_state_decides():
  for image in (noise(20, 31), noise(5, 4)):
    for first, second in many(image, CROP, 20):
      assert first.shape == second.shape == (8, 8, 3)
      assert first.dtype == np.uint8
      assert (first != second).any()
  image = noise(20, 31)
  jax.tree.map(
    np.testing.assert_array_equal,
    list(many(image, CROP, 5)),
    list(many(image, CROP, 5)),
  )
  assert len({v.tobytes() for pair in many(image, CROP, 20) for v in pair}) > 35


def test_evaluation_takes_the_middle():
  assert augment.plain(noise(32), augment.RECIPES['cifar']).shape == (32, 32, 3)
  image = np.zeros((120, 160, 3), np.uint8)
  image[..., 0] = 2 * np.arange(120)[:, None]
  image[..., 1] = np.arange(160)
  got = augment.plain(image, augment.RECIPES['stl10'])
  assert got.shape == (64, 64, 3)
  # 120 rows to 70 scale by 12/7; the middle 64 of 70 rows, of 93 columns.
  rows = 2 * ((np.arange(64) + 3 + 0.5) * 12 / 7 - 0.5)
  columns = (np.arange(64) + 14 + 0.5) * 160 / 93 - 0.5
  np.testing.assert_allclose(got[:, 5, 0], rows, atol=1)
  np.testing.assert_allclose(got[7, :, 1], columns, atol=1)
  assert augment.plain(noise(10, 300), CROP).shape == (8, 8, 3)


def test_normalization_is_torchs():
  image = noise(8)
  for recipe in augment.RECIPES.values():
    exact = (image / 255 - np.array(recipe.mean)) / np.array(recipe.std)
    got = augment.normalize(jnp.asarray(image[None]), recipe)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got[0], exact, atol=1e-6)
    np.testing.assert_allclose(
      augment.normalize(image, recipe), exact, atol=1e-6
    )


def test_recipes_are_changed_by_name():
  small = augment.recipe('imagenet', size=64, strong=True, aspect='uniform')
  assert (small.size, small.resize, small.strong) == (64, 73, True)
  assert small.aspect == 'uniform'
  assert augment.recipe('cifar') == augment.RECIPES['cifar']
  first = augment.recipe('imagenet', version=1)
  assert (first.grey, first.scale, first.hue) == (0.2, (0.4, 1.0), 0.2)
  bare = augment.recipe('stl10', without=augment.PARTS)
  image = noise(80, 90)
  for view in augment.views(image, np.random.default_rng(0), bare):
    np.testing.assert_array_equal(view, augment.plain(image, bare))
  for wrong, said in (
    (dict(name='svhn'), "no recipe 'svhn'; there are: cifar, stl10, imagenet"),
    (dict(name='cifar', without=('crop',)), "no part 'crop'; they have"),
    (dict(name='cifar', aspect='linear'), "got 'linear'"),
    (dict(name='cifar', version=3), 'versions 1 and 2, not 3'),
  ):
    with pytest.raises(ValueError, match=said):
      augment.recipe(**wrong)
