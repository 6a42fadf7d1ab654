"""The text encoders T5 v1.1 (arXiv 1910.10683, 2002.05202) and UMT5.

Pre-norm blocks of unscaled attention, with a bias by relative distance, and a
gated GELU. Mochi, and Mirage, use XXL's output: 256 tokens of 4096 numbers.
"""

import dataclasses

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mirage_jax.encoders import layers
from mirage_jax.encoders.relative import RelativeBias
from mirage_jax.heads import rms_norm
from mirage_jax.linear import Linear


@dataclasses.dataclass(frozen=True)
class T5Config:
  """Sizes of an encoder; `SIZES` has the published ones.

  Attributes:
    width: Of the residual stream.
    depth: Blocks.
    num_heads: Heads.
    mlp_dim: Hidden size of the MLP.
    head_dim: Size of a head; heads need not add up to the width.
    vocab: Ids.
    bias_in_every_block: A table of relative biases in each block (UMT5), not
      one for all (T5).
    num_buckets: Of distances, both directions together.
    max_distance: From here on, distances share a bucket.
    dtype: Compute dtype; float16 overflows in the larger ones.
  """

  width: int
  depth: int
  num_heads: int
  mlp_dim: int
  head_dim: int = 64
  vocab: int = 32128
  bias_in_every_block: bool = False
  num_buckets: int = 32
  max_distance: int = 128
  dtype: str = 'float32'


_UMT5 = dict(vocab=256384, bias_in_every_block=True)
# google/t5-v1_1-*, also google/flan-t5-*; google/umt5-*.
SIZES = {
  't5_v1_1_small': T5Config(512, 8, 6, 1024),
  't5_v1_1_base': T5Config(768, 12, 12, 2048),
  't5_v1_1_large': T5Config(1024, 24, 16, 2816),
  't5_v1_1_xl': T5Config(2048, 24, 32, 5120),
  't5_v1_1_xxl': T5Config(4096, 24, 64, 10240),
  'umt5_small': T5Config(512, 8, 6, 1024, **_UMT5),
  'umt5_base': T5Config(768, 12, 12, 2048, **_UMT5),
  'umt5_xl': T5Config(2048, 24, 32, 5120, **_UMT5),
  'umt5_xxl': T5Config(4096, 24, 64, 10240, **_UMT5),
}
EPS = 1e-6


class RmsNorm(nn.Module):
  """RMSNorm with a learned weight, in float32; keeps the dtype."""

  @nn.compact
  def __call__(self, x: Float[Array, 'B T C']) -> Float[Array, 'B T C']:
    ones = nn.with_logical_partitioning(nn.initializers.ones_init(), ('embed',))
    weight = self.param('scale', ones, x.shape[-1:], jnp.float32)
    return (rms_norm(x, EPS) * weight[None, None]).astype(x.dtype)


class GatedMlp(nn.Module):
  """Bias-free down(gelu(gate(x)) * up(x)), GELU by its tanh form."""

  cfg: T5Config

  @nn.compact
  def __call__(self, x: Float[Array, 'B T C']) -> Float[Array, 'B T C']:
    cfg = self.cfg
    options = dict(use_bias=False, dtype=cfg.dtype)
    shape, names = (cfg.width, cfg.mlp_dim), ('embed', 'mlp')
    gate = nn.gelu(Linear(shape, names, name='gate', **options)(x))
    hidden = gate * Linear(shape, names, name='up', **options)(x)
    return Linear(shape[::-1], names[::-1], name='down', **options)(hidden)


class Block(nn.Module):
  """Attention, then the MLP; see `layers.scan_blocks`."""

  cfg: T5Config
  keep: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B T C'],
    mask: Bool[Array, 'B T'] | None,
    bias: Float[Array, '1 H T T'] | None,
  ) -> tuple[Float[Array, 'B T C'], Float[Array, 'B T C'] | None]:
    cfg = self.cfg
    if cfg.bias_in_every_block:
      bias = _relative_bias(cfg)(x.shape[1])
    attend = layers.SelfAttention(
      (cfg.num_heads, cfg.head_dim), '', 1.0, cfg.dtype, name='attn'
    )
    x = x + attend(RmsNorm(name='attn_norm')(x), mask, bias)
    x = x + GatedMlp(cfg, name='mlp')(RmsNorm(name='mlp_norm')(x))
    return x, x if self.keep else None


class T5Encoder(nn.Module):
  """Ids to features."""

  cfg: T5Config

  @nn.compact
  def __call__(
    self,
    ids: Int[Array, 'B T'],
    mask: Bool[Array, 'B T'] | None = None,
    *,
    hidden: bool = False,
  ) -> tuple[Float[Array, 'B T C'], Float[Array, 'N B T C'] | None]:
    """Encodes text.

    Args:
      ids: Of the checkpoint's own sentencepiece model, ending in </s>.
      mask: True for ids that exist; the others have no influence.
      hidden: Return the hidden states, too.

    Returns:
      Features, in the compute dtype, and the embeddings and every block's
      output (N = depth + 1, before the last norm), or None.
    """
    cfg = self.cfg
    init = nn.with_logical_partitioning(
      nn.initializers.normal(1.0), ('vocab', 'embed')
    )
    table = self.param('table', init, (cfg.vocab, cfg.width), jnp.float32)
    first = jnp.take(table, ids, axis=0).astype(cfg.dtype)
    bias = None
    if not cfg.bias_in_every_block:
      bias = _relative_bias(cfg)(ids.shape[1])
    blocks = layers.scan_blocks(Block, cfg.depth, hidden, cfg=cfg)
    x, rest = blocks(first, mask, bias)
    x = RmsNorm(name='norm')(x)
    return x, layers.stack_hidden(first, rest)


def _relative_bias(cfg):
  return RelativeBias(
    cfg.num_heads, cfg.num_buckets, cfg.max_distance, name='bias'
  )


def abstract_params(cfg: T5Config):
  """Shapes of the parameters, boxed with their logical axis names."""
  ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  init = T5Encoder(cfg).init
  return jax.eval_shape(init, jax.random.key(0), ids)['params']
