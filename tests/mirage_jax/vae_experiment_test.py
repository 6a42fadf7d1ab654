"""The autoencoder's objective: weights of motion, and a gradient for all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.mirage import grid
from mirage_jax import config as config_lib, vae_experiment
from mirage_jax.vae import Vae, VaeConfig
from tests import tiny


@pytest.fixture(scope='module')
def frames():
  """A still picture in which one corner flickers."""
  clip = np.repeat(tiny.picture()[None, None] // 2, 7, axis=1)
  rng = np.random.default_rng(0)
  clip[:, :, :5, :5] = rng.integers(0, 256, (1, 7, 5, 5, 3))
  return clip.astype(np.uint8)


def test_what_moves_counts_more_and_the_mean_is_one(frames):
  x = frames.astype(np.float32) / 127.5 - 1
  weights = vae_experiment.motion_weights(jnp.asarray(x), 8.0)
  assert weights.shape == (1, 7, 16, 16, 1)
  assert float(weights.mean()) == pytest.approx(1, abs=1e-4)
  assert weights[0, :, 2, 2, 0].mean() > 3
  # Far from any motion, a pixel still counts for 1 / (1 + motion).
  np.testing.assert_allclose(weights[0, :, 12, 12, 0], 1 / 9, atol=1e-4)
  # A frame counts by how far it is from the rest: here one of seven.
  flash = np.zeros((1, 7, 16, 16, 3), np.float32)
  flash[:, 3] = 1.0
  weights = vae_experiment.motion_weights(jnp.asarray(flash), 8.0)
  far = 9 * np.asarray(weights)[0, :, 8, 8, 0] - 1
  np.testing.assert_allclose(far[3], 6 * far[0], rtol=1e-3)
  none = vae_experiment.motion_weights(jnp.asarray(x), 0.0)
  np.testing.assert_allclose(none, 1)
  still = vae_experiment.motion_weights(jnp.ones((1, 7, 16, 16, 3)), 8.0)
  assert np.isfinite(still).all()


@pytest.fixture(scope='module')
def gradient(frames):
  """(loss, metrics), gradients by parameter, and the model's own output."""
  model, params = Vae(config_lib.build(VaeConfig, tiny.VAE)), tiny.vae_params()
  loss = functools.partial(
    vae_experiment.objective, model=model, kl_weight=0.5, motion=0.0, square=5.0
  )
  key = jax.random.key(0)
  grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
  value, grads = grad(params, frames, key)
  x = frames.astype(np.float32) / 127.5 - 1
  out = jax.jit(model.apply)({'params': params}, x, key)
  return value, grads, (x, *out)


def test_the_loss_is_reconstruction_and_divergence(gradient):
  (loss, metrics), _, (x, y, mean, logvar) = gradient
  error = np.abs(y - x)
  expected = (error + 5.0 * error**2).mean()
  assert metrics['reconstruction'] == pytest.approx(expected, rel=1e-4)
  kl = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).mean()
  assert metrics['kl'] == pytest.approx(float(kl), rel=1e-4)
  assert loss == pytest.approx(expected + 0.5 * float(kl), rel=1e-4)
  # Decibels of the full range, of what can be shown.
  mse = np.square(np.clip(y, -1, 1) - x).mean()
  assert metrics['psnr'] == pytest.approx(10 * np.log10(4 / mse), rel=1e-4)


def test_the_gradient_reaches_every_parameter(gradient):
  _, grads, _ = gradient
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    assert np.isfinite(g).all() and np.abs(g).max() > 0, path


def config():
  made = grid.get_config('vae')
  made.data.update(size=16, num_frames=7)
  made.vae.update(
    {k: tuple(v) if isinstance(v, list) else v for k, v in tiny.VAE.items()}
  )
  return tiny.plain(made)


def test_the_recipe_builds_and_its_state_has_an_average():
  exp = vae_experiment.make(config())
  state = jax.eval_shape(exp.init, jax.random.key(0))
  assert jax.tree.structure(state.params) == jax.tree.structure(state.ema)
  batch = vae_experiment.abstract_batch(config(), 1)
  assert batch['frames'].shape == (1, 7, 16, 16, 3)


def test_a_frozen_encoder_stays_while_the_decoder_learns(frames):
  frozen = config() | {'freeze_encoder': True}
  frozen['optimizer'] |= {'warmup_steps': 0}
  exp = vae_experiment.make(frozen)
  state = jax.jit(exp.init)(jax.random.key(0))
  batch = {'frames': jnp.asarray(frames)}
  after, _ = jax.jit(exp.train_step)(state, batch, jax.random.key(1))
  for tree in ('params', 'ema'):
    before, now = getattr(state, tree), getattr(after, tree)
    jax.tree.map(
      np.testing.assert_array_equal, before['encoder'], now['encoder']
    )
    moved = jax.tree.map(
      lambda a, b: np.abs(a - b).max(), before['decoder'], now['decoder']
    )
    assert all(x > 0 for x in jax.tree.leaves(moved))


def test_a_misspelt_key_names_its_neighbour():
  wrong = config()
  wrong['vae']['latent_chanels'] = 3
  with pytest.raises(ValueError, match="did you mean 'latent_channels'"):
    vae_experiment.make(wrong)
