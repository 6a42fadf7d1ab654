"""Training of the video VAE: config -> Experiment.

The objective is reconstruction plus a weighted KL to a unit Gaussian. Pixels
can count by how much they move: lips and lids are a few per cent of a picture
that hardly changes, and a plain L1 blurs them away over time (on GRID the mouth
curve of its reconstructions has r = 0.67 with the true one). A finished
encoder can stay as it is while its decoder learns on: latents made with it, and
transformers trained on them, keep. Mochi's objective is not published.
"""

from collections.abc import Mapping
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mirage_jax import (
  config as config_lib,
  data,
  latents,
  sharding,
  train_step as train_lib,
)
from mirage_jax.vae import Vae, VaeConfig


def init(key, *, model, tx, shape):
  """Fresh state; `shape` is [B N Yp Xp 3] of any batch."""
  params = model.init(key, jnp.zeros(shape), key)['params']
  return train_lib.new_state(params, tx)


def motion_weights(
  x: Float[Array, 'B N Yp Xp 3'], motion: float
) -> Float[Array, 'B N Yp Xp 1']:
  """1 + motion * (distance from a pixel's mean over time / its mean), mean 1.

  So the few frames in which a mouth is wide open count for more than those in
  which it rests. Averaged over 5 x 5 pixels, so that noise does not count.
  """
  distance = jnp.abs(x - x.mean(1, keepdims=True)).mean(-1, keepdims=True)
  images = distance.reshape(-1, *distance.shape[2:])
  pooled = nn.avg_pool(images, (5, 5), padding='SAME').reshape(distance.shape)
  relative = pooled / (pooled.mean((1, 2, 3), keepdims=True) + 1e-6)
  return (1.0 + motion * relative) / (1.0 + motion)


def objective(
  params, frames, key, *, model, kl_weight, motion, square, frozen=()
):
  """Reconstruction + kl_weight * KL per latent; frames uint8 [B N Yp Xp 3].

  `square` is the weight of the squared error beside the absolute one: a missed
  opening of the mouth counts for more than grain. No gradient goes into the
  parameters named in `frozen`.
  """
  held = {name: jax.lax.stop_gradient(params[name]) for name in frozen}
  params = {**params, **held}
  x = latents.to_float(frames)
  y, mean, logvar = model.apply({'params': params}, x, key)
  error = jnp.abs(y - x)
  error = motion_weights(x, motion) * (error + square * error**2)
  reconstruction = error.mean()
  kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1.0 - logvar).mean()
  mse = jnp.square(jnp.clip(y, -1.0, 1.0) - x).mean((1, 2, 3, 4))
  psnr = (10.0 * jnp.log10(4.0 / mse)).mean()
  std = jnp.exp(0.5 * logvar).mean()
  metrics = {
    'reconstruction': reconstruction,
    'kl': kl,
    'psnr': psnr,
    'posterior_std': std,
  }
  return reconstruction + kl_weight * kl, metrics


def train_step(state, batch, key, *, loss, tx, ema_decay):
  """(state, {'frames'}, base key) -> (state, metrics)."""
  key = jax.random.fold_in(key, state.step)
  loss_fn = functools.partial(loss, frames=batch['frames'], key=key)
  return train_lib.update(state, loss_fn, tx, ema_decay)


def eval_step(state, batch, key, *, loss):
  """Metrics of the averaged parameters."""
  value, metrics = loss(state.ema, batch['frames'], key)
  return {'loss': value, **metrics}


def abstract_batch(
  config: Mapping[str, Any], batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of a batch, without data."""
  source = config_lib.build(data.ClipConfig, config['data'])
  shape = (batch_size, source.num_frames, source.size, source.size, 3)
  return {'frames': jax.ShapeDtypeStruct(shape, jnp.uint8)}


def make(config: Mapping[str, Any]) -> train_lib.Experiment:
  """Builds the pure functions of a run from a plain config.

  Raises:
    ValueError: a key is unknown or missing.
    FileNotFoundError: no shards at data.train or data.eval (from `dataset`).
  """
  opt = config_lib.build(train_lib.OptimizerConfig, config['optimizer'])
  source = config_lib.build(data.ClipConfig, config['data'])
  model = Vae(config_lib.build(VaeConfig, config['vae']))
  tx = train_lib.optimizer(opt, config['num_steps'])
  frozen = ('encoder',) if config['freeze_encoder'] else ()
  tx = train_lib.freeze(tx, frozen) if frozen else tx
  loss = functools.partial(
    objective,
    model=model,
    kl_weight=config['kl_weight'],
    motion=config['motion_weight'],
    square=config['square_weight'],
    frozen=frozen,
  )
  shape = abstract_batch(config, config['batch_size'])['frames'].shape
  clips = functools.partial(
    data.clips, source, config['batch_size'], config['seed']
  )
  return train_lib.Experiment(
    init=functools.partial(init, model=model, tx=tx, shape=shape),
    train_step=functools.partial(
      train_step, loss=loss, tx=tx, ema_decay=opt.ema_decay
    ),
    dataset=functools.partial(clips, source.train),
    eval_step=functools.partial(eval_step, loss=loss),
    eval_dataset=functools.partial(clips, source.eval),
    axis_rules=sharding.AXIS_RULES,
  )
