"""Posterior maps and the measures of segments, by other means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infomax_jax import segment
from infomax_jax.config import ObjectiveConfig
from infomax_jax.encoder import Features


def test_maps_are_the_posterior_of_each_position():
  """A softmax over components of scores against other images, by loops."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  b, k, c = 3, 2, 8
  components, r7 = 3 * draw(b, k, c), 3 * draw(b, 7, 7, c)
  features = Features(draw(b, c), draw(b, 5, 5, c), r7, components)
  cfg = ObjectiveConfig(temperature=0.5)
  got = segment.posterior_maps(jax.tree.map(jnp.asarray, features), cfg)
  for i in range(b):
    raw = np.einsum('kc,jyxc->kjyx', components[i], r7) / np.sqrt(c)
    score = 20 * np.tanh(raw / 20)
    negatives = np.exp(np.delete(score, i, axis=1)).sum((1, 2, 3))
    positive = score[:, i]
    total = np.exp(positive) + negatives[:, None, None]
    tempered = np.exp(0.5 * (positive - np.log(total)))
    want = np.moveaxis(tempered / tempered.sum(0), 0, -1)
    np.testing.assert_allclose(got[i], want, atol=1e-5)


def test_an_encoder_without_a_mixture_is_told():
  x = jnp.zeros((2, 7, 7, 4))
  with pytest.raises(ValueError, match='has no mixture: train one'):
    segment.posterior_maps(Features(x[:, 0, 0], x, x), ObjectiveConfig())


def test_colours_between_segments():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, (2, 6, 6))
  flat = rng.random((3, 3))[labels]
  explained = segment.colour_explained(flat, labels)
  np.testing.assert_allclose(explained, 1)
  one = segment.colour_explained(flat, 0 * labels)
  np.testing.assert_allclose(one, 0, atol=1e-9)
  # By the definition of variance within, for an image with noise.
  noisy = flat + 0.3 * rng.standard_normal(flat.shape)
  for image, label, got in zip(
    noisy, labels, segment.colour_explained(noisy, labels), strict=True
  ):
    within = sum(
      ((image[label == j] - image[label == j].mean(0)) ** 2).sum()
      for j in range(3)
    )
    whole = ((image - image.mean((0, 1))) ** 2).sum()
    assert got == pytest.approx(1 - within / whole)


def test_the_rand_index_is_that_of_scikit_learn():
  metrics = pytest.importorskip('sklearn.metrics')
  rng = np.random.default_rng(0)
  truth = rng.integers(0, 2, (4, 8, 8))
  found = np.where(rng.random(truth.shape) < 0.7, truth, 2)
  want = [
    metrics.adjusted_rand_score(a.ravel(), b.ravel())
    for a, b in zip(truth, found, strict=True)
  ]
  np.testing.assert_allclose(segment.rand_index(found, truth), want)
  one = np.zeros((1, 8, 8), int)
  assert segment.rand_index(one, one) == [1]


def test_the_control_cuts_the_map_into_equal_neighbourhoods():
  cut = segment.spatial_kmeans(8, 4)
  assert sorted(np.bincount(cut.ravel())) == [16] * 4
  for label in range(4):
    assert np.ptp(np.argwhere(cut == label), axis=0).max() <= 4
  assert len(np.unique(segment.spatial_kmeans(7, 4))) == 4


@pytest.mark.parametrize('rows', [7, 14, 32])
def test_pixels_take_the_nearest_position(rows):
  small = np.arange(49).reshape(1, 7, 7)
  large = segment.enlarge(small, rows)
  for y in range(rows):
    for x in range(rows):
      at = int((y + 0.5) * 7 / rows), int((x + 0.5) * 7 / rows)
      assert large[0, y, x] == small[(0, *at)]
