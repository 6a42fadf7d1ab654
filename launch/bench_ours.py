"""Our side of `launch.bench`: steps of the transformer, jitted, float32."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from launch.side_by_side import Workload
from mirage_jax import config as config_lib, experiment, sampler
from mirage_jax.dit import Mirage, count_params

SIGMA, NEXT_SIGMA = 0.75, 0.5


def mochi(task: str, sizes: Mapping[str, int]) -> Workload:
  """Mochi's two streams at Mochi's proportions: `bench_diffusers.mochi`.

  Args:
    task: 'train': forward, backward and AdamW; or 'sample': an Euler step.
    sizes: see `bench.mochi_sizes`.
  """
  model, batch = Mirage(mochi_config(sizes)), mochi_batch(sizes)
  tx = optax.adamw(1e-4, weight_decay=0.01)
  cfg = config_lib.FlowConfig(
    schedule='uniform',
    drop_text=0.0,
    drop_audio=0.0,
    drop_reference=0.0,
    drop_all=0.0,
  )

  def init(key, batch):
    cond = dict(batch)
    video = cond.pop('video')
    sigma = jnp.zeros(len(video))
    return nn.unbox(model.init(key, video, sigma, cond)['params'])

  def step(state, batch, key):
    params, opt_state = state
    loss_fn = functools.partial(
      experiment.objective, batch=batch, key=key, model=model, cfg=cfg
    )
    (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss

  params = jax.jit(init)(jax.random.key(0), batch)
  if task == 'sample':
    return sampling(model, params, batch)
  state = params, jax.jit(tx.init)(params)
  return training(step, state, batch, count_params(params))


def mochi_config(sizes: Mapping[str, int]) -> config_lib.MirageConfig:
  """The model that has diffusers' layers, sizes and switches."""
  width, text = sizes['heads'] * sizes['head_dim'], sizes['text_width']
  hidden = lambda width: 4 * width * 2 // 3  # of the MLP, as diffusers has it
  return config_lib.MirageConfig(
    depth=sizes['depth'],
    num_heads=sizes['heads'],
    head_dim=sizes['head_dim'],
    video=config_lib.StreamConfig(width, hidden(width)),
    text=config_lib.StreamConfig(
      text, hidden(text), sizes['features'], rope=False
    ),
    latent_channels=sizes['channels'],
    attention='recompute',
    remat='dots',
  )


def mochi_batch(sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
  """Noise for latents and text, all of the text valid."""
  rng = np.random.default_rng(0)
  grid = (sizes['frames'], sizes['rows'], sizes['columns'], sizes['channels'])
  text = (sizes['batch'], sizes['text_length'])
  return {
    'video': rng.standard_normal((sizes['batch'], *grid), np.float32),
    'text': rng.standard_normal((*text, sizes['features']), np.float32),
    'text_mask': np.ones(text, bool),
  }


def recipe(task: str, config: Mapping[str, Any]) -> Workload:
  """A config's own model, with audio, references and its own train step."""
  made = experiment.make(config)
  shapes = experiment.abstract_batch(config, config['batch_size'])
  batch = {k: np.ones(x.shape, x.dtype) for k, x in shapes.items()}
  state = nn.unbox(jax.jit(made.init)(jax.random.key(0)))
  if task == 'sample':
    cfg = config_lib.build(config_lib.MirageConfig, config['model'])
    return sampling(Mirage(cfg), state.params, batch)
  return training(made.train_step, state, batch, count_params(state.params))


def training(
  step: Callable, state: Any, batch: Mapping[str, Any], num_params: int
) -> Workload:
  """Of step(state, batch, key) -> (state, metrics); the state is donated."""
  compiled = jax.jit(step, donate_argnums=0)
  key, kept = jax.random.key(1), [state]

  def once():
    result = compiled(kept.pop(), batch, key)
    kept.append(jax.block_until_ready(result)[0])

  return Workload(once, num_params)


def sampling(model: Mirage, params: Any, batch: Mapping[str, Any]) -> Workload:
  """One Euler step without guidance."""
  cond = {k: v for k, v in batch.items() if k != 'video'}

  @jax.jit
  def step(params, x, cond, sigma, next_sigma):
    apply = functools.partial(model.apply, {'params': params})
    return sampler.make_step(apply, cond, x)(x, sigma, next_sigma)

  def once():
    x = step(params, batch['video'], cond, SIGMA, NEXT_SIGMA)
    jax.block_until_ready(x)

  return Workload(once, count_params(params))
