"""LoRA: low-rank changes of linear layers (Hu et al., arXiv 2106.09685).

A kernel W becomes W + alpha / rank * A B, of which only A and B learn. It is a
transform of the parameter tree: `attach` puts them beside the kernel, where
`linear.Linear` finds them and adds x A B to its output, so that neither the sum
nor its gradient is ever as large as W; `merge` adds them to W, for a model that
is plain again. With B zero at the start, step 0 is the base.
"""

from collections.abc import Mapping
import dataclasses
import fnmatch
import math
from typing import Any

import flax.struct
import flax.traverse_util
import jax
from jax import numpy as jnp
from jaxtyping import Float
import numpy as np
import optax

from mirage_jax import train_step
from mirage_jax.linear import LORA

# Attention's projections and the MLPs of all streams in all blocks.
TARGETS = tuple(
  f'{block}/*/{name}'
  for block in ('blocks', 'last')
  for name in ('qkv', 'out', 'mlp/up', 'mlp/down')
)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Which layers change, and how much.

  Attributes:
    rank: Columns of A and rows of B.
    alpha: The change counts alpha / rank times; 0 is `rank`.
    targets: Patterns of the paths of linear layers in the parameter tree; * is
      anything: 'blocks/video/*', '*/qkv', 'audio_in'.
  """

  rank: int
  alpha: float = 0.0
  targets: tuple[str, ...] = TARGETS

  def __post_init__(self):
    if self.rank < 1:
      raise ValueError(f'lora.rank must be at least 1, got {self.rank}.')
    if self.alpha < 0:
      raise ValueError(f'lora.alpha must not be negative, got {self.alpha}.')

  @property
  def scale(self) -> float:
    """What the product of A and B is multiplied by."""
    return (self.alpha or self.rank) / self.rank


@flax.struct.dataclass
class LoraState(train_step.TrainState):
  """A state whose `params` and `ema` are changes of a base.

  Attributes:
    base: Parameters that no optimizer knows.
  """

  base: Any


def new_state(
  changes: Any, tx: optax.GradientTransformation, base: Any
) -> LoraState:
  """Step 0, as `train_step.new_state`."""
  return LoraState(**vars(train_step.new_state(changes, tx)), base=base)


def layers(cfg: LoraConfig, params: Mapping[str, Any]) -> list[str]:
  """Paths of the linear layers that change.

  Raises:
    ValueError: A pattern is that of no layer.
  """
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  linear = [p.removesuffix('/kernel') for p in flat if p.endswith('/kernel')]
  found = []
  for pattern in cfg.targets:
    matches = fnmatch.filter(linear, pattern)
    if not matches:
      raise ValueError(
        f'lora.targets: no linear layer is {pattern!r}; there are '
        f'{", ".join(sorted(linear)[:5])} and {max(len(linear) - 5, 0)} more.'
      )
    found += matches
  return sorted(set(found))


def init(
  key: jax.Array, cfg: LoraConfig, params: Mapping[str, Any]
) -> dict[str, Any]:
  """Changes that change nothing yet.

  Args:
    key: Of A.
    cfg: Rank and targets.
    params: The base, or its abstract shapes.

  Returns:
    {layer: {'lora_a': [L? in... rank], 'lora_b': [L? rank out...]}}, nested as
    `params`, float32; L is that of stacked layers. A is normal with the
    deviation of LeCun's init, B zero.
  """
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  made = {}
  paths = layers(cfg, params)
  for path, subkey in zip(
    paths, jax.random.split(key, len(paths)), strict=True
  ):
    shape = flat[f'{path}/kernel'].shape
    first, end = train_step.input_axes(f'{path}/kernel'.split('/'), len(shape))
    lead, inputs, outputs = shape[:first], shape[first:end], shape[end:]
    a = jax.random.normal(subkey, (*lead, *inputs, cfg.rank))
    b = jnp.zeros((*lead, cfg.rank, *outputs))
    a = a / math.sqrt(math.prod(inputs))
    made[path] = {LORA[0]: a, LORA[1]: b}
  return flax.traverse_util.unflatten_dict(made, sep='/')


def attach(
  params: Mapping[str, Any], changes: Mapping[str, Any], cfg: LoraConfig
) -> dict[str, Any]:
  """The base with its changes beside it, for `dit.Mirage` to apply."""
  result = dict(params)
  for name, change in changes.items():
    if LORA[1] in change:
      a, b = (change[part] for part in LORA)
      result[name] = {**params[name], LORA[0]: a, LORA[1]: cfg.scale * b}
    else:
      result[name] = attach(params[name], change, cfg)
  return result


def merge(
  params: Mapping[str, Any], changes: Mapping[str, Any], cfg: LoraConfig
) -> dict[str, Any]:
  """A plain tree of parameters, numpy float32: the base with its changes.

  Raises:
    ValueError: The changes are of another model.
  """
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  for path, change in _flat(changes).items():
    kernel = f'{path}/kernel'
    added = delta(cfg, kernel, *(change[part] for part in LORA))
    if kernel not in flat or flat[kernel].shape != added.shape:
      raise ValueError(f'the model has no {kernel} of {added.shape} to change.')
    flat[kernel] = flat[kernel] + added
  return flax.traverse_util.unflatten_dict(flat, sep='/')


def delta(
  cfg: LoraConfig,
  kernel: str,
  a: Float[np.ndarray, '*in r'],
  b: Float[np.ndarray, '*out'],
) -> Float[np.ndarray, '*n']:
  """What is added to a kernel, float32, in its shape.

  Args:
    cfg: Of the changes.
    kernel: Its path, which tells whether layers are stacked in it.
    a: [L? in... rank], b: [L? rank out...], as `init` has them; of `a`, or of
      both if layers are stacked, a part of the first axis will do.
  """
  a, b = (np.asarray(x, np.float32) for x in (a, b))
  stacked = stacks(kernel, a.ndim)
  lead = a.shape[:stacked]
  product = a.reshape(*lead, -1, a.shape[-1]) @ b.reshape(
    *lead, a.shape[-1], -1
  )
  return cfg.scale * product.reshape(*a.shape[:-1], *b.shape[stacked + 1 :])


def stacks(kernel: str, ndim: int) -> int:
  """1 if the first axis of a kernel counts layers, else 0."""
  return train_step.input_axes(kernel.split('/'), ndim)[0]


def _flat(changes):
  """{path of a layer: its A and B}."""
  result = {}
  for path, x in flax.traverse_util.flatten_dict(changes, sep='/').items():
    layer, part = path.rsplit('/', 1)
    result.setdefault(layer, {})[part] = x
  return result
