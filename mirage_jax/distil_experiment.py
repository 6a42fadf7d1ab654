"""Training of a student that takes a few plain steps: config -> Experiment.

The run starts from a trained Mirage by `init_from`: that is the teacher, and
stays as it is. The student is the teacher with low-rank changes (`lora`), which
alone are trained. Each step draws noise, lets the teacher sample for real
conditions, and moves the student towards the trajectory (`distil`).
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from mirage_jax import (
  cache,
  config as config_lib,
  data,
  distil,
  flow,
  lora as lora_lib,
  sampler,
  sharding,
  stitch,
  train_step as train_lib,
)
from mirage_jax.dit import Mirage
from mirage_jax.latent_batch import abstract_batch, fresh_params


@dataclasses.dataclass(frozen=True)
class Task:
  """What stays the same from step to step."""

  model: Mirage
  path: config_lib.FlowConfig
  cfg: distil.DistilConfig
  lora: lora_lib.LoraConfig

  def student(self, base: Any, changes: Any) -> cache.Bound:
    """The network with the changes."""
    return cache.Bound(self.model, lora_lib.attach(base, changes, self.lora))

  def draw(self, base: Any, batch: Mapping[str, jax.Array], key: jax.Array):
    """The conditions of a batch, and where the teacher is as the student stops."""
    key_noise, key_drop = jax.random.split(key)
    cond = {k: v for k, v in batch.items() if k != 'video'}
    cond = flow.drop_conditions(key_drop, cond, self.path)
    noise = jax.random.normal(key_noise, batch['video'].shape)
    table = flow.linear_quadratic(
      self.path.num_steps, self.path.threshold_noise
    )
    teacher = cache.Bound(self.model, base)
    points = distil.trajectory(teacher, cond, noise, table, self.cfg.guidance)
    return cond, points[:, jnp.array(distil.stops(self.cfg, len(table) - 1))]

  def loss(self, student: Any, points: jax.Array, cond: Mapping[str, Any]):
    """The student's loss and what to log of it."""
    loss, each = distil.loss(
      student,
      points,
      cond,
      distil.student_sigmas(self.cfg, self.path),
      self.path,
    )
    return loss, {'loss_first': each[0], 'loss_last': each[-1]}


def init(key, *, task, tx, batch):
  """Fresh state; `batch` has the shapes of a batch of any size."""
  key_model, key_changes = jax.random.split(key)
  base = fresh_params(task.model, key_model, batch)
  changes = lora_lib.init(key_changes, task.lora, nn.unbox(base))
  return lora_lib.new_state(changes, tx, base)


def adopt(state, found):
  """A fresh state with the teacher that was `found`.

  Raises:
    ValueError: it is another model.
  """
  return state.replace(
    base=stitch.adopt(stitch.StitchConfig(), state.base, found)
  )


def train_step(state, batch, key, *, task, tx, ema_decay):
  """(state, batch, base key) -> (state, metrics)."""
  key = jax.random.fold_in(key, state.step)
  cond, points = task.draw(state.base, batch, key)

  def loss_fn(changes):
    return task.loss(task.student(state.base, changes), points, cond)

  return train_lib.update(state, loss_fn, tx, ema_decay)


def eval_step(state, batch, key, *, task):
  """The student's loss, and how far its samples are from the teacher's.

  `sample_error` is their mean squared distance, of latents of variance 1;
  `teacher_motion` that of the teacher's latents from their mean over time.
  """
  cond, points = task.draw(state.base, batch, key)
  student = task.student(state.base, state.ema)
  loss, metrics = task.loss(student, points, cond)
  sigmas = distil.student_sigmas(task.cfg, task.path)
  made = sampler.sample(student, cond, points[:, 0], sigmas)
  goal = points[:, -1]
  motion = jnp.square(goal - goal.mean(1, keepdims=True)).mean()
  error = jnp.square(made - goal).mean()
  return {
    'loss': loss,
    'sample_error': error,
    'teacher_motion': motion,
    **metrics,
  }


def make(config: Mapping[str, Any]) -> train_lib.Experiment:
  """Builds the pure functions of a run from a plain config.

  Raises:
    ValueError: a key is unknown or missing, or there is no teacher.
    FileNotFoundError: no shards at data.train or data.eval (from `dataset`).
  """
  if not config['init_from']:
    raise ValueError(
      'init_from must name the teacher: a bundle, or the workdir of its run.'
    )
  opt = config_lib.build(train_lib.OptimizerConfig, config['optimizer'])
  source = config_lib.build(data.LatentConfig, config['data'])
  path = config_lib.build(config_lib.FlowConfig, config['flow'])
  task = Task(
    Mirage(config_lib.build(config_lib.MirageConfig, config['model'])),
    path,
    config_lib.build(distil.DistilConfig, config['distil']),
    config_lib.build(lora_lib.LoraConfig, config['lora']),
  )
  distil.stops(task.cfg, path.num_steps)  # Told now, if they do not fit.
  tx = train_lib.optimizer(opt, config['num_steps'])
  size, seed = config['batch_size'], config['seed']
  held_out = dataclasses.replace(source, augment=0.0)
  return train_lib.Experiment(
    init=functools.partial(
      init, task=task, tx=tx, batch=abstract_batch(config, size)
    ),
    train_step=functools.partial(
      train_step, task=task, tx=tx, ema_decay=opt.ema_decay
    ),
    dataset=functools.partial(data.latents, source, size, seed, source.train),
    eval_step=functools.partial(eval_step, task=task),
    eval_dataset=functools.partial(
      data.latents, held_out, size, seed, source.eval
    ),
    axis_rules=sharding.AXIS_RULES,
    adopt=adopt,
  )
