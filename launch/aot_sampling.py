"""One step of the sampler, as `launch.aot --sample` compiles it.

A sampler of Mirage takes one Euler step of guidance with two branches, all
conditions and none, run as one batch. Parameters are in the model's compute
dtype: nothing is learned. A clip takes as many such steps as its schedule has.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import linen as nn
import flax.struct
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from launch import loop
from launch.errors import UserError
from mirage_jax import cache, config as config_lib, flow, sampler
from mirage_jax.dit import Mirage
from mirage_jax.guidance import Guidance
from mirage_jax.latent_batch import abstract_batch, fresh_params
from mirage_jax.train_step import Experiment

EXPERIMENT = 'mirage_jax.experiment'
STEPS = 64
# What costs is that there is a second branch, whatever the weight.
GUIDANCE = Guidance(joint=4.0)


@flax.struct.dataclass
class State:
  """Between two steps."""

  step: Int[Array, '']
  params: Any
  video: Float[Array, 'B F Y X C']


def experiment(config: Mapping[str, Any]) -> Experiment:
  """What `loop.Program` takes; its train step is a step of the sampler.

  Args:
    config: of a transformer's training; `batch_size` is how many clips are made
      at once.

  Raises:
    UserError: the config trains something else.
  """
  if config['experiment'] != EXPERIMENT:
    raise UserError(
      f'--sample takes configs of {EXPERIMENT}; this one trains '
      f'{config["experiment"]}'
    )
  model = Mirage(config_lib.build(config_lib.MirageConfig, config['model']))
  shapes = abstract_batch(config, config['batch_size'])
  sigmas = jnp.asarray(flow.linear_quadratic(STEPS))

  def init(key):
    params = fresh_params(model, key, abstract_batch(config, 1))
    video = jax.random.normal(key, shapes['video'].shape)
    return State(
      step=jnp.zeros((), jnp.int32),
      params=jax.tree.map(lambda x: x.astype(model.cfg.dtype), params),
      video=nn.LogicallyPartitioned(video, ('batch', *(None,) * 4)),
    )

  def step(state, batch, _):
    cond = {name: x for name, x in batch.items() if name != 'video'}
    bound = cache.Bound(model, state.params)
    advance = sampler.make_step(bound, cond, state.video, GUIDANCE)
    now = state.step
    video = advance(state.video, sigmas[now], sigmas[now + 1]).x
    return state.replace(step=now + 1, video=video), {}

  # Of training what is no step stays; what is wrong with the config it tells.
  return dataclasses.replace(
    loop.build(config),
    init=init,
    train_step=step,
    dataset=None,
    eval_step=None,
    eval_dataset=None,
  )
