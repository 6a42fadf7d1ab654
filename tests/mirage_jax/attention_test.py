"""All implementations of attention against float64 numpy and each other."""

import functools

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mirage_jax.ops.attention import attention, reference

NAMES = ('reference', 'recompute', 'dot_product')
MASK = np.array([[True, False, True, True, False], [True] * 5, [False] * 5])


def draw(seed=0, tokens=4):
  rng = np.random.default_rng(seed)
  shapes = ((3, tokens, 2, 8), (3, 5, 2, 8), (3, 5, 2, 8))
  return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def numpy_attention(q, k, v, mask):
  q, k, v = (x.astype(np.float64) for x in (q, k, v))
  weights = np.exp(np.einsum('BTHD,BSHD->BHTS', q, k) / np.sqrt(q.shape[-1]))
  weights = weights * mask[:, None, None, :]
  total = np.maximum(weights.sum(-1, keepdims=True), 1e-300)
  return np.einsum('BHTS,BSHD->BTHD', weights / total, v)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('mask', [None, MASK], ids=['all', 'masked'])
def test_equals_numpy(name, mask):
  q, k, v = draw()
  got = attention(q, k, v, mask, implementation=name)
  want = numpy_attention(q, k, v, np.ones((3, 5)) if mask is None else mask)
  np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize('name', NAMES[1:])
@pytest.mark.parametrize('mask', [None, MASK], ids=['all', 'masked'])
def test_gradients_equal_the_reference(name, mask):
  def grads(name):
    def total(q, k, v):
      return jnp.sum(jnp.sin(attention(q, k, v, mask, implementation=name)))

    return jax.jit(jax.grad(total, (0, 1, 2)))(*draw())

  for label, got, want in zip(
    'qkv', grads(name), grads('reference'), strict=True
  ):
    assert np.isfinite(want).all() and np.abs(want).max() > 0.01
    np.testing.assert_allclose(got, want, atol=2e-6, err_msg=f'd{label}')


@pytest.mark.parametrize('name', NAMES)
def test_keeps_bfloat16_and_softmax_in_float32(name):
  q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in draw())
  got = attention(q, k, v, MASK, implementation=name)
  want = numpy_attention(*(np.asarray(x, np.float32) for x in (q, k, v)), MASK)
  assert got.dtype == jnp.bfloat16
  # 2 ** -8 is bfloat16's rounding: of the weights, and of the result.
  np.testing.assert_allclose(got.astype(np.float32), want, atol=2**-6)


def test_an_unknown_implementation_is_refused():
  with pytest.raises(ValueError, match="'fast'.*reference"):
    attention(*draw(), implementation='fast')


@pytest.mark.full
@pytest.mark.parametrize('tokens', [512, 300])
@pytest.mark.parametrize('masked', [False, True])
def test_splash_equals_the_reference(tokens, masked):
  from mirage_jax.ops.attention import splash  # Pallas is slow to import.

  rng = np.random.default_rng(0)
  shapes = ((2, n, 2, 128) for n in (300, tokens, tokens))
  args = [rng.standard_normal(shape, np.float32) for shape in shapes]
  mask = rng.random((2, tokens)) < np.array([[0.5], [0]]) if masked else None

  def total(fn, *args):
    return jnp.sum(jnp.sin(fn(*args, mask)))

  run = functools.partial(splash.attention, interpret=True)
  grads = [
    jax.jit(jax.value_and_grad(functools.partial(total, fn), (0, 1, 2)))(*args)
    for fn in (run, reference.attention)
  ]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *grads)
