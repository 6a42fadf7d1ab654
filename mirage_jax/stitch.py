"""Warm-up and stitching: new streams on weights that lack them.

The paper names "a simple recipe" of warm-up and stitching that works from
scratch or from a silent video model (introduction), and describes none of it.
What follows is our inference; every choice is a field of `StitchConfig`.

Given weights of a model without some streams (Mochi has no audio):

1. Copy what they have. Fresh streams get zero gates (adaLN-Zero), so that they
   change nothing but the softmax of the others: a key takes weight from the
   rest however small its value is.
2. So the new streams' share of attention starts at 0, where the others attend
   as if alone, and grows to 1, Mirage's plain joint softmax: see
   `block.Context.shares`. Step 0 is the old model, to the bit where the
   matmuls of both are blocked alike; the last step is a plain Mirage, which
   needs nothing at inference.
3. First only what is new learns; then all does, each group of parameters at its
   own rate. The old ones start their optimizer then: moments, bias correction
   and schedule count from there.

From scratch: first each sample sees one of its conditions, then all: no
condition can hide behind another while both are weak.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal, NamedTuple

import flax.traverse_util
import jax
from jax import numpy as jnp
from jaxtyping import Array
import numpy as np
import optax

from mirage_jax import config, tokens, train_step

VIDEO = 'video'


@dataclasses.dataclass(frozen=True)
class StitchConfig:
  """How streams are joined to weights that lack them, or to each other.

  Attributes:
    new: Streams that the weights of `init_from` may lack; they start fresh.
    warmup_steps: So many steps at the start, only the new streams learn.
    ramp_steps: So many steps, the new streams' share of the others' attention
      rises from 0 to 1; with 0 they count in full at once, and step 0 is not
      the old model any more.
    ramp: How it rises: 'linear', or 'cosine', slowly at both ends.
    clip_apart: New streams and old ones clip their own gradients: large ones of
      the fresh do not make small ones of the trained smaller. Else one norm
      counts all, also those that are not learning yet.
    copy_clock: New streams with positions take the turns by time that the
      video's tokens have learnt, so that both agree on it.
    factors: Factors of the learning rate by group: a stream's name, 'video' for
      all that belongs to none. 1 where a group is absent.
    single_steps: So many steps at the start, each sample sees but one of its
      conditions, drawn at random: warm-ups for training from scratch.
  """

  new: tuple[str, ...] = ()
  warmup_steps: int = 0
  ramp_steps: int = 0
  ramp: Literal['linear', 'cosine'] = 'linear'
  clip_apart: bool = True
  copy_clock: bool = True
  factors: Mapping[str, float] = dataclasses.field(default_factory=dict)
  single_steps: int = 0

  def __post_init__(self):
    if self.ramp not in ('linear', 'cosine'):
      raise ValueError(
        f"stitch.ramp is 'linear' or 'cosine', not {self.ramp!r}."
      )
    for name in ('warmup_steps', 'ramp_steps', 'single_steps'):
      if getattr(self, name) < 0:
        raise ValueError(f'stitch.{name} must not be negative.')
    if (self.warmup_steps or self.ramp_steps) and not self.new:
      raise ValueError(
        'stitch.warmup_steps and ramp_steps are about new streams: name them '
        'in stitch.new.'
      )
    if VIDEO in self.new:
      raise ValueError('stitch.new: the video stream cannot be new.')
    for name, factor in self.factors.items():
      if factor < 0:
        raise ValueError(f'stitch.factors.{name} must not be negative.')


def check(cfg: StitchConfig, model: config.MirageConfig, num_steps: int):
  """Raises ValueError if a recipe does not fit the model or the run."""
  streams = model.streams()
  for field, names in (('new', cfg.new), ('factors', cfg.factors)):
    if strange := [name for name in names if name not in streams]:
      raise ValueError(
        f'stitch.{field} has {strange}; the model has the streams '
        f'{", ".join(streams)}.'
      )
  if cfg.warmup_steps >= num_steps:
    raise ValueError(
      f'stitch.warmup_steps {cfg.warmup_steps} leave none of num_steps '
      f'{num_steps} for the rest.'
    )


def group(path: str) -> str:
  """The stream to which a parameter of `dit.Mirage` belongs.

  Args:
    path: Names down to it, joined by '/'.
  """
  first, *rest = path.split('/')
  if first in ('blocks', 'last'):
    return 'audio' if rest[0] == 'cross' else rest[0]
  if first in ('pool', 'text_ids'):
    return 'text'
  for end in ('_in', '_stem', '_frequencies'):
    if first.endswith(end):
      return first.removesuffix(end)
  return VIDEO


def adopt(
  cfg: StitchConfig, fresh: Mapping[str, Any], found: Mapping[str, Any]
) -> dict[str, Any]:
  """The parameters of a run that starts from weights without some streams.

  Args:
    cfg: The recipe.
    fresh: As initialised; not changed.
    found: The old model's.

  Returns:
    `found`, with the new streams of `fresh`. What would change the old model's
    output is zero in them: the pooled text, and what old queries get added.

  Raises:
    ValueError: `found` lacks anything else, has more, or has other shapes.
  """
  fresh = flax.traverse_util.flatten_dict(fresh, sep='/')
  found = flax.traverse_util.flatten_dict(found, sep='/')
  result, lacks = {}, []
  for path, x in fresh.items():
    if path in found:
      result[path] = found[path]
    elif group(path) in cfg.new:
      result[path] = _fresh(cfg, path, x, found)
    elif cfg.new and path.endswith('video/q_norm/bias'):
      result[path] = np.zeros(x.shape, x.dtype)
    else:
      lacks.append(path)
  shapes = [
    f'{path} {np.shape(found[path])}, not {x.shape}'
    for path, x in fresh.items()
    if path in found and np.shape(found[path]) != x.shape
  ]
  extra = [path for path in found if path not in fresh]
  said = (('lacks', lacks), ('also has', extra), ('has', shapes))
  if wrong := [f'{what} {_some(paths)}' for what, paths in said if paths]:
    raise ValueError(f'it {"; it ".join(wrong)}')
  return flax.traverse_util.unflatten_dict(result, sep='/')


def _fresh(cfg, path, x, found):
  """A new stream's array as it starts."""
  video = found.get('video_frequencies')
  clock = cfg.copy_clock and path.endswith('_frequencies') and video is not None
  if not clock and not path.startswith('pool/out/'):
    return x
  result = np.zeros(x.shape, x.dtype)
  if clock:
    result[0] = video[0]  # Rows and columns are 0 for tokens without a place.
  return result


def _some(paths, limit=3):
  more = f' and {len(paths) - limit} more' if len(paths) > limit else ''
  return ', '.join(paths[:limit]) + more


def during(
  cfg: StitchConfig, batch: Mapping[str, Array], step: Array, key: jax.Array
) -> dict[str, Array]:
  """A training batch as it counts at `step`; `key` draws what is seen."""
  batch = dict(batch)
  if cfg.single_steps:
    batch = _one_condition(batch, key, step >= cfg.single_steps)
  return batch | shares(cfg, step)


def shares(cfg: StitchConfig, step: Array) -> dict[str, Array]:
  """{'audio_share': float32 []...} of the new streams; see `dit.Mirage`."""
  if not cfg.ramp_steps:
    return {}
  share = jnp.clip(jnp.asarray(step, jnp.float32) / cfg.ramp_steps, 0.0, 1.0)
  if cfg.ramp == 'cosine':
    share = (1.0 - jnp.cos(jnp.pi * share)) / 2.0
  return {f'{name}_share': share for name in cfg.new}


def _one_condition(batch, key, over):
  """Masks all conditions but one, another in each sample, unless `over`."""
  present, key = tokens.conditions(batch), jax.random.fold_in(key, 0)
  size = batch['video'].shape[0]
  chosen = jax.random.randint(key, (size,), 0, max(len(present), 1))
  for i, name in enumerate(present):
    keep = (chosen == i) | over
    batch[f'{name}_mask'] = tokens.hidden(batch, name, keep)
  return batch


def optimizer(
  opt: train_step.OptimizerConfig, cfg: StitchConfig, num_steps: int
) -> optax.GradientTransformation:
  """Two optimizers, of what is new and of what waits for it, and factors."""
  tx = train_step.optimizer(opt, num_steps)
  if cfg.new:
    each = opt
    if not cfg.clip_apart:
      each = dataclasses.replace(opt, clip_norm=float('inf'))
    late = train_step.optimizer(each, num_steps - cfg.warmup_steps)
    parts = {
      'new': train_step.optimizer(each, num_steps),
      'old': after(late, cfg.warmup_steps),
    }
    tx = optax.multi_transform(
      parts, lambda params: _by_group(params, lambda g: _age(cfg, g))
    )
    if not cfg.clip_apart:
      tx = optax.chain(optax.clip_by_global_norm(opt.clip_norm), tx)
  return optax.chain(tx, _scaled(cfg.factors)) if cfg.factors else tx


def _age(cfg, name):
  return 'new' if name in cfg.new else 'old'


def _by_group(tree, value):
  """`value` of each parameter's group, as a tree."""

  def of(path, _):
    names = [entry.key for entry in path if hasattr(entry, 'key')]
    return value(group('/'.join(names)))

  return jax.tree.map_with_path(of, tree)


def _scaled(factors):
  def scale(updates, _):
    by_group = _by_group(updates, lambda name: factors.get(name, 1.0))
    return jax.tree.map(lambda x, factor: factor * x, updates, by_group)

  return optax.stateless(scale)


class Waiting(NamedTuple):
  """Of `after`: the updates so far [] int32, and the state that waits."""

  count: Array
  inner: Any


def after(
  tx: optax.GradientTransformation, steps: int
) -> optax.GradientTransformation:
  """`tx` from update number `steps` on; before it, nothing moves.

  Its state waits, too: what it counts and averages starts then. Had the moments
  stood at zero while the count went on, Adam's first steps would be too large,
  since the bias of a young average would not be corrected.
  """

  def init(params):
    return Waiting(jnp.zeros((), jnp.int32), tx.init(params))

  def update(updates, state, params=None):
    updates, inner = jax.lax.cond(
      state.count >= steps,
      lambda: tx.update(updates, state.inner, params),
      lambda: (jax.tree.map(jnp.zeros_like, updates), state.inner),
    )
    return updates, Waiting(optax.safe_increment(state.count), inner)

  return optax.GradientTransformation(init, update)
