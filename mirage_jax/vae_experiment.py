"""Training of the video VAE: config -> Experiment.

The objective is L1 reconstruction plus a weighted KL to a unit Gaussian, the
reconstruction part of Mochi's (its adversarial part is not published).
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from mirage_jax import config as config_lib
from mirage_jax import data
from mirage_jax import sharding
from mirage_jax import train_step as train_lib
from mirage_jax.vae import Vae, VaeConfig


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What `launch.loop` runs; see its protocol."""

  init: Callable
  train_step: Callable
  dataset: Callable
  eval_step: Callable
  eval_dataset: Callable
  axis_rules: tuple


def init(key, *, model, tx, shape):
  """Fresh state; `shape` is [B N Yp Xp 3] of any batch."""
  params = model.init(key, jnp.zeros(shape), key)['params']
  return train_lib.new_state(params, tx)


def objective(params, frames, key, *, model, kl_weight):
  """L1 + kl_weight * KL per latent; frames uint8 [B N Yp Xp 3]."""
  x = frames.astype(jnp.float32) / 127.5 - 1.0
  y, mean, logvar = model.apply({'params': params}, x, key)
  l1 = jnp.abs(y - x).mean()
  kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1.0 - logvar).mean()
  mse = jnp.square(jnp.clip(y, -1.0, 1.0) - x).mean((1, 2, 3, 4))
  psnr = (10.0 * jnp.log10(4.0 / mse)).mean()
  std = jnp.exp(0.5 * logvar).mean()
  metrics = {'l1': l1, 'kl': kl, 'psnr': psnr, 'posterior_std': std}
  return l1 + kl_weight * kl, metrics


def train_step(state, batch, key, *, loss, tx, ema_decay):
  """(state, {'frames'}, base key) -> (state, metrics)."""
  key = jax.random.fold_in(key, state.step)
  loss_fn = functools.partial(loss, frames=batch['frames'], key=key)
  return train_lib.update(state, loss_fn, tx, ema_decay)


def eval_step(state, batch, key, *, loss):
  """Metrics of the averaged parameters."""
  value, metrics = loss(state.ema, batch['frames'], key)
  return {'loss': value, **metrics}


def make(config: Mapping[str, Any]) -> Experiment:
  """Builds the pure functions of a run from a plain config.

  Raises:
    ValueError: a key is unknown or missing.
    FileNotFoundError: no shards at data.train or data.eval (from `dataset`).
  """
  opt = config_lib.build(train_lib.OptimizerConfig, config['optimizer'])
  source = config_lib.build(data.ClipConfig, config['data'])
  model = Vae(config_lib.build(VaeConfig, config['vae']))
  tx = train_lib.optimizer(opt, config['num_steps'])
  loss = functools.partial(
    objective, model=model, kl_weight=config['kl_weight']
  )
  shape = (config['batch_size'], source.num_frames, source.size, source.size, 3)
  clips = functools.partial(
    data.clips, source, config['batch_size'], config['seed']
  )
  return Experiment(
    init=functools.partial(init, model=model, tx=tx, shape=shape),
    train_step=functools.partial(
      train_step, loss=loss, tx=tx, ema_decay=opt.ema_decay
    ),
    dataset=functools.partial(clips, source.train),
    eval_step=functools.partial(eval_step, loss=loss),
    eval_dataset=functools.partial(clips, source.eval),
    axis_rules=sharding.AXIS_RULES,
  )
