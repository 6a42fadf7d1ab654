import functools

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mirage_jax import flow, sampler, schedules, solvers
from mirage_jax.guidance import Guidance, Weight

NOISE = jax.random.normal(jax.random.key(0), (2, 3, 2, 2, 1))
SIGMAS, TABLE = flow.linear_quadratic(8), flow.linear_quadratic(96)
STD = 0.4
COND = {'audio': jnp.zeros((2, 4, 1))}


def towards(data):
  """The exact velocity of a flow whose data is one point."""
  return lambda x, sigma, cond: (data - x) / sigma[:, None, None, None, None]


def test_straight_paths_are_integrated_exactly():
  data = jnp.full(NOISE.shape, 0.3)
  got = jax.jit(lambda x: sampler.sample(towards(data), {}, x, SIGMAS))(NOISE)
  np.testing.assert_allclose(got, data, atol=1e-5)


def test_a_linear_field_gives_eulers_product():
  field = lambda x, sigma, cond: -2.0 * x
  got = sampler.sample(field, {}, NOISE, SIGMAS)
  steps = -np.diff(SIGMAS.astype(np.float64))
  np.testing.assert_allclose(got, NOISE * np.prod(1 - 2 * steps), rtol=1e-5)


@pytest.mark.parametrize('solver', solvers.NAMES)
def test_a_python_loop_over_steps_is_the_same(solver):
  field = lambda x, sigma, cond: jnp.cos(3 * x)
  step = jax.jit(sampler.make_step(field, {}, NOISE, solver=solver))
  state = NOISE  # Or solvers.get(solver).start(NOISE).
  for sigma, after in zip(SIGMAS[:-1], SIGMAS[1:], strict=True):
    state = step(state, sigma, after)
  want = sampler.sample(field, {}, NOISE, SIGMAS, solver=solver)
  np.testing.assert_allclose(state.x, want, atol=1e-6)


def gaussian(mean, x, sigma):
  """The exact velocity of data that is N(mean, STD^2)."""
  sigma = sigma[:, None, None, None, None]
  alpha = 1 - sigma
  part = (alpha * STD**2 - sigma) / (alpha**2 * STD**2 + sigma**2)
  return mean + part * (x - alpha * mean)


def spoken(x, sigma, cond):
  """Mean 0.2, and 0.5 more with sound."""
  there = cond['audio_mask'].any(1)[:, None, None, None, None]
  return gaussian(0.2 + 0.5 * there, x, sigma)


@pytest.mark.parametrize('solver', solvers.NAMES)
def test_guidance_moves_a_gaussian_by_its_weight(solver):
  """u + w (c - u) of N(m_u, s^2) and N(m_c, s^2) is the flow to the Gaussian
  around m_u + w (m_c - m_u), so the sample is known, too."""
  run = functools.partial(
    sampler.sample, spoken, {'audio': COND['audio']}, solver=solver
  )
  got = jax.jit(lambda x: run(x, TABLE, Guidance(audio=3.0)))(NOISE)
  np.testing.assert_allclose(got, 0.2 + 3 * 0.5 + STD * NOISE, atol=0.06)
  # A schedule: the mean is one of a linear equation, d(m / spread) / dsigma.
  weight = Weight(3.0, schedules.Cosine())
  got = jax.jit(lambda x: run(x, TABLE, Guidance(audio=weight)))(NOISE)
  np.testing.assert_allclose(got, scheduled() + STD * NOISE, atol=0.06)


def scheduled():
  """Where the mean ends under the cosine, by fine quadrature in float64.

  x' = -(m + c (x - alpha m)), with c = (log of the spread)' backwards, has the
  solution x / spread = noise + the integral of m (c alpha - 1) / spread.
  """
  sigma = np.linspace(1, 0, 200_001)
  table = TABLE.astype(np.float64)
  done = np.interp(sigma, table[::-1], np.linspace(1, 0, len(table)))
  mean = 0.2 + 0.5 * (1 + 2 * (1 + np.cos(np.pi * done)) / 2)
  alpha = 1 - sigma
  spread = np.sqrt(alpha**2 * STD**2 + sigma**2)
  part = (alpha * STD**2 - sigma) / spread**2
  slope = mean * (part * alpha - 1) / spread
  return STD * np.trapezoid(slope, sigma)


@pytest.mark.parametrize('solver', solvers.NAMES)
def test_known_frames_follow_their_own_path(solver):
  known = jnp.full(NOISE.shape, 5.0)
  mask = jnp.array([[True, False, False], [False, False, True]])
  seen = []

  def field(x, sigma, cond):
    jax.debug.callback(lambda *pair: seen.append(pair), x, sigma)
    return towards(jnp.ones(NOISE.shape))(x, sigma, cond)

  state = sampler.sample(
    field, {}, NOISE, SIGMAS, known=known, known_mask=mask, solver=solver
  )
  jax.effects_barrier()
  assert len(seen) >= len(SIGMAS) - 1
  for x, sigma in seen:  # Heun looks at the end of a step, too.
    path = (1 - sigma[0]) * known + sigma[0] * NOISE
    np.testing.assert_allclose(x[mask], path[mask], rtol=1e-6)
  end = known[mask] + SIGMAS[-1] * NOISE[mask]
  np.testing.assert_array_equal(state[mask], end)
  np.testing.assert_allclose(state[~mask], 1, atol=1e-5)


def test_known_needs_its_mask():
  with pytest.raises(ValueError, match='together'):
    sampler.make_step(spoken, COND, NOISE, known=NOISE)


def test_a_cosine_needs_the_table():
  guidance = Guidance(audio=Weight(2.0, schedules.Cosine()))
  with pytest.raises(ValueError, match='sigmas must be given'):
    sampler.make_step(spoken, COND, NOISE, guidance)


def test_solvers_are_named():
  with pytest.raises(ValueError, match="no solver 'rk4'"):
    sampler.sample(spoken, COND, NOISE, SIGMAS, solver='rk4')
