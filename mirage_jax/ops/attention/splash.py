"""JAX's own TPU kernel, `splash_attention`: what ours is compared with."""

import math

import jax
from jax import numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash,
  splash_attention_mask as masks,
)
from jaxtyping import Array, Bool, Float

# Queries, keys and keys at a time, forward and backward: near the best of
# tokamax's autotuning on real v5p and v6e for 16,384 tokens, and within the
# memory that libtpu lets a kernel have.
BLOCKS = (1024, 2048, 512) * 2
SHORT = (512,) * 6


def attention(
  q: Float[Array, 'B T H D'],
  k: Float[Array, 'B S H D'],
  v: Float[Array, 'B S H D'],
  mask: Bool[Array, 'B S'] | None = None,
  *,
  blocks: tuple[int, ...] | None = None,
  interpret: bool = False,
) -> Float[Array, 'B T H D']:
  """See `api.attention`. Queries and keys are padded to whole blocks."""
  rows, keys = q.shape[1], k.shape[1]
  blocks = blocks or (BLOCKS if min(rows, keys) > BLOCKS[0] else SHORT)
  units = math.lcm(blocks[0], blocks[3]), math.lcm(*blocks[1:3], *blocks[4:])
  pads = [-n % unit for n, unit in zip((rows, keys), units, strict=True)]
  if mask is None and pads[1]:
    mask = jnp.ones((len(k), keys), bool)
  run = jax.vmap(
    kernel(q.shape[2], rows + pads[0], keys + pads[1], blocks, interpret)
  )

  def heads(x, pad):
    return jnp.swapaxes(jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))), 1, 2)

  scale = jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
  args = [heads(q * scale, pads[0]), heads(k, pads[1]), heads(v, pads[1])]
  if mask is None:
    return jnp.swapaxes(run(*args), 1, 2)[:, :rows]
  used = jnp.pad(mask, ((0, 0), (0, pads[1]))).astype(jnp.int32)
  ones = jnp.ones((len(q), rows + pads[0]), jnp.int32)
  out = run(*args, splash.SegmentIds(q=ones, kv=used))
  out = jnp.swapaxes(out, 1, 2)[:, :rows]
  some = jnp.any(mask, axis=1)[:, None, None, None]
  return jnp.where(some, out, jnp.zeros_like(out))


def kernel(
  heads: int,
  rows: int,
  keys: int,
  blocks: tuple[int, ...],
  interpret: bool = False,
) -> splash.SplashAttentionKernel:
  """Full attention of [H T D] in blocks as of BLOCKS, which divide it."""
  names = ('block_q', 'block_kv', 'block_kv_compute')
  names += tuple(f'{name}_dkv' for name in names[:2]) + (
    'block_kv_dkv_compute',
  )
  made = splash.make_splash_mha(
    masks.MultiHeadMask([masks.FullMask((rows, keys))] * heads),
    head_shards=1,
    q_seq_shards=1,
    block_sizes=splash.BlockSizes(
      **dict(zip(names, blocks, strict=True)), use_fused_bwd_kernel=True
    ),
    residual_checkpoint_name='attention',
    interpret=interpret,
  )
  # Its tables of blocks, of which none is masked, would only have branches
  # depend on data.
  plain = lambda x: x and x._replace(data_next=None, block_mask=None)
  return splash.SplashAttentionKernel(
    plain(made.fwd_mask_info),
    plain(made.dq_mask_info),
    plain(made.dkv_mask_info),
    **made.kwargs,
  )
