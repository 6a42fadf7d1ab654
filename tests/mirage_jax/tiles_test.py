"""Tiles: exact where each place is on its own, blended where it is not."""

import numpy as np
import pytest

from mirage_jax import tiles


def draw(rows, columns):
  rng = np.random.default_rng(0)
  return rng.standard_normal((2, 3, rows, columns, 4)).astype(np.float32)


def grow(x):
  return np.repeat(np.repeat(x, 8, 2), 8, 3)


def shrink(x):
  b, f, y, x_, c = x.shape
  return x.reshape(b, f, y // 8, 8, x_ // 8, 8, c).mean((3, 5))


@pytest.mark.parametrize('shape', [(4, 4), (3, 9), (10, 7), (11, 5)])
def test_what_sees_one_place_is_the_same_in_tiles(shape):
  x = draw(*shape)
  got = tiles.tiled(grow, x, (4, 3), (32, 24))
  np.testing.assert_allclose(got, grow(x), rtol=1e-6, atol=1e-6)
  frames = grow(x)
  got = tiles.tiled(shrink, frames, (32, 24), (4, 3))
  np.testing.assert_allclose(got, x, rtol=1e-5, atol=1e-5)


def test_one_tile_is_the_whole():
  calls = []
  run = lambda x: calls.append(x.shape) or x
  x = draw(4, 3)
  np.testing.assert_array_equal(tiles.tiled(run, x, (4, 3), (4, 3)), x)
  assert calls == [x.shape]


def test_tiles_pass_into_each_other():
  """Each run gives its number: four tiles of 4 places, 2 of them shared."""
  count = iter(range(9))
  run = lambda x: np.full_like(x, next(count))
  got = tiles.tiled(run, draw(1, 8), (4, 2), (4, 2))[0, 0, 0, :, 0]
  assert got.tolist() == [0, 0, 0, 0.5, 1, 1.5, 2, 2.5]


@pytest.mark.parametrize(
  ('size', 'stride', 'said'),
  [(250, 192, 'the 8 pixels'), (256, 0, 'every 0'), (64, 128, 'every 128')],
)
def test_tiles_that_do_not_fit_are_refused(size, stride, said):
  with pytest.raises(ValueError, match=said):
    tiles.Tiling(size, stride).check(8)
