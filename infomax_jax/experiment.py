"""START HERE. Training of AMDIM: config -> Experiment.

A batch of two views of each image (`data`) goes through one encoder
(`encoder`); the multi-scale objective (`objective`) asks each view to predict
the other. Two classifiers (`heads`) learn beside it from stopped gradients, to
tell how good the representation is.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from infomax_jax import augment, config as config_lib, data, heads, objective
from infomax_jax.encoder import Encoder, encode_views
from infomax_jax.optimizer import OptimizerConfig, optimizer

# Parameters are replicated: even the largest encoder fits a device many times,
# and what crosses devices is the batch.
AXIS_RULES = (
  ('batch', ('data', 'fsdp')),
  ('in', None),
  ('out', None),
  ('layers', None),
)


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
  """What a checkpoint holds beside the place in the data.

  `params` and `batch_stats` have an entry for 'encoder' and one for 'heads'.
  """

  step: jax.Array  # []
  params: Any
  batch_stats: Any
  opt_state: Any


def init(key, *, encoder, classifiers, tx):
  """Fresh state."""
  key_encoder, key_heads = jax.random.split(key)
  size, channels = encoder.cfg.image_size, encoder.cfg.channels
  encoded = encoder.init(key_encoder, jnp.zeros((2, size, size, channels)))
  classified = classifiers.init(key_heads, jnp.zeros((2, encoder.cfg.n_rkhs)))
  made = {'encoder': encoded, 'heads': classified}
  params = {name: made[name]['params'] for name in made}
  stats = {name: made[name].get('batch_stats', {}) for name in made}
  return TrainState(jnp.zeros((), jnp.int32), params, stats, tx.init(params))


def _variables(params, stats, name):
  return {'params': params[name], 'batch_stats': stats[name]}


def losses(
  params, stats, batch, key, *, encoder, classifiers, recipe, cfg, chunks=1
):
  """The sum of all losses; (metrics, new running statistics)."""
  key_locations, key_dropout = jax.random.split(key)
  views = [augment.normalize(batch[v], recipe) for v in ('view1', 'view2')]
  one, two, encoder_stats = encode_views(
    encoder, _variables(params, stats, 'encoder'), *views, chunks
  )
  locations = objective.draw_locations(key_locations, one, two, cfg)
  loss, metrics = objective.infomax(one, two, locations, cfg)
  logits, updates = classifiers.apply(
    _variables(params, stats, 'heads'),
    jnp.concatenate([one.r1, two.r1]),
    train=True,
    rngs={'dropout': key_dropout},
    mutable=['batch_stats'],
  )
  labels = jnp.concatenate([batch['label']] * 2)
  total, metrics = loss, {'loss_infomax': loss, **metrics}
  for name, guesses in (('linear', logits.linear), ('mlp', logits.mlp)):
    fit = heads.loss(guesses, labels, classifiers.cfg)
    total += fit
    metrics[f'loss_{name}'] = fit
    metrics[f'accuracy_{name}'] = _accuracy(guesses, labels)
  stats = {'encoder': encoder_stats, 'heads': updates['batch_stats']}
  return total, (metrics, stats)


def _accuracy(logits, labels):
  """Among the images that have a label."""
  known = labels >= 0
  right = (jnp.argmax(logits, axis=-1) == labels) & known
  return right.sum() / jnp.maximum(known.sum(), 1)


def train_step(state, batch, key, *, loss_fn, tx):
  """(state, batch, base key) -> (state, metrics)."""
  key = jax.random.fold_in(key, state.step)
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  (loss, (metrics, stats)), grads = grad_fn(
    state.params, state.batch_stats, batch, key
  )
  norm = optax.tree.norm(grads)
  # All wait for the norm, that is until no gradient needs a parameter any more,
  # and XLA need not copy each to write over it.
  grads = jax.tree.map(lambda g: jnp.where(jnp.isnan(norm), norm, g), grads)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  metrics = {'loss': loss, 'grad_norm': norm, **metrics}
  return TrainState(state.step + 1, params, stats, opt_state), metrics


def eval_step(state, batch, key, *, encoder, classifiers, recipe):
  """Accuracy of both classifiers with running statistics, in [0, 1]."""
  del key
  images = augment.normalize(batch['image'], recipe)
  stats = state.batch_stats
  features = encoder.apply(_variables(state.params, stats, 'encoder'), images)
  logits = classifiers.apply(
    _variables(state.params, stats, 'heads'), features.r1
  )
  labels = jnp.where(batch['mask'], batch['label'], -1)
  return {
    'accuracy_linear': _accuracy(logits.linear, labels),
    'accuracy_mlp': _accuracy(logits.mlp, labels),
  }


def abstract_batch(
  config: Mapping[str, Any], batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of a training batch, without data."""
  source = config_lib.build(data.DataConfig, config['data'])
  size = source.build_recipe().size
  image = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8)
  label = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
  return {'view1': image, 'view2': image, 'label': label}


def abstract_eval_batch(
  config: Mapping[str, Any], batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """The same of a batch for `eval_step`."""
  batch = abstract_batch(config, batch_size)
  mask = jax.ShapeDtypeStruct((batch_size,), jnp.bool_)
  return {'image': batch['view1'], 'label': batch['label'], 'mask': mask}


def _check_classes(source, most):
  """The source, if the classifiers have a logit for each of its classes."""
  if len(source.classes) > most:
    raise ValueError(
      f'the images have {len(source.classes)} classes, heads.num_classes is '
      f'{most}: set it to {len(source.classes)}'
    )
  return source


def _batches():
  # Here, since Grain is 40 MB that a step by itself does not need.
  from infomax_jax import batches

  return batches


def make(config: Mapping[str, Any]) -> Experiment:
  """Builds the pure functions of a run from a plain config.

  Raises:
    ValueError: a key is unknown or missing, or sizes do not fit together.
      `chunks`, of `encode_views`, may be missing: 1.
      From `dataset`: the images have more classes than the classifiers.
    FileNotFoundError: no images at data.train or data.eval (from `dataset`).
  """
  source = config_lib.build(data.DataConfig, config['data'])
  cfg = config_lib.build(config_lib.ObjectiveConfig, config['objective'])
  encoder = Encoder(
    config_lib.build(config_lib.EncoderConfig, config['encoder'])
  )
  classifiers = heads.Heads(
    config_lib.build(config_lib.HeadsConfig, config['heads'])
  )
  tx = optimizer(config_lib.build(OptimizerConfig, config['optimizer']))
  recipe, splits = source.build_recipe(), data.Splits(source)
  if recipe.size != encoder.cfg.image_size:
    raise ValueError(
      f'views are of {recipe.size} pixels, encoder.image_size is '
      f'{encoder.cfg.image_size}: set data.size or encoder.image_size'
    )
  models = dict(encoder=encoder, classifiers=classifiers, recipe=recipe)
  known = functools.partial(_check_classes, most=classifiers.cfg.num_classes)
  size, seed = config['batch_size'], config['seed']
  chunks = config.get('chunks', 1)
  if chunks < 1 or size % chunks:
    raise ValueError(f'chunks {chunks} does not divide batch_size {size}')
  return Experiment(
    init=functools.partial(
      init, encoder=encoder, classifiers=classifiers, tx=tx
    ),
    train_step=functools.partial(
      train_step,
      loss_fn=functools.partial(losses, cfg=cfg, chunks=chunks, **models),
      tx=tx,
    ),
    dataset=lambda: _batches().views(known(splits.train), source, size, seed),
    eval_step=functools.partial(eval_step, **models),
    eval_dataset=lambda: _batches().plain(known(splits.eval), source, size),
    axis_rules=AXIS_RULES,
  )
