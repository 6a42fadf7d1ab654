"""Equations 6 and 7 against float32 torch, and their identity."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from infomax_jax import mixture, nce
from tests.infomax_jax import golden


@pytest.fixture(scope='module')
def arrays():
  return golden.load('mixture')


@pytest.mark.parametrize('tau', [0.5, 1.0, 4.0])
def test_posterior_objective_and_gradients(arrays, tau):
  """By the closed form, and by equation 6 with the posterior held fixed."""
  want = golden.part(arrays, f'tau{tau}/')
  targets = arrays['f7'].transpose(0, 2, 1)

  def closed(mix):
    scores = nce.score(mix, targets).log_softmax
    return mixture.value(scores, tau).mean(), scores

  def fixed(mix):
    scores = nce.score(mix, targets).log_softmax
    q = jax.lax.stop_gradient(mixture.posterior(scores, tau))
    fit = (q * scores).sum(1) + mixture.entropy(q) / tau
    return fit.mean(), (q, mixture.entropy(q))

  def both(mix):
    return [jax.value_and_grad(f, has_aux=True)(mix) for f in (closed, fixed)]

  for (value, aux), grad in jax.jit(both)(arrays['mix']):
    np.testing.assert_allclose(value, want['objective'], atol=1e-5)
    limit = 1e-4 * np.abs(want['grad_mix']).max()
    np.testing.assert_allclose(grad, want['grad_mix'], atol=limit)
    if not isinstance(aux, tuple):
      np.testing.assert_allclose(aux, arrays['s_nce'], atol=1e-5)
    else:
      np.testing.assert_allclose(aux[0], want['q'], atol=1e-5)
      np.testing.assert_allclose(aux[1], want['entropy'], atol=1e-5)


def test_no_posterior_is_better_than_that_of_equation_7(arrays):
  scores, tau = jnp.asarray(arrays['s_nce']), 2.0
  best = mixture.value(scores, tau)
  for seed in range(5):
    noise = jax.random.normal(jax.random.key(seed), scores.shape)
    q = jax.nn.softmax(tau * scores + noise, axis=1)
    fit = (q * scores).sum(1) + mixture.entropy(q) / tau
    assert (fit < best).all()


def test_entropy_of_a_sure_posterior_is_zero():
  q = jnp.array([[[1.0, 0.5], [0.0, 0.5]]])
  np.testing.assert_allclose(mixture.entropy(q), [[0, np.log(2)]], atol=1e-7)


def test_components_start_apart_and_near_the_vector():
  module = mixture.Mixture(components=3, hidden=8)
  r1 = jax.random.normal(jax.random.key(0), (2, 5))

  @jax.jit
  def run(key, r1):
    variables = module.init(key, r1)
    return variables, module.apply(variables, r1)

  variables, parts = run(jax.random.key(1), r1)
  assert parts.shape == (2, 3, 5)
  assert jnp.abs(parts[:, 0] - parts[:, 1]).max() > 0.01
  silent = jax.tree.map(jnp.zeros_like, variables)
  out = module.apply(silent, r1)
  np.testing.assert_array_equal(out, jnp.repeat(r1[:, None], 3, 1))
