"""Distillation where the flow's map is known: Gaussians under guidance."""

import functools

import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest

from mirage_jax import config, distil, flow, sampler
from mirage_jax.guidance import Guidance

STD, MEAN, MORE, WEIGHT = 0.4, 0.2, 0.5, 3.0
GUIDED = MEAN + WEIGHT * MORE  # The mean that guidance leads to.
TABLE = flow.linear_quadratic(64)
CFG = distil.DistilConfig(Guidance(audio=WEIGHT), (40, 52, 58))
STOPS = distil.stops(CFG, 64)
SIGMAS = TABLE[np.array(STOPS)]
NOISE = jax.random.normal(jax.random.key(0), (3, 2, 2, 2, 1))
PLAIN = config.FlowConfig()
WEIGHED = config.FlowConfig(motion_weight=1.0)
COND = {'audio': jnp.zeros((3, 4, 1)), 'audio_mask': jnp.ones((3, 4), bool)}


def slope(x, mean, sigma):
  """The exact velocity of data that is N(mean, STD^2)."""
  alpha = 1 - sigma
  part = (alpha * STD**2 - sigma) / (alpha**2 * STD**2 + sigma**2)
  return mean + part * (x - alpha * mean)


def teacher(x, sigma, cond):
  there = cond['audio_mask'].any(1)[:, None, None, None, None]
  return slope(x, MEAN + MORE * there, sigma[:, None, None, None, None])


def spread(sigma):
  return np.sqrt((1 - sigma) ** 2 * STD**2 + sigma**2)


@pytest.fixture(scope='module')
def points():
  run = jax.jit(functools.partial(distil.trajectory, teacher, sigmas=TABLE))
  return run(COND, NOISE, guidance=CFG.guidance)


def test_the_trajectory_is_eulers_in_float64(points):
  x = np.asarray(NOISE, np.float64)
  want = [x]
  for sigma, after in zip(TABLE[:-1], TABLE[1:], strict=True):
    with_sound, without = (
      slope(x, mean, np.float64(sigma)) for mean in (MEAN + MORE, MEAN)
    )
    v = without + WEIGHT * (with_sound - without)
    x = x + (np.float64(sigma) - after) * v
    want.append(x)
  assert points.shape == (3, 65, *NOISE.shape[1:])
  np.testing.assert_allclose(points, np.stack(want, 1), rtol=1e-4, atol=1e-5)


def test_the_trajectory_follows_the_flow_under_guidance(points):
  """Guidance by weight w leads to the Gaussian around u + w (c - u)."""
  for at, sigma in enumerate(TABLE):
    want = (1 - sigma) * GUIDED + spread(sigma) * NOISE
    np.testing.assert_allclose(points[:, at], want, atol=0.08)


def student(params, x, sigma, cond):
  """Of each of its steps the best line: here the truth is one."""
  at = jnp.abs(sigma[:, None] - SIGMAS[None, :-1]).argmin(1)
  scale, shift = (p[at][:, None, None, None, None] for p in params)
  return scale * x + shift


def test_the_loss_is_zero_at_the_flows_map_and_nowhere_near(points):
  points = points[:, np.array(STOPS)]
  x = np.asarray(points, np.float64)
  starts, ends = x[:, :-1], x[:, 1:]
  lengths = (SIGMAS[:-1] - SIGMAS[1:])[None, :, None, None, None, None]
  exact = (ends - starts) / lengths
  fit = [
    np.polyfit(starts[:, k].ravel(), exact[:, k].ravel(), 1) for k in range(4)
  ]
  params = jnp.array(fit, jnp.float32).T
  bind = lambda p: functools.partial(student, p)
  total, each = distil.loss(bind(params), points, COND, SIGMAS, PLAIN)
  assert total < 1e-6 and each.shape == (4,)
  off = params + jnp.array([[0.0], [1.0]]) * jnp.array([0.1, 0, 0, 0.2])[None]
  total, each = distil.loss(bind(off), points, COND, SIGMAS, PLAIN)
  np.testing.assert_allclose(each, [0.01, 0, 0, 0.04], atol=1e-4)
  np.testing.assert_allclose(total, each.mean(), rtol=1e-6)


def test_four_steps_of_the_trained_student_reach_the_teachers_end(points):
  sigmas = distil.student_sigmas(CFG, config.FlowConfig(num_steps=64))
  np.testing.assert_array_equal(sigmas, SIGMAS)
  tx = optax.adam(0.05)

  def update(carry, key):
    params, state = carry
    noise = jax.random.normal(key, NOISE.shape)
    path = distil.trajectory(teacher, COND, noise, TABLE, CFG.guidance)
    path = path[:, np.array(STOPS)]

    def loss_fn(params):
      bound = functools.partial(student, params)
      return distil.loss(bound, path, COND, SIGMAS, WEIGHED)[0]

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, state = tx.update(grads, state)
    return (optax.apply_updates(params, updates), state), loss

  params = jnp.zeros((2, 4))
  keys = jax.random.split(jax.random.key(1), 400)
  run = jax.jit(functools.partial(jax.lax.scan, update))
  (params, _), losses = run((params, tx.init(params)), keys)
  assert losses[-20:].mean() < 1e-3 * losses[:20].mean()
  bound = functools.partial(student, params)
  made = sampler.sample(bound, COND, NOISE, sigmas)
  np.testing.assert_allclose(made, points[:, -1], atol=0.02)
  np.testing.assert_allclose(made, GUIDED + STD * NOISE, atol=0.1)
  # The teacher itself in these steps, guided, goes elsewhere.
  plain = sampler.sample(teacher, COND, NOISE, sigmas, CFG.guidance)
  assert np.abs(plain - points[:, -1]).max() > 0.1


@pytest.mark.parametrize('kept', [(0, 4), (4, 4), (5, 3), (64,)])
def test_stops_must_rise(kept):
  with pytest.raises(ValueError, match='distil.kept must rise between 0 and'):
    distil.stops(distil.DistilConfig(Guidance(), kept), 64)
