"""From a stream's projection to the queries and keys that attention takes."""

from collections.abc import Sequence

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from mirage_jax import config, rope, sharding
from mirage_jax.ops import rotary

QK_EPS = 1e-5


def rms_norm(x: Float[Array, '...'], eps: float) -> Float[Array, '...']:
  """x over its root mean square along the last axis, in float32."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + eps)


class HeadNorm(nn.Module):
  """RMSNorm of every head with one learned weight; keeps the dtype.

  Attributes:
    shape: Heads and the size of one.
    alignment: If not 0, a learned bias is added, see `rope.init_alignment`.
  """

  shape: Sequence[int]
  alignment: float = 0.0

  def setup(self):
    ones = nn.with_logical_partitioning(nn.initializers.ones_init(), ('kv',))
    self.scale = self.param('scale', ones, (self.shape[1],), jnp.float32)
    if self.alignment:
      init = lambda key, shape: rope.init_alignment(shape, self.alignment)
      init = nn.with_logical_partitioning(init, ('heads', 'kv'))
      self.bias = self.param('bias', init, tuple(self.shape))

  def __call__(self, x: Float[Array, 'B T H D']) -> Float[Array, 'B T H D']:
    y = rms_norm(x, QK_EPS) * self.scale[None, None, None]
    if self.alignment:
      y = y + self.bias[None, None]
    return y.astype(x.dtype)


def fused(
  cfg: config.MirageConfig,
  qkv: Float[Array, 'B T 3 H D'],
  norms: Sequence[HeadNorm],
  tables: rope.Tables,
) -> list[Float[Array, 'B T H D']] | None:
  """Queries and keys, normalised and turned, and values, by one kernel.

  Args:
    cfg: The model.
    qkv: The projection of a stream that is split over the mesh's context.
    norms: Of queries and of keys.
    tables: Of the stream's tokens.

  Returns:
    None if there is no kernel beside `cfg.attention`, for heads of that size or
    with `alignment`.
  """
  if not rotary.supports(cfg.attention, cfg.head_dim):
    return None
  if any(norm.alignment for norm in norms):
    return None
  return rotary.turned(
    qkv,
    jnp.stack([norm.scale for norm in norms]),
    tables.turns,
    tables.positions,
    tables.frequencies,
    eps=QK_EPS,
    layout=sharding.attention_layout(cfg.attention, cfg.context, cfg.ring),
    interpret=cfg.attention.endswith('interpret'),
  )
