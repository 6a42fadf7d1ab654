"""The state of a training run and one optimizer update of it."""

from collections.abc import Callable, Collection, Sequence
import dataclasses
from typing import Any, Literal

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
import optax.contrib


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW or Muon with linear warm-up, cosine decay, clipping, an average.

  Attributes:
    learning_rate: The peak.
    name: 'adamw', or 'muon' for the kernels of hidden layers (Jordan 2024) with
      AdamW for the rest; its updates are scaled to AdamW's size (Liu et al.
      2025, arXiv 2502.16982), so the same rates serve both.
    warmup_steps: Steps of linear rise from zero.
    final_fraction: What is left of the peak at the last step.
    b1: Decay of the first moment.
    b2: Decay of the second moment.
    weight_decay: Applied to arrays of two and more dimensions.
    clip_norm: Largest global norm of a gradient.
    ema_decay: Of the averaged parameters; ramps up as (1 + t) / (10 + t).
  """

  learning_rate: float
  name: Literal['adamw', 'muon'] = 'adamw'
  warmup_steps: int = 100
  final_fraction: float = 0.01
  b1: float = 0.9
  b2: float = 0.99
  weight_decay: float = 0.01
  clip_norm: float = 1.0
  ema_decay: float = 0.999


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What `launch.loop` runs; see its protocol."""

  init: Callable
  train_step: Callable
  dataset: Callable | None
  eval_step: Callable | None
  eval_dataset: Callable | None
  axis_rules: tuple
  tokens_per_step: int = 0
  adopt: Callable | None = None


@flax.struct.dataclass
class TrainState:
  """What a checkpoint holds beside the place in the data."""

  step: jax.Array  # []
  params: Any
  opt_state: Any
  ema: Any


def optimizer(
  cfg: OptimizerConfig, num_steps: int
) -> optax.GradientTransformation:
  """AdamW over `num_steps`; norms, biases and gains are not decayed."""
  schedule = optax.warmup_cosine_decay_schedule(
    0.0,
    cfg.learning_rate,
    cfg.warmup_steps,
    max(num_steps, cfg.warmup_steps + 1),
    cfg.learning_rate * cfg.final_fraction,
  )
  return optax.chain(
    optax.clip_by_global_norm(cfg.clip_norm), _direction(cfg, schedule)
  )


def _direction(cfg, schedule):
  def decayed(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)

  if cfg.name == 'adamw':
    return optax.adamw(
      schedule,
      b1=cfg.b1,
      b2=cfg.b2,
      weight_decay=cfg.weight_decay,
      mask=decayed,
    )
  return optax.contrib.muon(
    schedule,
    weight_decay=cfg.weight_decay,
    weight_decay_mask=decayed,
    adam_b1=cfg.b1,
    adam_b2=cfg.b2,
    muon_weight_dimension_numbers=hidden_matrices,
    consistent_rms=0.2,
  )


def freeze(
  tx: optax.GradientTransformation, names: Collection[str]
) -> optax.GradientTransformation:
  """`tx`, but the parameters under these top-level names never change."""

  def labels(params):
    return jax.tree.map_with_path(lambda path, _: path[0].key in names, params)

  return optax.multi_transform({True: optax.set_to_zero(), False: tx}, labels)


# Layers whose kernels Muon takes: convolutions, projections of attention and
# MLP. What touches inputs, outputs or conditions stays with AdamW.
HIDDEN = ('conv1', 'conv2', 'proj', 'qkv', 'q', 'kv', 'out', 'up', 'down')


def hidden_matrices(params: Any) -> Any:
  """Which axes of each kernel are a matrix's rows and columns; None: none."""

  def axes(path, x):
    names = [entry.key for entry in path if hasattr(entry, 'key')]
    if len(names) < 3 or names[-1] != 'kernel' or names[-2] not in HIDDEN:
      return None
    first, end = input_axes(names, x.ndim)
    rows, columns = range(first, end), range(end, x.ndim)
    return optax.contrib.MuonDimensionNumbers(tuple(rows), tuple(columns))

  return jax.tree_util.tree_map_with_path(axes, params)


def input_axes(names: Sequence[str], ndim: int) -> tuple[int, int]:
  """The first of a kernel's axes that are inputs, and the first of its outputs.

  Args:
    names: The path to the kernel.
    ndim: Its number of axes.
  """
  first = 1 if 'blocks' in names else 0  # nn.scan stacks the layers there.
  end = ndim - 1 if ndim == 5 and not first else first + 1
  if names[-2] in ('out', 'conv1', 'conv2') and ndim - first == 3:
    end = first + 2  # heads and their size, or taps and channels
  return first, end


def new_state(params: Any, tx: optax.GradientTransformation) -> TrainState:
  """Step 0: moments at zero and the average at the parameters."""
  # A copy: a donated state must not hold one buffer twice.
  ema = jax.tree.map(jnp.copy, params)
  opt_state = jax.tree.map(_without_empty_box, tx.init(params), is_leaf=_is_box)
  return TrainState(jnp.zeros((), jnp.int32), params, opt_state, ema)


def _is_box(x):
  return isinstance(x, nn.meta.AxisMetadata)


def _without_empty_box(x):
  """Drops the axis names of what an optimizer leaves to another one."""
  empty = _is_box(x) and isinstance(x.unbox(), optax.MaskedNode)
  return x.unbox() if empty else x


def update(
  state: TrainState,
  loss_fn: Callable[[Any], tuple[jax.Array, dict[str, jax.Array]]],
  tx: optax.GradientTransformation,
  ema_decay: float,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One step down the gradient of `loss_fn(params) -> (loss, metrics)`."""
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  (loss, metrics), grads = grad_fn(state.params)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
  ema = optax.incremental_update(params, state.ema, 1 - decay)
  metrics = {'loss': loss, 'grad_norm': optax.tree.norm(grads), **metrics}
  after = dict(params=params, opt_state=opt_state, ema=ema)
  return state.replace(step=state.step + 1, **after), metrics
