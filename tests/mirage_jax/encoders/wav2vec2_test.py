"""wav2vec 2.0 and its kin without torch: sizes, masks, lengths."""

import functools

from flax import linen as nn
import jax
import numpy as np
import pytest

from mirage_jax import dit
from mirage_jax.encoders import names, wav2vec2, wav2vec2_names

CFG = wav2vec2.Wav2Vec2Config(
  width=8,
  depth=1,
  num_heads=2,
  mlp_dim=12,
  stable=True,
  conv_dim=4,
  kernels=(10, 3),
  strides=(5, 2),
  position_kernel=4,
  position_groups=2,
  num_buckets=8,
)


@pytest.fixture(scope='module')
def apply():
  rng = np.random.default_rng(0)
  draw = lambda x: 0.3 * rng.standard_normal(x.shape, np.float32)
  params = jax.tree.map(draw, nn.unbox(wav2vec2.abstract_params(CFG)))
  run = functools.partial(wav2vec2.Wav2Vec2(CFG).apply, {'params': params})
  return jax.jit(lambda wave, mask: run(wave, mask)[0])


def test_masked_samples_have_no_influence(apply):
  rng = np.random.default_rng(1)
  wave = rng.standard_normal((2, 203), np.float32)
  lengths = np.array([[95], [203]])
  mask = np.arange(203)[None] < lengths
  other = np.where(mask, wave, 5).astype(np.float32)
  got, want = np.asarray(apply(other, mask)), np.asarray(apply(wave, mask))
  # 95 samples make 8 whole features.
  assert CFG.num_features(95) == 8
  np.testing.assert_array_equal(got[0, :8], want[0, :8])
  np.testing.assert_array_equal(got[1], want[1])
  none = np.ones_like(mask)
  assert np.abs(np.asarray(apply(other, none) - apply(wave, none))[0, :8]).max()


def test_a_feature_is_20_ms_and_sees_25():
  cfg = wav2vec2.SIZES['wav2vec2_base']
  assert (cfg.stride, cfg.field) == (320, 400)
  assert cfg.num_features(399) == 0
  assert cfg.num_features(400) == 1
  assert cfg.num_features(16000) == 49


def test_a_wave_without_a_feature_is_refused():
  with pytest.raises(ValueError, match='too short'):
    jax.eval_shape(
      wav2vec2.Wav2Vec2(CFG).init, jax.random.key(0), np.zeros((1, 19))
    )


def test_sizes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='multiple of num_heads'):
    wav2vec2.Wav2Vec2Config(10, 1, 4, 16)
  with pytest.raises(ValueError, match='one length'):
    wav2vec2.Wav2Vec2Config(16, 1, 4, 16, kernels=(3,))


@pytest.mark.parametrize('size', wav2vec2.SIZES)
def test_published_sizes_have_a_layout(size):
  cfg = wav2vec2.SIZES[size]
  ours = nn.unbox(wav2vec2.abstract_params(cfg))
  shapes = names.their_shapes(wav2vec2_names.places(cfg), ours)
  count = sum(int(np.prod(s)) for s in shapes.values())
  assert count == dit.count_params(ours)
  published = {
    'wav2vec2_base': 94_371_712 - 768,  # without SpecAugment's embedding
    'wav2vec2_large_lv60': 315_438_720 - 1024,
  }
  assert count == published.get(size, count)
