"""What the encoders share: norms, attention, and the plain transformer block.

Parameters are float32; matmuls run in `dtype`; norms and softmax in float32.
"""

from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from mirage_jax.heads import rms_norm
from mirage_jax.linear import Linear
from mirage_jax.ops.attention import attention
from mirage_jax.ops.attention.reference import MASKED

EPS = 1e-5


class LayerNorm(nn.Module):
  """Over the last axis, in float32; keeps the dtype."""

  eps: float = EPS

  @nn.compact
  def __call__(self, x: Float[Array, '...']) -> Float[Array, '...']:
    weight, bias = scale_and_bias(self, x.shape[-1])
    y = x.astype(jnp.float32)
    y = rms_norm(y - y.mean(-1, keepdims=True), self.eps)
    lead = (1,) * (x.ndim - 1) + (-1,)
    return (y * weight.reshape(lead) + bias.reshape(lead)).astype(x.dtype)


def scale_and_bias(
  module: nn.Module, size: int
) -> tuple[Float[Array, 'C'], Float[Array, 'C']]:
  """The parameters of a norm over the residual stream, inside a module."""
  box = lambda init: nn.with_logical_partitioning(init, ('embed',))
  ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
  weight = module.param('scale', box(ones), (size,), jnp.float32)
  return weight, module.param('bias', box(zeros), (size,), jnp.float32)


def biased_attention(
  q: Float[Array, 'B T H D'],
  k: Float[Array, 'B S H D'],
  v: Float[Array, 'B S H D'],
  bias: Float[Array, '_ H T S'],
  mask: Bool[Array, 'B S'] | None = None,
) -> Float[Array, 'B T H D']:
  """Softmax attention with a bias on the logits, which are not scaled."""
  logits = jnp.einsum(
    'BTHD,BSHD->BHTS', q, k, preferred_element_type=jnp.float32
  )
  logits = logits + bias.astype(jnp.float32)
  if mask is not None:
    logits = jnp.where(mask[:, None, None, :], logits, MASKED)
  weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
  return jnp.einsum('BHTS,BSHD->BTHD', weights, v)


class SelfAttention(nn.Module):
  """Multi-head attention with a projection in and out.

  Attributes:
    heads: (H, D).
    biases: Names of the projections (q, k, v, out) that have a bias.
    scale: Of the queries; None for D ** -0.5.
    dtype: Compute dtype.
  """

  heads: tuple[int, int]
  biases: str = 'q k v out'
  scale: float | None = None
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B T C'],
    mask: Bool[Array, 'B T'] | None = None,
    bias: Float[Array, '_ H T T'] | None = None,
  ) -> Float[Array, 'B T C']:
    width, names = x.shape[-1], ('heads', 'kv')
    biases = self.biases.split()
    q, k, v = (
      Linear(
        (width, *self.heads),
        ('embed', *names),
        use_bias=name in biases,
        dtype=self.dtype,
        name=name,
      )(x)
      for name in 'qkv'
    )
    if bias is None:
      y = attention(q, k, v, mask)
    else:
      scale = self.heads[1] ** -0.5 if self.scale is None else self.scale
      y = biased_attention(q * jnp.asarray(scale, q.dtype), k, v, bias, mask)
    return Linear(
      (*self.heads, width),
      (*names, 'embed'),
      num_in=2,
      use_bias='out' in biases,
      dtype=self.dtype,
      name='out',
    )(y)


class Mlp(nn.Module):
  """Linear, exact GELU, Linear."""

  hidden: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Float[Array, 'B T C']) -> Float[Array, 'B T C']:
    width, options = x.shape[-1], dict(dtype=self.dtype)
    shape = (width, self.hidden)
    y = Linear(shape, ('embed', 'mlp'), name='up', **options)(x)
    y = nn.gelu(y, approximate=False)
    return Linear(shape[::-1], ('mlp', 'embed'), name='down', **options)(y)


class Block(nn.Module):
  """Attention and MLP, each with its residual and LayerNorm.

  Attributes:
    heads: (H, D).
    mlp_dim: Hidden size.
    pre_norm: Norms before the sublayers, not after the sums.
    biases: See `SelfAttention`.
    gate: None, or makes the module (name=...) that turns the attention's input
      and the shared bias into the attention's own bias.
    keep: Return the hidden state a second time, for `nn.scan` to stack.
    dtype: Compute dtype.
  """

  heads: tuple[int, int]
  mlp_dim: int
  pre_norm: bool
  biases: str = 'q k v out'
  gate: Any = None
  keep: bool = False
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B T C'],
    mask: Bool[Array, 'B T'] | None = None,
    bias: Float[Array, '_ H T T'] | None = None,
  ) -> tuple[Float[Array, 'B T C'], Float[Array, 'B T C'] | None]:
    norms = [LayerNorm(name='attn_norm'), LayerNorm(name='mlp_norm')]
    attend = SelfAttention(
      self.heads, self.biases, dtype=self.dtype, name='attn'
    )
    mlp = Mlp(self.mlp_dim, self.dtype, name='mlp')
    y = norms[0](x) if self.pre_norm else x
    if self.gate is not None:
      bias = self.gate(name='gate')(y, bias)
    x = x + attend(y, mask, bias)
    x = x if self.pre_norm else norms[0](x)
    x = x + mlp(norms[1](x) if self.pre_norm else x)
    x = x if self.pre_norm else norms[1](x)
    return x, x if self.keep else None


def scan_blocks(block: Any, depth: int, keep: bool, **fields: Any) -> nn.Module:
  """`depth` blocks as one module 'blocks', their parameters stacked.

  Args:
    block: Module class whose call gives (x, x if keep else None).
    depth: How many.
    keep: Stack the hidden states.
    **fields: The block's fields.
  """
  scanned = nn.scan(
    block,
    variable_axes={'params': 0},
    split_rngs={'params': True},
    in_axes=nn.broadcast,
    length=depth,
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )
  return scanned(keep=keep, name='blocks', **fields)


def stack_hidden(
  first: Float[Array, 'B T C'], rest: Float[Array, 'N B T C'] | None
) -> Float[Array, 'M B T C'] | None:
  """The blocks' input and their outputs, M = N + 1; None if not kept."""
  return None if rest is None else jnp.concatenate([first[None], rest])
