"""START HERE. Training of the sync judge: config -> Experiment.

Windows of clips (`data`) go through two encoders (`encoders`); the objective
(`objective`) asks sound and sight to predict each other, frame by frame.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from infomax_jax import config as config_lib
from infomax_jax.sync import data, mouth, objective, offsets, sound
from infomax_jax.sync.config import LossConfig, SyncConfig
from infomax_jax.sync.encoders import Sync

# Parameters are replicated: what crosses devices is the batch.
AXIS_RULES = (('batch', ('data', 'fsdp')), ('in', None), ('out', None))
EVAL_REACH = 10  # Frames; offsets among which evaluation has to find 0.


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What `launch.loop` runs; see its protocol."""

  init: Callable
  train_step: Callable
  dataset: Callable
  eval_step: Callable
  eval_dataset: Callable
  axis_rules: tuple


@flax.struct.dataclass
class TrainState:
  """What a checkpoint holds beside the place in the data."""

  step: jax.Array  # []
  params: Any
  opt_state: Any


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with a linear rise and a cosine fall to zero.

  Attributes:
    learning_rate: The highest.
    warmup_steps: Updates of linear rise.
    b2: Decay of the second moment.
    weight_decay: Of kernels, times the learning rate.
    max_norm: To which longer gradients are cut.
  """

  learning_rate: float = 2e-3
  warmup_steps: int = 50
  b2: float = 0.99
  weight_decay: float = 0.02
  max_norm: float = 1.0


def optimizer(
  cfg: OptimizerConfig, num_steps: int
) -> optax.GradientTransformation:
  """AdamW over a run of `num_steps`."""
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, cfg.learning_rate, cfg.warmup_steps, num_steps
  )
  kernels = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
  return optax.chain(
    optax.clip_by_global_norm(cfg.max_norm),
    optax.adamw(
      schedule, b2=cfg.b2, weight_decay=cfg.weight_decay, mask=kernels
    ),
  )


def init(key, *, model, num_frames, tx):
  """Fresh state."""
  windows = sound.HOPS * num_frames + 2 * sound.CONTEXT
  params = model.init(
    key,
    jnp.zeros((1, windows, sound.MELS)),
    jnp.zeros((1, num_frames, mouth.SIZE, mouth.SIZE)),
  )['params']
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def losses(params, batch, *, model, cfg):
  """The loss, its parts and both tracks."""
  tracks = model.apply({'params': params}, batch['mels'], batch['mouth'])
  loss, parts = objective.infomax(*tracks, cfg)
  return loss, (parts, tracks)


def train_step(state, batch, key, *, loss_fn, tx):
  """(state, batch, base key) -> (state, metrics)."""
  del key  # All that is drawn, the data pipeline draws.
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  (loss, (parts, _)), grads = grad_fn(state.params, batch)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  metrics = {'loss': loss, 'grad_norm': optax.tree.norm(grads), **parts}
  return TrainState(state.step + 1, params, opt_state), metrics


def eval_step(state, batch, key, *, loss_fn, clip):
  """Losses, and the share of clips whose best offset is within a frame of 0."""
  del key
  loss, (parts, (heard, seen)) = loss_fn(state.params, batch)
  scores = offsets.products(heard.whole, seen.whole, clip)
  best = jnp.argmax(offsets.by_offset(scores, EVAL_REACH), -1) - EVAL_REACH
  return {'loss': loss, 'in_sync': (jnp.abs(best) <= 1).mean(), **parts}


def abstract_batch(
  config: Mapping[str, Any], batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of a batch, without data."""
  frames = config_lib.build(data.DataConfig, config['data']).num_frames
  shapes = {
    'mels': (sound.HOPS * frames + 2 * sound.CONTEXT, sound.MELS),
    'mouth': (frames, mouth.SIZE, mouth.SIZE),
  }
  return {
    name: jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32)
    for name, shape in shapes.items()
  }


def make(config: Mapping[str, Any]) -> Experiment:
  """Builds the pure functions of a run from a plain config.

  Raises:
    ValueError: a key is unknown or missing, or out of range.
    FileNotFoundError: no clips at data.train or data.eval (from `dataset`).
  """
  source = config_lib.build(data.DataConfig, config['data'])
  model = Sync(config_lib.build(SyncConfig, config['model']))
  cfg = config_lib.build(LossConfig, config['objective'])
  tx = optimizer(
    config_lib.build(OptimizerConfig, config['optimizer']), config['num_steps']
  )
  loss_fn = functools.partial(losses, model=model, cfg=cfg)
  size, seed = config['batch_size'], config['seed']
  return Experiment(
    init=functools.partial(
      init, model=model, num_frames=source.num_frames, tx=tx
    ),
    train_step=functools.partial(train_step, loss_fn=loss_fn, tx=tx),
    dataset=lambda: data.windows(source, size, seed),
    eval_step=functools.partial(eval_step, loss_fn=loss_fn, clip=cfg.clip),
    eval_dataset=lambda: data.plain(source, size),
    axis_rules=AXIS_RULES,
  )
