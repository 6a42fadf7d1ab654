"""START HERE. Training of Mirage: config -> Experiment.

A batch of latents and conditions (`data`) goes through the rectified-flow
objective (`flow`) of the joint transformer (`dit`), and AdamW (`train_step`)
takes a step. `sampler` turns the trained network into video latents.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from mirage_jax import (
  config as config_lib,
  data,
  flow,
  sharding,
  train_step as train_lib,
)
from mirage_jax.dit import Mirage


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What `launch.loop` runs; see its protocol."""

  init: Callable
  train_step: Callable
  dataset: Callable
  eval_step: Callable
  eval_dataset: Callable
  axis_rules: tuple
  tokens_per_step: int


def init(key, *, model, tx, batch):
  """Fresh state; `batch` has the shapes of a batch of any size."""
  cond = {k: jnp.zeros(v.shape, v.dtype) for k, v in batch.items()}
  video = cond.pop('video')
  params = model.init(key, video, jnp.zeros(len(video)), cond)['params']
  return train_lib.new_state(params, tx)


def objective(params, batch, key, *, model, cfg):
  """The flow's loss on a batch, and what to log of it."""
  cond = {k: v for k, v in batch.items() if k != 'video'}
  apply = functools.partial(model.apply, {'params': params})
  loss, parts = flow.loss(apply, batch['video'], cond, key, cfg)
  noisy = parts['sigma'] > 0.9
  sums = jnp.stack([jnp.where(noisy, parts['loss'], 0).sum(), noisy.sum()])
  return loss, {'loss_noisy': sums[0] / jnp.maximum(sums[1], 1)}


def train_step(state, batch, key, *, model, cfg, tx, ema_decay):
  """(state, batch, base key) -> (state, metrics)."""
  key = jax.random.fold_in(key, state.step)
  loss_fn = functools.partial(
    objective, batch=batch, key=key, model=model, cfg=cfg
  )
  return train_lib.update(state, loss_fn, tx, ema_decay)


def eval_step(state, batch, key, *, model, cfg):
  """Loss of the averaged parameters with every condition present."""
  loss, metrics = objective(state.ema, batch, key, model=model, cfg=cfg)
  return {'loss': loss, **metrics}


def abstract_batch(
  config: Mapping[str, Any], batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of a batch, without data."""
  source = config_lib.build(data.LatentConfig, config['data'])
  model = config_lib.build(config_lib.MirageConfig, config['model'])
  rows, columns = config['latent_size']
  grid = (rows, columns, model.latent_channels)
  frames = source.num_chunks * data.CHUNK_FRAMES
  references = 1 + source.past
  text = ((source.text_length,), jnp.int32)
  if not model.text_vocab:
    text = ((source.text_length, model.text.in_dim), jnp.float32)
  shapes = dict(
    video=((source.num_chunks * data.CHUNK_LATENTS, *grid), jnp.float32),
    reference=((references, *grid), jnp.float32),
    reference_time=((references,), jnp.float32),
    reference_mask=((references,), jnp.bool_),
    audio=((frames, model.audio.in_dim), jnp.float32),
    text=text,
    text_mask=((source.text_length,), jnp.bool_),
  )
  return {
    name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
    for name, (shape, dtype) in shapes.items()
  }


def make(config: Mapping[str, Any]) -> Experiment:
  """Builds the pure functions of a run from a plain config.

  Raises:
    ValueError: a key is unknown or missing.
    FileNotFoundError: no shards at data.train or data.eval (from `dataset`).
  """
  opt = config_lib.build(train_lib.OptimizerConfig, config['optimizer'])
  source = config_lib.build(data.LatentConfig, config['data'])
  cfg = config_lib.build(config_lib.FlowConfig, config['flow'])
  model = Mirage(config_lib.build(config_lib.MirageConfig, config['model']))
  tx = train_lib.optimizer(opt, config['num_steps'])
  size, seed = config['batch_size'], config['seed']
  batch = abstract_batch(config, size)
  patches = batch['video'].shape[1:4]
  tokens = patches[0] * patches[1] * patches[2] // model.cfg.patch_size**2
  plain = dict.fromkeys(
    ('motion_weight', 'drop_text', 'drop_audio', 'drop_reference', 'drop_all'),
    0.0,
  )
  whole = dataclasses.replace(cfg, **plain)
  held_out = dataclasses.replace(source, augment=False)
  return Experiment(
    init=functools.partial(init, model=model, tx=tx, batch=batch),
    train_step=functools.partial(
      train_step, model=model, cfg=cfg, tx=tx, ema_decay=opt.ema_decay
    ),
    dataset=functools.partial(data.latents, source, size, seed, source.train),
    eval_step=functools.partial(eval_step, model=model, cfg=whole),
    eval_dataset=functools.partial(
      data.latents, held_out, size, seed, source.eval
    ),
    axis_rules=sharding.AXIS_RULES,
    tokens_per_step=size * tokens,
  )
