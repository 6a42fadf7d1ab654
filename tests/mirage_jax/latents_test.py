"""Normalisation and chunks around the autoencoder; see vae_test for itself."""

import jax
import numpy as np
import pytest

from mirage_jax import config, latents
from mirage_jax.vae import Vae, VaeConfig
from tests import tiny

UNIT = {'mean': np.zeros(3, np.float32), 'std': np.ones(3, np.float32)}
STATS = {
  'mean': np.array([0.5, -1.0, 2.0], np.float32),
  'std': np.array([2.0, 0.5, 4.0], np.float32),
}


@pytest.fixture(scope='module')
def vae():
  return Vae(config.build(VaeConfig, tiny.VAE)), tiny.vae_params()


@pytest.fixture(scope='module')
def frames():
  return tiny.clip_record(0, 75)['frames']


def test_pixels_survive_the_way_to_floats_and_back():
  pixels = np.arange(256, dtype=np.uint8)
  floats = latents.to_float(jax.numpy.asarray(pixels))
  assert floats.min() == -1 and floats.max() == 1
  np.testing.assert_array_equal(latents.to_uint8(floats), pixels)
  beyond = jax.numpy.array([-7.0, 7.0, 0.0])
  assert latents.to_uint8(beyond).tolist() == [0, 255, 128]


def test_statistics_are_those_of_each_channel():
  rng = np.random.default_rng(0)
  values = rng.normal([5, -3], [0.1, 9], (40, 50, 2)).astype(np.float32)
  stats = latents.channel_stats(values)
  np.testing.assert_allclose(stats['mean'], values.mean((0, 1)), rtol=1e-4)
  np.testing.assert_allclose(stats['std'], values.std((0, 1)), rtol=1e-4)
  assert all(x.dtype == np.float32 and x.shape == (2,) for x in stats.values())


def test_latents_are_normalised_and_restored(vae, frames):
  raw = latents.encode_video(*vae, UNIT, frames[:25])
  normalised = latents.encode_video(*vae, STATS, frames[:25])
  np.testing.assert_allclose(
    normalised, (raw - STATS['mean']) / STATS['std'], atol=1e-5
  )
  image = latents.encode_image(*vae, STATS, frames[0])
  # The first latent of a chunk is its first frame alone.
  np.testing.assert_allclose(image, normalised[:1], atol=1e-5)
  a = latents.decode_video(*vae, UNIT, raw)
  b = latents.decode_video(*vae, STATS, normalised)
  np.testing.assert_allclose(a, b, atol=1)


def test_chunks_are_coded_on_their_own(vae, frames):
  whole = latents.encode_video(*vae, STATS, frames)
  assert whole.shape == (15, 2, 2, 3) and whole.dtype == np.float32
  parts = [
    latents.encode_video(*vae, STATS, frames[i : i + 25]) for i in (0, 25, 50)
  ]
  np.testing.assert_array_equal(whole, np.concatenate(parts))
  back = latents.decode_video(*vae, STATS, whole)
  assert back.shape == frames.shape and back.dtype == np.uint8
  last = latents.decode_video(*vae, STATS, whole[10:])
  np.testing.assert_array_equal(back[50:], last)


@pytest.mark.parametrize('count', [0, 24, 26])
def test_parts_of_chunks_are_refused(vae, count):
  frames = np.zeros((count, 16, 16, 3), np.uint8)
  with pytest.raises(ValueError, match=f'{count} frames are not a multiple'):
    latents.encode_video(*vae, UNIT, frames)
  with pytest.raises(ValueError, match='are not a multiple of 5'):
    latents.decode_video(*vae, UNIT, np.zeros((count % 10, 2, 2, 3)))
