"""START HERE. Training of Mirage: config -> Experiment.

A batch of latents and conditions (`data`) goes through the rectified-flow
objective (`flow`) of the joint transformer (`dit`), and AdamW (`train_step`)
takes a step. `sampler` turns the trained network into video latents.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from mirage_jax import (
  accumulate as accumulate_lib,
  config as config_lib,
  data,
  flow,
  lora as lora_lib,
  sharding,
  stitch as stitch_lib,
  train_step as train_lib,
)
from mirage_jax.dit import Mirage
from mirage_jax.latent_batch import abstract_batch, fresh_params


def init(key, *, model, tx, batch, lora=None):
  """Fresh state; `batch` has the shapes of a batch of any size."""
  params = fresh_params(model, key, batch)
  if lora is None:
    return train_lib.new_state(params, tx)
  changes = lora_lib.init(jax.random.fold_in(key, 0), lora, nn.unbox(params))
  return lora_lib.new_state(changes, tx, params)


def bind(state, params, lora):
  """The parameters that the model runs with, of those that are learned."""
  return params if lora is None else lora_lib.attach(state.base, params, lora)


def objective(params, batch, key, *, model, cfg, accumulate=1):
  """The flow's loss on a batch, and what to log of it."""
  cond = {k: v for k, v in batch.items() if k != 'video'}
  rows = flow.draw(batch['video'], cond, key, cfg)

  def score(params, rows):
    apply = functools.partial(model.apply, {'params': params})
    return flow.score(apply, rows, cfg)

  loss, parts = accumulate_lib.mean(score, rows, accumulate)(params)
  noisy = parts['sigma'] > 0.9
  sums = jnp.stack([jnp.where(noisy, parts['loss'], 0).sum(), noisy.sum()])
  return loss, {'loss_noisy': sums[0] / jnp.maximum(sums[1], 1)}


def adopt(state, found, *, stitch, lora=None):
  """A fresh state with the weights that another run has `found`.

  Raises:
    ValueError: they are of another model, see `stitch.adopt`.
  """
  if lora is not None:
    return state.replace(base=stitch_lib.adopt(stitch, state.base, found))
  trees = state.params, state.ema
  params, ema = (stitch_lib.adopt(stitch, tree, found) for tree in trees)
  return state.replace(params=params, ema=ema)


def train_step(
  state,
  batch,
  key,
  *,
  model,
  cfg,
  stitch,
  tx,
  ema_decay,
  lora=None,
  accumulate=1,
):
  """(state, batch, base key) -> (state, metrics)."""
  key = jax.random.fold_in(key, state.step)
  batch = stitch_lib.during(stitch, batch, state.step, key)

  def loss_fn(params):
    params = bind(state, params, lora)
    return objective(
      params, batch, key, model=model, cfg=cfg, accumulate=accumulate
    )

  return train_lib.update(state, loss_fn, tx, ema_decay)


def eval_step(state, batch, key, *, model, cfg, stitch, lora=None):
  """Loss of the averaged parameters with every condition present."""
  batch = batch | stitch_lib.shares(stitch, state.step)
  params = bind(state, state.ema, lora)
  loss, metrics = objective(params, batch, key, model=model, cfg=cfg)
  return {'loss': loss, **metrics}


def dataset(source, batch_size, seed, folder, *, names, extra):
  """Batches of `data.latents`, without what the model has no stream for."""
  found = data.latents(source, batch_size, seed, folder, extra)
  if 'audio' in names and 'text' in names:
    return found
  return found.map(lambda batch: {name: batch[name] for name in names})


def recipes(
  config: Mapping[str, Any], model: config_lib.MirageConfig
) -> tuple[stitch_lib.StitchConfig, lora_lib.LoraConfig | None]:
  """How a run starts from other weights, by the optional keys of its config.

  Raises:
    ValueError: a recipe does not fit the model or the run.
  """
  stitch = config_lib.build(stitch_lib.StitchConfig, config.get('stitch') or {})
  stitch_lib.check(stitch, model, config['num_steps'])
  if not config.get('lora'):
    return stitch, None
  if not config['init_from']:
    raise ValueError('lora changes other weights: name them in init_from.')
  if config.get('stitch'):
    raise ValueError(
      'lora and stitch do not go together: stitch first, then change the '
      'result.'
    )
  return stitch, config_lib.build(lora_lib.LoraConfig, config['lora'])


def make(config: Mapping[str, Any]) -> train_lib.Experiment:
  """Builds the pure functions of a run from a plain config.

  Raises:
    ValueError: a key is unknown or missing.
    FileNotFoundError: no shards at data.train or data.eval (from `dataset`).
  """
  opt = config_lib.build(train_lib.OptimizerConfig, config['optimizer'])
  source = config_lib.build(data.LatentConfig, config['data'])
  cfg = config_lib.build(config_lib.FlowConfig, config['flow'])
  model = Mirage(config_lib.build(config_lib.MirageConfig, config['model']))
  stitch, lora = recipes(config, model.cfg)
  tx = stitch_lib.optimizer(opt, stitch, config['num_steps'])
  size, seed = config['batch_size'], config['seed']
  batch = abstract_batch(config, size)
  patches = batch['video'].shape[1:4]
  tokens = patches[0] * patches[1] * patches[2] // model.cfg.patch_size**2
  plain = dict.fromkeys(
    ('motion_weight', 'heard_weight', *config_lib.DROPS), 0.0
  )
  whole = dataclasses.replace(cfg, **plain)
  held_out = dataclasses.replace(source, augment=0.0)
  how = dict(model=model, stitch=stitch, lora=lora)
  parts = dict(names=tuple(batch), extra=tuple(s.name for s in model.cfg.extra))
  batches = lambda source, folder: functools.partial(
    dataset, source, size, seed, folder, **parts
  )
  return train_lib.Experiment(
    init=functools.partial(init, model=model, tx=tx, batch=batch, lora=lora),
    train_step=functools.partial(
      train_step,
      cfg=cfg,
      tx=tx,
      ema_decay=opt.ema_decay,
      accumulate=config.get('accumulate', 1),
      **how,
    ),
    dataset=batches(source, source.train),
    eval_step=functools.partial(eval_step, cfg=whole, **how),
    eval_dataset=batches(held_out, source.eval),
    axis_rules=sharding.AXIS_RULES,
    tokens_per_step=size * tokens,
    adopt=functools.partial(adopt, stitch=stitch, lora=lora),
  )
