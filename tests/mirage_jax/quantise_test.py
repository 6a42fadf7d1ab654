"""Matmuls in 8 bits: what is rounded, by how much, and what is not."""

import functools

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mirage_jax import cache, config, dit, quantise, skip

pytest.importorskip('qwix', reason='needs the quantise extra')
# qwix 0.1.8 asks flax for a name that it gave up.
pytestmark = pytest.mark.filterwarnings(
  "ignore:'VariableState' was removed:DeprecationWarning"
)
STREAM = config.StreamConfig
MODEL = dit.Mirage(
  config.MirageConfig(
    depth=2,
    num_heads=2,
    head_dim=8,
    video=STREAM(16, 32),
    audio=STREAM(8, 16, in_dim=3),
    latent_channels=2,
    rope_area=4.0,
  )
)
VIDEO = jax.random.normal(jax.random.key(0), (2, 1, 4, 4, 2))
SIGMA = jnp.array([0.9, 0.3])
COND = {'audio': jax.random.normal(jax.random.key(1), (2, 5, 3))}


@functools.cache
def params():
  init = functools.partial(MODEL.init, jax.random.key(2))
  shapes = jax.eval_shape(init, VIDEO, SIGMA, COND)
  rng = np.random.default_rng(0)
  draw = lambda x: 0.3 * rng.standard_normal(x.shape, np.float32)
  return jax.tree.map(draw, nn.unbox(shapes)['params'])


@functools.cache
def quantised(scheme):
  return quantise.quantise(MODEL, params(), scheme)


def run(model, params):
  return jax.jit(cache.Bound(model, params).__call__)(VIDEO, SIGMA, COND)


def kernels(tree):
  """(path, kernel, quantised kernel) of what is quantised."""
  for path in (
    ('blocks', 'video', 'qkv'),
    ('blocks', 'video', 'out'),
    ('blocks', 'audio', 'mlp', 'up'),
    ('last', 'video', 'mlp', 'down'),
  ):
    ours, theirs = params(), tree
    for name in (*path, 'kernel'):
      ours, theirs = ours[name], theirs[name]
    yield path, ours, theirs.array


def restored(tree):
  """Plain parameters: value times scale, by hand."""

  def walk(ours, theirs):
    if isinstance(ours, dict):
      return {k: walk(ours[k], theirs[k]) for k in ours}
    if not hasattr(theirs, 'how'):
      return theirs
    kernel = theirs.array
    return np.asarray(kernel.qvalue, np.float32) * kernel.scale

  return walk(params(), tree)


def test_weights_are_rounded_by_channel_and_layer():
  _, made = quantised('int8_weights')
  for path, kernel, rounded in kernels(made):
    assert rounded.qvalue.dtype == jnp.int8 and rounded.shape == kernel.shape
    scale = np.broadcast_to(rounded.scale, kernel.shape)
    error = np.abs(np.asarray(rounded.qvalue, np.float32) * scale - kernel)
    assert (error <= 0.501 * scale).all(), path
    # One for each output channel of each layer.
    inputs = {'qkv': 1, 'out': 2, 'up': 1, 'down': 1}[path[-1]]
    stacked = path[0] == 'blocks'
    want = list(kernel.shape)
    want[stacked : stacked + inputs] = [1] * inputs
    assert rounded.scale.shape == tuple(want), path


def test_embeddings_modulations_and_the_last_layer_stay():
  _, made = quantised('int8_weights')
  for path in (('video_in',), ('out',), ('blocks', 'video', 'modulation')):
    ours, theirs = params(), made
    for name in path:
      ours, theirs = ours[name], theirs[name]
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_with_weights_alone_it_is_the_model_of_the_rounded_weights():
  model, made = quantised('int8_weights')
  want = run(MODEL, restored(made))
  np.testing.assert_allclose(
    run(model, made), want, atol=1e-4 * np.abs(want).max()
  )
  plain = run(MODEL, params())
  assert 1e-3 < np.abs(want - plain).max() / np.abs(plain).max() < 0.1
  block = lambda tree: quantise.num_bytes(tree['blocks']['video']['mlp'])
  assert block(made) < 0.32 * block(params())


@pytest.mark.full
@pytest.mark.parametrize('scheme', ['fp8_weights', 'int8', 'fp8'])
def test_every_scheme_stays_near(scheme):
  model, made = quantised(scheme)
  plain, got = run(MODEL, params()), run(model, made)
  near = np.sqrt(np.mean((got - plain) ** 2) / np.mean(plain**2))
  assert 1e-3 < near < 0.2


def test_blocks_can_be_left_out():
  _, made = quantised('int8_weights')
  without = skip.without_blocks(made, (1,))
  gates = lambda name: without[name]['video']['modulation']['linear']['kernel']
  assert gates('blocks').any() and not gates('last').any()
  parts = (tree['last']['video']['qkv'] for tree in (without, made))
  jax.tree.map(np.testing.assert_array_equal, *parts)


def test_schemes_are_named():
  with pytest.raises(ValueError, match="no quantisation 'int4'; give one of"):
    quantise.quantise(MODEL, params(), 'int4')
