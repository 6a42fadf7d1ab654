"""launch.aot --sample: the step is the sampler's."""

import json

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from configs.mirage import grid
from launch import aot_sampling
from launch.errors import UserError
from mirage_jax import cache, config as config_lib, flow, sampler
from mirage_jax.dit import Mirage


def small(variant='dit'):
  config = json.loads(grid.get_config(variant).to_json())
  config |= dict(batch_size=2, latent_size=[4, 4])
  if variant == 'dit':
    config['model'] |= dict(depth=2, dtype='bfloat16')
    config['data'] |= dict(num_chunks=1, text_length=2)
  return config


def test_two_steps_are_the_samplers_first_two():
  config = small()
  exp = aot_sampling.experiment(config)
  state = jax.jit(lambda key: nn.unbox(exp.init(key)))(jax.random.key(0))
  kernels = jax.tree.leaves(state.params)
  assert {x.dtype for x in kernels} == {jnp.dtype('bfloat16')}
  rng = np.random.default_rng(0)
  # Nowhere zero, as fresh gates are.
  draw = lambda x: jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype)
  state = state.replace(params=jax.tree.map(draw, state.params))
  shapes = aot_sampling.abstract_batch(config, 2)
  batch = {
    name: jnp.ones(x.shape, x.dtype)
    if jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == bool
    else draw(x)
    for name, x in shapes.items()
  }
  step = jax.jit(exp.train_step)
  ran = state
  for _ in range(2):
    ran, _ = step(ran, batch, jax.random.key(1))
  model = Mirage(config_lib.build(config_lib.MirageConfig, config['model']))
  cond = {name: x for name, x in batch.items() if name != 'video'}
  want = jax.jit(
    lambda state: sampler.sample(
      cache.Bound(model, state.params),
      cond,
      state.video,
      flow.linear_quadratic(aot_sampling.STEPS)[:3],
      aot_sampling.GUIDANCE,
    )
  )(state)
  assert int(ran.step) == 2
  # Steps of 1/1280 each: what they change is told apart from their rounding.
  assert np.abs(want - state.video).max() > 1e-3
  np.testing.assert_allclose(ran.video, want, atol=1e-4)


def test_what_trains_no_transformer_is_refused():
  with pytest.raises(UserError, match='this one trains mirage_jax.vae_exper'):
    aot_sampling.experiment(small('vae'))
