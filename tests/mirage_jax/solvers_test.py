"""Solvers against distributions whose flow has a closed form, in float64."""

import math

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mirage_jax import flow, solvers

MEAN, STD = 0.7, 0.4
NOISE = np.linspace(-2.5, 2.5, 21)
ORDERS = {'euler': 1, 'heun': 2, 'dpmpp_2m': 2}


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def table(num_steps):
  return flow.linear_quadratic(num_steps).astype(np.float64)


def gaussian(x, sigma):
  """The exact velocity where the data is N(MEAN, STD^2)."""
  alpha = 1 - sigma
  part = (alpha * STD**2 - sigma) / (alpha**2 * STD**2 + sigma**2)
  return MEAN + part * (x - alpha * MEAN)


WEIGHTS, MEANS = np.array([0.3, 0.7]), np.array([-1.0, 0.8])


def mixture(x, sigma):
  """The exact velocity of two Gaussians: their mean by responsibility."""
  alpha = 1 - sigma
  variance = alpha**2 * STD**2 + sigma**2
  away = x[:, None] - alpha * MEANS[None]
  logits = jnp.log(WEIGHTS)[None] - away**2 / (2 * variance)
  share = jax.nn.softmax(logits, axis=1)
  part = (alpha * STD**2 - sigma) / variance
  return jnp.sum(share * (MEANS[None] + part * away), axis=1)


def normal_cdf(x):
  return 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def solve(name, velocity, sigmas, noise=NOISE):
  solver = solvers.get(name)

  @jax.jit
  def run(noise):
    def body(state, pair):
      return solver.step(velocity, state, *pair), None

    pairs = jnp.asarray(sigmas[:-1]), jnp.asarray(sigmas[1:])
    return jax.lax.scan(body, solver.start(noise), pairs)[0].x

  return np.asarray(run(jnp.asarray(noise)))


def spread(sigma):
  """Standard deviation of one Gaussian at a noise level."""
  return np.sqrt((1 - sigma) ** 2 * STD**2 + sigma**2)


def order(errors):
  return np.log2(np.divide(errors[:-1], errors[1:]))


@pytest.mark.parametrize('name', solvers.NAMES)
def test_the_order_on_a_gaussian(name):
  """Its path is known: x = (1 - sigma) * MEAN + spread(sigma) * noise."""
  start, want = ((1 - s) * MEAN + spread(s) * NOISE for s in (0.9, 0.1))
  errors = []
  for num_steps in (20, 40, 80):
    sigmas = np.linspace(0.9, 0.1, num_steps + 1)
    errors.append(np.abs(solve(name, gaussian, sigmas, start) - want).max())
  assert np.all(np.abs(order(errors) - ORDERS[name]) < 0.2), order(errors)


@pytest.mark.parametrize('name', solvers.NAMES)
def test_the_order_on_a_mixture(name):
  """In one dimension a flow keeps quantiles: the exact map is known."""

  def quantiles(x, sigma):
    parts = normal_cdf((x[:, None] - (1 - sigma) * MEANS) / spread(sigma))
    return parts @ WEIGHTS

  start = np.linspace(-2, 2, 21)
  want, errors = quantiles(start, 0.9), []
  for num_steps in (40, 80, 160):
    x = solve(name, mixture, np.linspace(0.9, 0.1, num_steps + 1), start)
    errors.append(np.abs(quantiles(x, 0.1) - want).max())
  assert errors[-1] < 0.02
  assert np.all(np.abs(order(errors) - ORDERS[name]) < 0.3), order(errors)


@pytest.mark.parametrize('name', solvers.NAMES)
def test_from_noise_to_data(name):
  """The whole way, with both ends, where logarithms are infinite."""
  got = solve(name, gaussian, table(64))
  error = np.abs(got - (MEAN + STD * NOISE)).max()
  assert error < {'euler': 0.1, 'heun': 0.015, 'dpmpp_2m': 0.015}[name]


@pytest.mark.parametrize('num_steps', [2, 3, 8])
@pytest.mark.parametrize('name', solvers.NAMES)
def test_straight_paths_are_exact_in_any_number_of_steps(name, num_steps):
  data = np.cos(NOISE)
  towards = lambda x, sigma: (data - x) / sigma
  got = solve(name, towards, table(num_steps))
  np.testing.assert_allclose(got, data, atol=1e-9)


def test_two_steps_of_dpm_solver_by_hand():
  """From Lu et al.'s own symbols: e^-h, r, and the data D at two points."""
  solver = solvers.get('dpmpp_2m')
  sigmas = np.array([0.8, 0.6, 0.35])
  state = solver.start(jnp.asarray(NOISE))
  seen = [NOISE]
  for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
    state = solver.step(gaussian, state, sigma, after)
    seen.append(np.asarray(state.x))
  first, second = (
    np.asarray(x + s * gaussian(x, s))
    for x, s in zip(seen[:2], sigmas[:2], strict=True)
  )
  half_log_snr = np.log((1 - sigmas) / sigmas)
  h1, h2 = np.diff(half_log_snr)
  one = 0.6 / 0.8 * NOISE - (1 - 0.6) * np.expm1(-h1) * first
  np.testing.assert_allclose(seen[1], one, rtol=1e-12)
  r = h1 / h2
  blend = (1 + 1 / (2 * r)) * second - 1 / (2 * r) * first
  two = 0.35 / 0.6 * one - (1 - 0.35) * np.expm1(-h2) * blend
  np.testing.assert_allclose(seen[2], two, rtol=1e-12)


@pytest.mark.parametrize(
  ('name', 'count'), [('euler', 6), ('heun', 11), ('dpmpp_2m', 6)]
)
def test_how_often_the_network_runs_and_never_at_sigma_0(name, count):
  seen = []

  def velocity(x, sigma):
    jax.debug.callback(lambda s: seen.append(float(s)), sigma)
    return gaussian(x, sigma)

  solve(name, velocity, table(6))
  jax.effects_barrier()
  assert len(seen) == count
  assert min(seen) > 0 and max(seen) == 1


def modes(means, std):
  """The velocity of Gaussians of one size around the means [K D]."""

  def velocity(x, sigma):
    alpha = 1 - sigma
    variance = alpha**2 * std**2 + sigma**2
    away = x[:, None] - alpha * means[None]
    logits = -jnp.sum(away**2, -1) / (2 * variance)
    share = jax.nn.softmax(logits, axis=1)[..., None]
    part = (alpha * std**2 - sigma) / variance
    return jnp.sum(share * (means[None] + part * away), axis=1)

  return velocity


def adams_bashforth(velocity, x, sigmas):
  past, last = velocity(x, sigmas[0]), np.inf
  for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
    v, step = velocity(x, sigma), sigma - after
    x, past, last = x + step * (v + step / last / 2 * (v - past)), v, step
  return np.asarray(x)


def test_few_long_strongly_guided_steps_do_not_overshoot():
  """Why DPM-Solver++ and not Adams-Bashforth, which has the same order."""
  rng = np.random.default_rng(0)
  means, noise = rng.normal(size=(6, 16)), rng.normal(size=(64, 16))
  some, every = modes(means[:2], 0.3), modes(means, 0.3)
  guided = lambda x, s: every(x, s) + 4 * (some(x, s) - every(x, s))
  exact = solve('heun', guided, table(1024), noise)
  distance = lambda x: np.sqrt(np.mean((x - exact) ** 2))
  errors = {
    (name, count): distance(solve(name, guided, table(count), noise))
    for name in ('euler', 'dpmpp_2m')
    for count in (8, 32)
  }
  assert errors['dpmpp_2m', 8] < 1.1 * errors['euler', 8]
  assert errors['dpmpp_2m', 32] < 0.6 * errors['euler', 32]
  bashforth = adams_bashforth(jax.jit(guided), noise, table(8))
  assert distance(bashforth) > 5 * errors['dpmpp_2m', 8]


def test_a_solver_that_is_not_there():
  with pytest.raises(ValueError, match="'rk4'; give one of .*'euler', 'heun'"):
    solvers.get('rk4')
