"""Flash attention for NVIDIA GPUs in Pallas, compiled by Triton.

FlashAttention-2 (arXiv 2307.08691) for non-causal attention over joined
streams, tokens and heads where the model has them: nothing is padded, turned or
kept but the output and one number per query. Blocks of keys that a sample does
not use are not visited, and only those with some of both are masked.
"""

import functools
import math

import jax
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from mirage_jax.ops.attention import (
  dtypes,
  gpu_backward,
  gpu_blocks,
  gpu_forward,
)
from mirage_jax.ops.attention.reference import MASKED


def attention(
  q: Float[Array, 'B T H D'],
  k: Float[Array, 'B S H D'],
  v: Float[Array, 'B S H D'],
  mask: Bool[Array, 'B S'] | None = None,
  *,
  interpret: bool = False,
) -> Float[Array, 'B T H D']:
  """See `api.attention`. Equal to the bit from run to run.

  Under a mesh of several devices, call it inside `jax.shard_map`.

  Args:
    q: Queries; D is 64, 128 or 256. bfloat16, or float32, whose products are
      those of TF32 three times over.
    k: Keys.
    v: Values.
    mask: True for keys that may be attended to.
    interpret: As of `pallas_call`, to run without a GPU.

  Raises:
    ValueError: The head dimension or a dtype is not supported, or the device
      is no GPU.
  """
  plan = plan_of(q, k, v, interpret)
  return _attention(q, k, v, mask, plan, interpret)


def plan_of(
  q: Array, k: Array, v: Array, interpret: bool = False
) -> gpu_blocks.Plan:
  """Blocks for q, k and v.

  Raises:
    ValueError: As `attention`.
  """
  dim = q.shape[-1]
  if dim not in gpu_blocks.PLANS:
    raise ValueError(
      f"attention 'gpu' has heads of {sorted(gpu_blocks.PLANS)}, not {dim}; "
      "'recompute' and 'reference' have any, 'cudnn' multiples of 8."
    )
  dtypes.check('gpu', q, k, v)
  if not interpret:
    gpu_blocks.check_device()
  return gpu_blocks.plan(dim, q.dtype.itemsize)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q, k, v, mask, plan, interpret):
  return _forward(q, k, v, mask, plan, interpret)[0]


def _forward(q, k, v, mask, plan, interpret):
  out, lse = gpu_forward.attention(
    q, k, v, mask, blocks=plan.forward, interpret=interpret
  )
  out = checkpoint_name(out, 'attention')
  lse = checkpoint_name(lse, 'attention')
  return out, (q, k, v, mask, out, lse)


def _backward(plan, interpret, saved, do):
  q, k, v, mask, out, lse = saved
  delta = jnp.sum(do.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
  grads = gpu_backward.attention_vjp(
    *(q, k, v, mask, do.astype(q.dtype), lse, jnp.swapaxes(delta, 1, 2)),
    plan=plan,
    interpret=interpret,
  )
  return *grads, None


_attention.defvjp(_forward, _backward)


def forward(
  q: Float[Array, 'B H T D'],
  k: Float[Array, 'B H S D'],
  v: Float[Array, 'B H S D'],
  mask: Bool[Array, 'B S'] | None,
  *,
  interpret: bool = False,
) -> tuple[Float[Array, 'B H T D'], Float[Array, 'B H T']]:
  """As `ring.Backend` has it."""
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  blocks = plan_of(q, k, v, interpret).forward
  out, lse = gpu_forward.attention(
    q, k, v, mask, blocks=blocks, interpret=interpret
  )
  lse = jnp.where(lse == gpu_forward.NO_KEYS, MASKED, lse * math.log(2))
  return jnp.swapaxes(out, 1, 2), lse


def backward(
  q: Float[Array, 'B H T D'],
  k: Float[Array, 'B H S D'],
  v: Float[Array, 'B H S D'],
  mask: Bool[Array, 'B S'] | None,
  lse: Float[Array, 'B H T'],
  delta: Float[Array, 'B H T'],
  do: Float[Array, 'B H T D'],
  *,
  interpret: bool = False,
) -> tuple[
  Float[Array, 'B H T D'], Float[Array, 'B H S D'], Float[Array, 'B H S D']
]:
  """As `ring.Backend` has it."""
  q, k, v, do = (jnp.swapaxes(x, 1, 2) for x in (q, k, v, do))
  none = gpu_forward.NO_KEYS
  lse = jnp.where(lse > MASKED / 2, lse * math.log2(math.e), none)
  grads = gpu_backward.attention_vjp(
    *(q, k, v, mask, do, lse, delta),
    plan=plan_of(q, k, v, interpret),
    interpret=interpret,
  )
  dq, dk, dv = (jnp.swapaxes(x, 1, 2) for x in grads)
  return dq, dk, dv
