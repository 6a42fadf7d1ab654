"""Convolutions over time before the first block."""

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mirage_jax import config, train_step
from mirage_jax.stem import Stem

REACH, SIZE = 4, 6
X = jax.random.normal(jax.random.key(0), (2, 9, SIZE))


@pytest.fixture
def params():
  fresh = nn.unbox(Stem(REACH).init(jax.random.key(1), X, None))['params']
  leaves, tree = jax.tree.flatten(fresh)
  rng = np.random.default_rng(0)
  leaves = [rng.standard_normal(x.shape, np.float32) for x in leaves]
  return jax.tree.unflatten(tree, leaves)


def stem(params, x, mask=None):
  return Stem(REACH).apply({'params': params}, x, mask)


def test_it_is_flax_convolutions(params):
  def conv(name, size, x):
    return nn.Conv(size, (REACH + 1,)).apply({'params': params[name]}, x)

  y = conv('conv2', SIZE, nn.silu(conv('conv1', SIZE // 2, X)))
  np.testing.assert_allclose(stem(params, X), X + y, rtol=1e-5, atol=1e-5)


def test_it_begins_as_nothing():
  fresh = Stem(REACH).init(jax.random.key(1), X, None)
  np.testing.assert_array_equal(stem(nn.unbox(fresh)['params'], X), X)


def test_a_token_sees_so_many_on_either_side(params):
  slopes = jax.jacobian(lambda x: stem(params, x[None])[0].sum(1))(X[0])
  seen = np.abs(slopes).sum(2) > 0
  places = np.arange(len(seen))
  near = np.abs(places[:, None] - places) <= REACH
  np.testing.assert_array_equal(seen, near)


def test_what_is_masked_is_as_good_as_not_there(params):
  mask = jnp.arange(9)[None] < jnp.array([[6], [9]])
  got = stem(params, X, mask)
  np.testing.assert_allclose(got[0, :6], stem(params, X[:1, :6])[0], rtol=1e-5)
  np.testing.assert_allclose(got[1], stem(params, X[1:])[0], rtol=1e-5)


def test_muon_takes_taps_and_channels_for_rows(params):
  axes = train_step.hidden_matrices({'audio_stem': params})['audio_stem']
  for name in ('conv1', 'conv2'):
    found = axes[name]['kernel']
    assert (found.reduction_axis, found.output_axis) == ((0, 1), (2,))
    assert axes[name]['bias'] is None


@pytest.mark.parametrize(
  ('name', 'reach', 'said'),
  [
    ('audio', 3, 'audio.stem must be even'),
    ('audio', -2, 'audio.stem must be even'),
    ('text', 2, 'text.stem must be 0: its tokens are no frames'),
    ('video', 2, 'video.stem must be 0'),
  ],
)
def test_what_cannot_be_is_told(name, reach, said):
  streams = {
    n: dict(width=8, mlp_dim=8, in_dim=8) for n in ('video', 'text', 'audio')
  }
  streams[name]['stem'] = reach
  with pytest.raises(ValueError, match=said):
    config.build(
      config.MirageConfig, dict(depth=1, num_heads=1, head_dim=8, **streams)
    )
