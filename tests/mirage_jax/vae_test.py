"""The VAE: shapes, causality, chunks, and that it is Mochi's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirage_jax import latents
from mirage_jax.vae import FrameNorm, Vae, VaeConfig

TINY = VaeConfig(
  encoder_channels=4,
  decoder_channels=4,
  multipliers=(1, 2, 2, 2),
  encoder_blocks=(0, 0, 1, 0, 1),
  decoder_blocks=(0, 1, 0, 1, 0),
  encoder_attention=(False, False, False, False, True),
  latent_channels=3,
  norm_groups=2,
  head_dim=4,
)


@pytest.fixture(scope='module')
def model():
  vae = Vae(TINY)
  key = jax.random.key(0)
  params = jax.jit(vae.init)(key, jnp.zeros((1, 25, 16, 16, 3)), key)['params']
  # The residual branches start at zero; give every parameter a say.
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  leaves = [
    x + 0.1 * jax.random.normal(k, x.shape)
    for x, k in zip(leaves, keys, strict=True)
  ]
  return vae, jax.tree.unflatten(tree, leaves)


@pytest.fixture(scope='module')
def frames():
  shape = (25, 16, 16, 3)
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


UNIT = {'mean': np.zeros(3, np.float32), 'std': np.ones(3, np.float32)}


def test_a_chunk_is_five_latents_and_back(model, frames):
  vae, params = model
  z = latents.encode_video(vae, params, UNIT, frames)
  assert z.shape == (5, 2, 2, 3)
  assert latents.decode_video(vae, params, UNIT, z).shape == frames.shape


def test_seven_repeats_make_two_latents_and_one_makes_one(model, frames):
  vae, params = model
  for repeats, expected in ((7, 2), (1, 1)):
    z = latents.encode_image(vae, params, UNIT, frames[0], repeats)
    assert z.shape == (expected, 2, 2, 3)


def test_encoder_and_decoder_never_look_ahead(model, frames):
  """Frame n may change latent (n + 5) // 6 and later ones, none before."""
  vae, params = model
  x = jnp.asarray(latents.to_float(frames))[None]
  encode = jax.jit(
    lambda x: vae.apply({'params': params}, x, method='encode')[0]
  )
  decode = jax.jit(lambda z: vae.apply({'params': params}, z, method='decode'))
  z = encode(x)
  for n in (0, 1, 7, 12, 24):
    moved = encode(x.at[:, n].add(0.5))
    changed = np.flatnonzero(np.abs(moved - z).max((0, 2, 3, 4)) > 1e-6)
    assert changed[0] == (n + 5) // 6
  y = decode(z)
  for f in (0, 1, 3):
    moved = decode(z.at[:, f].add(0.5))
    changed = np.flatnonzero(np.abs(moved - y).max((0, 2, 3, 4)) > 1e-6)
    assert changed[0] == (0 if f == 0 else 6 * f - 5)


def test_latents_are_normalised_per_channel(model, frames):
  vae, params = model
  z = latents.encode_video(vae, params, UNIT, frames)
  stats = latents.channel_stats(z)
  normal = latents.encode_video(vae, params, stats, frames)
  np.testing.assert_allclose(normal.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(normal.std((0, 1, 2)), 1, atol=1e-4)
  direct = latents.decode_video(vae, params, UNIT, z)
  again = latents.decode_video(vae, params, stats, normal)
  assert np.abs(direct.astype(int) - again).max() <= 1


def test_partial_chunks_are_refused(model, frames):
  vae, params = model
  with pytest.raises(ValueError, match='24 frames are not a multiple of 25'):
    latents.encode_video(vae, params, UNIT, frames[:24])
  with pytest.raises(ValueError, match='4 latents are not a multiple of 5'):
    latents.decode_video(vae, params, UNIT, np.zeros((4, 2, 2, 3)))


def test_frame_norm_is_group_norm_of_every_frame():
  x = np.random.default_rng(1).normal(2, 3, (2, 3, 4, 5, 6)).astype(np.float32)
  norm = FrameNorm(2)
  params = {
    'scale': np.arange(1.0, 7, dtype=np.float32),
    'bias': np.arange(6, dtype=np.float32),
  }
  got = norm.apply({'params': params}, x)
  groups = x.astype(np.float64).reshape(2, 3, 4, 5, 2, 3)
  mean = groups.mean((2, 3, 5), keepdims=True)
  std = np.sqrt(groups.var((2, 3, 5), keepdims=True) + 1e-5)
  want = ((groups - mean) / std).reshape(x.shape)
  want = want * params['scale'] + params['bias']
  np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_config_errors_name_the_field():
  with pytest.raises(ValueError, match='encoder_blocks needs 5 entries'):
    VaeConfig(encoder_blocks=(1, 1))
