"""The T5 encoder without torch: sizes, masks, positions, precision."""

import dataclasses

from flax import linen as nn
import jax
import numpy as np
import pytest

from mirage_jax import dit
from mirage_jax.encoders import names, relative, t5, t5_names

CFG = t5.T5Config(16, 2, 2, 24, head_dim=8, vocab=20)


@pytest.fixture(scope='module')
def fitted():
  rng = np.random.default_rng(0)
  ids = rng.integers(0, 20, (2, 7)).astype(np.int32)
  model = t5.T5Encoder(CFG)
  # Compiling an initialiser takes longer than all the rest.
  draw = lambda x: 0.3 * rng.standard_normal(x.shape, np.float32)
  params = jax.tree.map(draw, nn.unbox(t5.abstract_params(CFG)))
  params = {'params': params}
  apply = jax.jit(lambda ids, mask: model.apply(params, ids, mask)[0])
  return ids, params, apply


def test_masked_ids_have_no_influence(fitted):
  ids, _, apply = fitted
  mask = np.arange(7)[None] < np.array([[4], [7]])
  other = np.where(mask, ids, 3)
  got, want = apply(other, mask), apply(ids, mask)
  np.testing.assert_array_equal(got[0, :4], want[0, :4])
  np.testing.assert_array_equal(got[1], want[1])
  assert np.abs(np.asarray(apply(other, None) - apply(ids, None))[0, :4]).max()


def test_equal_ids_at_other_places_differ_by_relative_position_only(fitted):
  ids, _, apply = fitted
  twice = np.tile(ids[:1], (2, 1))
  twice[1] = np.roll(twice[0], 1)
  mask = np.ones((2, 7), bool)
  mask[0, -1] = mask[1, 0] = False  # the same six ids, one place further
  got = np.asarray(apply(twice, mask))
  np.testing.assert_allclose(got[0, :6], got[1, 1:], rtol=1e-5, atol=1e-5)


def test_bfloat16_is_near(fitted):
  ids, params, apply = fitted
  want = np.asarray(apply(ids, None))
  cfg = dataclasses.replace(CFG, dtype='bfloat16')
  got, _ = jax.jit(t5.T5Encoder(cfg).apply)(params, ids)
  assert got.dtype == 'bfloat16'
  # Eight bits of mantissa, a few roundings in each of two blocks.
  error = np.abs(np.asarray(got, np.float32) - want).max()
  assert 0 < error < 0.05 * np.abs(want).max()


def test_buckets_are_the_papers():
  """Exact to 7, then by factors of 2 ** 0.5 (T5, section 2.1, 32 buckets)."""
  row = relative.buckets(200, 32, 128)[0]  # keys to the right: + 16
  starts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
  want = [16 + np.searchsorted(starts, d, 'right') - 1 for d in range(1, 200)]
  assert row.tolist() == [0, *want]
  np.testing.assert_array_equal(
    relative.buckets(200, 32, 128)[1:, 0], np.array(want) - 16
  )


@pytest.mark.parametrize('size', t5.SIZES)
def test_published_sizes_have_a_layout(size):
  cfg = t5.SIZES[size]
  ours = nn.unbox(t5.abstract_params(cfg))
  shapes = names.their_shapes(t5_names.places(cfg), ours)
  assert sum(np.prod(s) for s in shapes.values()) == dit.count_params(ours)
  if size == 't5_v1_1_xxl':
    # The encoder of 4.7 billion that image models condition on.
    assert dit.count_params(ours) == 4_762_310_656


def test_parameters_have_logical_axes():
  boxed = t5.abstract_params(CFG)
  kernel = boxed['blocks']['attn']['q']['kernel']
  assert kernel.names == ('layers', 'embed', 'heads', 'kv')
  assert boxed['table'].names == ('vocab', 'embed')
