"""Flash attention for TPUs in Pallas: padding, masks, and the two kernels.

FlashAttention (arXiv 2205.14135, 2307.08691) for non-causal attention over
joined streams. Where no score can overflow, which normalised queries and keys
make certain, there is no running maximum: softmax does not depend on what is
subtracted, and floating point keeps its relative precision at any size.
"""

import functools
import math

import jax
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from mirage_jax.ops.attention import (
  dtypes,
  tpu_backward,
  tpu_backward_wide,
  tpu_blocks,
  tpu_forward,
)

# Scores are log2 of weights. With |score| <= 80 a sum of 2 ** 30 weights and
# the largest possible product with values are far from float32's 2 ** 128.
BOUND = 80.0


def attention(
  q: Float[Array, 'B T H D'],
  k: Float[Array, 'B S H D'],
  v: Float[Array, 'B S H D'],
  mask: Bool[Array, 'B S'] | None = None,
  *,
  chip: str | None = None,
  interpret=False,
) -> Float[Array, 'B T H D']:
  """See `api.attention`. Keeps only the output and one number per query.

  Under a mesh of several devices, call it inside `jax.shard_map`.

  Args:
    q: Queries; D is 64, 128, 192 or 256.
    k: Keys.
    v: Values.
    mask: True for keys that may be attended to. Blocks of keys without one are
      skipped, and only those with some of both are masked.
    chip: Whose blocks to take, see `tpu_blocks.CHIPS`; None for the chip that
      is compiled for.
    interpret: As of `pallas_call`, to run without a TPU.

  Raises:
    ValueError: The head dimension or a dtype is not supported, or the chip is
      not known.
  """
  plan = plan_of(q, k, v, chip=chip, tokens=1)
  if mask is not None:
    keep = mask[:, :, None, None]
    k, v = (jnp.where(keep, x, jnp.zeros_like(x)) for x in (k, v))
  heads = lambda x: jnp.swapaxes(x, 1, 2)
  out = _attention(heads(q), heads(k), heads(v), mask, plan, interpret)
  return heads(out)


def plan_of(
  q: Array, k: Array, v: Array, *, chip: str | None = None, tokens: int = 2
) -> tpu_blocks.Plan:
  """Blocks for q, k and v, whose axis of that number is tokens.

  Raises:
    ValueError: As `attention`.
  """
  dim = q.shape[-1]
  if dim not in (64, 128, 192, 256):
    raise ValueError(
      f"attention 'tpu' has heads of 64, 128, 192 or 256, not {dim}; "
      "'recompute' and 'reference' have any."
    )
  dtypes.check('tpu', q, k, v)
  chip = tpu_blocks.chip() if chip is None else chip
  lengths = q.shape[tokens], k.shape[tokens]
  return tpu_blocks.plan(chip, *lengths, dim, q.dtype.itemsize)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q, k, v, mask, plan, interpret):
  return _forward(q, k, v, mask, plan, interpret)[0]


def _forward(q, k, v, mask, plan, interpret):
  q, used = scaled(q), used_keys(k, mask, plan)
  out, lse = forward(q, k, v, used, plan, interpret)
  out = checkpoint_name(out, 'attention')
  lse = checkpoint_name(lse, 'attention')
  return out, (q, k, v, used, out, lse)


def _backward(plan, interpret, saved, do):
  q, k, v, used, out, lse = saved
  # One number per query, which the kernel would compute once per key block.
  delta = do.astype(jnp.float32) * out.astype(jnp.float32)
  delta = jnp.sum(delta, axis=-1)[:, :, None]
  do = do.astype(q.dtype)
  return *backward(q, k, v, used, do, lse, delta, plan, interpret), None


_attention.defvjp(_forward, _backward)


def scaled(q: Float[Array, 'B H T D']) -> Float[Array, 'B H T D']:
  """q whose products with keys are log2 of weights.

  exp2 is the hardware's; the factors cost nothing on the way in.
  """
  scale = jnp.asarray(math.log2(math.e) * q.shape[-1] ** -0.5, jnp.float32)
  return (q.astype(jnp.float32) * scale).astype(q.dtype)


def used_keys(
  k: Float[Array, 'B H S D'],
  mask: Bool[Array, 'B S'] | None,
  plan: tpu_blocks.Plan,
) -> Bool[Array, 'B _']:
  """The mask of the keys and their padding."""
  if mask is None:
    mask = jnp.ones((k.shape[0], k.shape[2]), bool)
  return _pad(mask, plan.keys, 1)


def _pad(x, length, axis):
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, length - x.shape[axis])
  return x if widths[axis] == (0, 0) else jnp.pad(x, widths)


def _states(used, block):
  """Whether all, some or none of each block's keys are used; [B nk]."""
  used = used.reshape(used.shape[0], -1, block)
  return jnp.where(
    jnp.all(used, axis=2),
    tpu_forward.ALL,
    jnp.where(jnp.any(used, axis=2), tpu_forward.SOME, tpu_forward.NONE),
  ).astype(jnp.int32)


def _largest_score(q, k):
  """An upper bound of |score| in each sample (Cauchy-Schwarz); [B 1]."""

  def largest(x):
    squares = jnp.square(x.astype(jnp.float32))
    return jnp.max(jnp.sum(squares, axis=-1), axis=-1)

  return jnp.sqrt(jnp.max(largest(q) * largest(k), axis=1, keepdims=True))


def forward(
  q: Float[Array, 'B H T D'],
  k: Float[Array, 'B H S D'],
  v: Float[Array, 'B H S D'],
  used: Bool[Array, 'B _'],
  plan: tpu_blocks.Plan,
  interpret=False,
) -> tuple[Float[Array, 'B H T D'], Float[Array, 'B H 1 _']]:
  """Of `scaled` queries, and keys and values that are 0 where not used.

  Returns:
    The output, and float32 log2-sum-exp of all rows, padding too.
  """
  # NaN compares as unbounded.
  bounded = _largest_score(q, k) <= BOUND
  states = [(~bounded).astype(jnp.int32), _states(used, plan.forward.k)]
  out, lse = tpu_forward.attention(
    _pad(q, plan.rows, 2),
    _pad(k, plan.keys, 2),
    _pad(v, plan.keys, 2),
    jnp.concatenate(states, axis=1),
    used.astype(jnp.float32),
    blocks=plan.forward,
    interpret=interpret,
  )
  return out[:, :, : q.shape[2]], lse


def backward(
  q: Float[Array, 'B H T D'],
  k: Float[Array, 'B H S D'],
  v: Float[Array, 'B H S D'],
  used: Bool[Array, 'B _'],
  do: Float[Array, 'B H T D'],
  lse: Float[Array, 'B H 1 _'],
  delta: Float[Array, 'B H 1 T'],
  plan: tpu_blocks.Plan,
  interpret=False,
) -> tuple[
  Float[Array, 'B H T D'], Float[Array, 'B H S D'], Float[Array, 'B H S D']
]:
  """Gradients of the queries before `scaled`, keys and values.

  Args as of `forward`, and the output's gradient in q's dtype, the
  log2-sum-exp over all keys, be these more than the given ones, and the sums of
  output * gradient over D.
  """
  rows, keys = q.shape[2], k.shape[2]
  arrays = [_pad(x, plan.rows, 2) for x in (q, do)]
  arrays[1:1] = [_pad(x, plan.keys, 2) for x in (k, v)]
  options = dict(blocks=plan.backward, interpret=interpret)
  states = jnp.pad(_states(used, plan.backward.k), ((0, 0), (1, 0)))
  if plan.backward.wide:
    more = tpu_backward_wide.extra(lse[..., :rows], delta, q.dtype)
    more = _pad(more, plan.rows, 2)
    mask = used.astype(jnp.float32)
    grads = tpu_backward_wide.attention_vjp(
      *arrays, more, mask, states, **options
    )
  else:
    both = [_pad(x, plan.rows, 3) for x in (lse, delta)]
    grads = tpu_backward.attention_vjp(*arrays, *both, states, **options)
  dq, dk, dv = grads
  return dq[:, :, :rows], dk[:, :, :keys], dv[:, :, :keys]
