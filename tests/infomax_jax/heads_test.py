"""Classifiers against the authors', and what labels may not reach."""

import functools

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from infomax_jax import config, encoder, heads
from tests.infomax_jax import golden

TINY = config.EncoderConfig(9, 2, 4, 1)


@pytest.mark.parametrize('name', golden.NAMES)
def test_logits_and_losses_are_the_authors(name):
  case = golden.case(name)
  r1 = [case.arrays[f'eval/r1_{view}'][..., 0, 0] for view in ('x1', 'x2')]
  logits = jax.jit(case.heads.apply)(case.weights.heads, np.concatenate(r1))
  labels = np.concatenate([case.arrays['labels']] * 2)
  loss = jax.jit(functools.partial(heads.loss, cfg=case.heads_cfg))
  for got, head in ((logits.mlp, 'mlp'), (logits.linear, 'lin')):
    want = case.arrays[f'eval/logits_{head}']
    np.testing.assert_allclose(got, want, atol=2e-5)
    want = case.arrays[f'eval/xent_{head}']
    np.testing.assert_allclose(loss(got, labels), want, atol=1e-5)


def test_no_label_reaches_the_encoder():
  """Nor does it with the stop taken out: then it would."""
  model, cfg = encoder.Encoder(TINY), config.HeadsConfig(3, hidden=4)
  classifiers = heads.Heads(cfg)
  keys = jax.random.split(jax.random.key(0), 4)
  x = jax.random.normal(keys[0], (6, 9, 9, 3))
  labels = jnp.array([0, 1, 2, -1, 1, 0])

  @jax.jit
  def grads(variables, classifier_variables):
    def loss(params, classifier_params):
      features = model.apply({**variables, 'params': params}, x)
      inputs = classifier_variables | {'params': classifier_params}
      logits, _ = classifiers.apply(
        inputs,
        features.r1,
        train=True,
        rngs={'dropout': keys[3]},
        mutable=['batch_stats'],
      )
      each = [heads.loss(y, labels, cfg) for y in jax.tree.leaves(logits)]
      return sum(each), features.r1

    both = (variables['params'], classifier_variables['params'])
    return jax.grad(loss, (0, 1), has_aux=True)(*both)

  variables = jax.jit(model.init)(keys[1], x)
  start = jax.jit(classifiers.init)(keys[2], jnp.ones((1, 4)))
  (to_encoder, to_heads), r1 = grads(*nn.unbox((variables, start)))
  assert all(not g.any() for g in jax.tree.leaves(to_encoder))
  assert all(g.any() for g in jax.tree.leaves(to_heads))
  assert r1.any()


def test_rows_without_a_label_count_in_the_regulariser_alone():
  cfg = config.HeadsConfig(3)
  logits = jnp.array([[1.0, 2.0, 30.0], [5.0, -5.0, 0.0]])
  clipped = 10 * np.tanh(np.asarray(logits, np.float64) / 10)
  fit = np.log(np.exp(clipped[0]).sum()) - clipped[0, 1]
  square = 1e-3 * np.square(np.asarray(logits, np.float64)).mean()
  loss = functools.partial(heads.loss, cfg=cfg)
  got = loss(logits, jnp.array([1, -1]))
  np.testing.assert_allclose(got, fit + square, rtol=1e-5)
  got = loss(logits, jnp.array([-1, -1]))
  np.testing.assert_allclose(got, square, rtol=1e-5)


def test_the_mlp_drops_and_the_linear_head_does_not():
  cfg = config.HeadsConfig(3, hidden=8, random_scale=True)
  module = heads.Heads(cfg)
  r1 = jax.random.normal(jax.random.key(0), (4, 5))

  @jax.jit
  def run(key):
    variables = module.init(jax.random.key(1), r1)
    logits, _ = module.apply(
      variables, r1, train=True, rngs={'dropout': key}, mutable=['batch_stats']
    )
    return logits, nn.unbox(variables)['params']['norm']['scale']

  (first, scale), (second, _) = map(run, jax.random.split(jax.random.key(2)))
  assert jnp.abs(first.mlp - second.mlp).max() > 1e-3
  np.testing.assert_array_equal(first.linear, second.linear)
  assert 0 < scale.min() < 0.5 < scale.max() < 1
