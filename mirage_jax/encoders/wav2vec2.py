"""wav2vec 2.0 (arXiv 2006.11477) and its kin HuBERT and WavLM.

Strided convolutions turn 16 kHz sound into a feature every 20 ms; a wide grouped
convolution adds positions; transformer blocks follow. Mirage, it says,
conditions on 1024 numbers, so on a Large one; on which, it does not say.
"""

import dataclasses
import functools
import math

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from mirage_jax.encoders import layers
from mirage_jax.encoders.relative import RelativeBias
from mirage_jax.linear import Linear
from mirage_jax.windows import windows


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config:
  """Sizes and variants; `SIZES` has the published ones.

  Attributes:
    width: Of the residual stream.
    depth: Blocks.
    num_heads: Heads.
    mlp_dim: Hidden size of the MLP.
    stable: Layer norms in every convolution, with a bias, and before each
      sublayer ('Large' as trained on Libri-Light); False has one group norm,
      in the first convolution, and norms after each sum.
    conv_bias: Bias of the convolutions; None for `stable`.
    conv_dim: Their channels.
    kernels: Their sizes.
    strides: Their strides.
    position_kernel: Size of the convolution that adds positions.
    position_groups: Its groups.
    num_buckets: WavLM's relative bias, gated by the content; 0 for none.
    max_distance: From here on, distances share a bucket.
    normalize: The wave is expected with mean 0 and variance 1.
    dtype: Compute dtype.
  """

  width: int
  depth: int
  num_heads: int
  mlp_dim: int
  stable: bool = False
  conv_bias: bool | None = None
  conv_dim: int = 512
  kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
  strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
  position_kernel: int = 128
  position_groups: int = 16
  num_buckets: int = 0
  max_distance: int = 800
  normalize: bool = True
  dtype: str = 'float32'

  def __post_init__(self):
    if len(self.kernels) != len(self.strides):
      raise ValueError('kernels and strides must be of one length.')
    for name in ('num_heads', 'position_groups'):
      if self.width % getattr(self, name):
        raise ValueError(f'width {self.width} must be a multiple of {name}.')

  @property
  def has_conv_bias(self) -> bool:
    return self.stable if self.conv_bias is None else self.conv_bias

  @property
  def convolutions(self) -> list[tuple[int, int]]:
    """(kernel, stride) of each."""
    return list(zip(self.kernels, self.strides, strict=True))

  @property
  def stride(self) -> int:
    """Samples from one feature to the next."""
    return math.prod(self.strides)

  @property
  def field(self) -> int:
    """Samples that the convolutions see for one feature."""
    samples = 1
    for kernel, stride in reversed(self.convolutions):
      samples = (samples - 1) * stride + kernel
    return samples

  def num_features(self, samples):
    """Features of so many samples (an int or an integer array)."""
    for kernel, stride in self.convolutions:
      samples = (samples - kernel) // stride + 1
    return samples


_BASE = functools.partial(Wav2Vec2Config, 768, 12, 12, 3072)
_LARGE = functools.partial(Wav2Vec2Config, 1024, 24, 16, 4096)
# facebook/wav2vec2-base, -large, -large-lv60 (also -xlsr-53), -xls-r-*;
# facebook/hubert-base-ls960, -large-ll60k, -xlarge-ll60k; microsoft/wavlm-base
# (also -plus), -large.
SIZES = {
  'wav2vec2_base': _BASE(),
  'wav2vec2_large': _LARGE(),
  'wav2vec2_large_lv60': _LARGE(stable=True),
  'xls_r_300m': _LARGE(stable=True),
  'xls_r_1b': Wav2Vec2Config(1280, 48, 16, 5120, stable=True),
  'xls_r_2b': Wav2Vec2Config(1920, 48, 16, 7680, stable=True),
  'hubert_base': _BASE(),
  'hubert_large': _LARGE(stable=True),
  'hubert_xlarge': Wav2Vec2Config(1280, 48, 16, 5120, stable=True),
  'wavlm_base': _BASE(num_buckets=320, normalize=False),
  'wavlm_large': _LARGE(stable=True, conv_bias=False, num_buckets=320),
}


class GroupNorm(nn.Module):
  """Each channel over the whole time, in float32; keeps the dtype."""

  @nn.compact
  def __call__(self, x: Float[Array, 'B T C']) -> Float[Array, 'B T C']:
    weight, bias = layers.scale_and_bias(self, x.shape[-1])
    y = x.astype(jnp.float32)
    y = y - y.mean(1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(1, keepdims=True) + layers.EPS)
    return (y * weight[None, None] + bias[None, None]).astype(x.dtype)


class Convolutions(nn.Module):
  """Sound to features."""

  cfg: Wav2Vec2Config

  @nn.compact
  def __call__(self, wave: Float[Array, 'B S']) -> Float[Array, 'B T C']:
    cfg, x = self.cfg, wave[..., None]
    for i, (kernel, stride) in enumerate(cfg.convolutions):
      x = Linear(
        (kernel, x.shape[-1], cfg.conv_dim),
        (None, None, 'embed'),
        num_in=2,
        use_bias=cfg.has_conv_bias,
        dtype=cfg.dtype,
        name=f'conv{i}',
      )(windows(x, kernel, stride))
      if cfg.stable:
        x = layers.LayerNorm(name=f'norm{i}')(x)
      elif i == 0:
        x = GroupNorm(name='norm0')(x)
      x = nn.gelu(x, approximate=False)
    return x


class Positions(nn.Module):
  """The grouped convolution whose output is added as positions.

  Each tap of its kernel has a learned norm (weight normalisation).
  """

  cfg: Wav2Vec2Config

  @nn.compact
  def __call__(self, x: Float[Array, 'B T C']) -> Float[Array, 'B T C']:
    cfg = self.cfg
    taps, groups = cfg.position_kernel, cfg.position_groups
    shape = (taps, cfg.width // groups, cfg.width)
    box = nn.with_logical_partitioning
    normal, ones = nn.initializers.normal(1.0), nn.initializers.ones_init()
    kernel = self.param('kernel', box(normal, (None, None, 'embed')), shape)
    scale = self.param('scale', box(ones, (None,)), (taps,))
    zeros = box(nn.initializers.zeros_init(), ('embed',))
    bias = self.param('bias', zeros, (cfg.width,))
    norm = jnp.sqrt(jnp.square(kernel).sum((1, 2), keepdims=True))
    kernel = kernel * (scale[:, None, None] / norm)
    y = jax.lax.conv_general_dilated(
      x,
      kernel.astype(x.dtype),
      (1,),
      [(taps // 2, (taps - 1) // 2)],
      dimension_numbers=('NWC', 'WIO', 'NWC'),
      feature_group_count=groups,
    )
    return nn.gelu(y + bias.astype(y.dtype)[None, None], approximate=False)


class BiasGate(nn.Module):
  """WavLM's bias of each query: the shared one times a gate of its content.

  arXiv 2110.13900, section 3.2, as released: the eight outputs are two sums of
  four, and the factor is r (u s - 1) + 2.
  """

  num_heads: int

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T C'], bias: Float[Array, '1 H T S']
  ) -> Float[Array, 'B H T S']:
    x = x.reshape(*x.shape[:2], self.num_heads, -1).astype(jnp.float32)
    y = Linear((x.shape[-1], 2, 4), ('kv', None, None), name='linear')(x)
    r, u = jnp.moveaxis(nn.sigmoid(y.sum(-1)), -1, 0)
    ones = nn.with_logical_partitioning(nn.initializers.ones_init(), ('heads',))
    s = self.param('scale', ones, (self.num_heads,), jnp.float32)
    factor = r * (u * s[None, None] - 1) + 2
    return bias * jnp.swapaxes(factor, 1, 2)[..., None]


class Wav2Vec2(nn.Module):
  """Sound to one feature per 20 ms."""

  cfg: Wav2Vec2Config

  @nn.compact
  def __call__(
    self,
    wave: Float[Array, 'B S'],
    mask: Bool[Array, 'B S'] | None = None,
    *,
    hidden: bool = False,
  ) -> tuple[Float[Array, 'B T C'], Float[Array, 'N B T C'] | None]:
    """Encodes speech.

    Args:
      wave: Mono at 16 kHz; normalised if `cfg.normalize`.
      mask: True for samples that exist, which come first. The others have no
        influence, but on the group norm of a model that is not `stable`: it
        was trained without a mask, on zeros.
      hidden: Return the hidden states, too.

    Returns:
      Features, in the compute dtype, T = `cfg.num_features(S)`, and the blocks'
      input and every block's output (N = depth + 1), or None.

    Raises:
      ValueError: The wave is shorter than one feature.
    """
    cfg = self.cfg
    x = Convolutions(cfg, name='convs')(wave.astype(cfg.dtype))
    x = layers.LayerNorm(name='features_norm')(x)
    shape, names = (cfg.conv_dim, cfg.width), (None, 'embed')
    x = Linear(shape, names, dtype=cfg.dtype, name='features')(x)
    if mask is not None:
      count = cfg.num_features(mask.sum(1))
      mask = jnp.arange(x.shape[1])[None] < count[:, None]
      x = jnp.where(mask[..., None], x, jnp.zeros_like(x))
    x = x + Positions(cfg, name='positions')(x)
    norm = layers.LayerNorm(name='norm')
    first = x if cfg.stable else norm(x)
    bias = gate = None
    if cfg.num_buckets:
      relative = (cfg.num_heads, cfg.num_buckets, cfg.max_distance)
      bias = RelativeBias(*relative, name='bias')(x.shape[1])
      gate = functools.partial(BiasGate, cfg.num_heads)
    blocks = layers.scan_blocks(
      layers.Block,
      cfg.depth,
      hidden,
      heads=(cfg.num_heads, cfg.width // cfg.num_heads),
      mlp_dim=cfg.mlp_dim,
      pre_norm=cfg.stable,
      gate=gate,
      dtype=cfg.dtype,
    )
    x, rest = blocks(first, mask, bias)
    x = norm(x) if cfg.stable else x
    return x, layers.stack_hidden(first, rest)


def abstract_params(cfg: Wav2Vec2Config):
  """Shapes of the parameters, boxed with their logical axis names."""
  wave = jax.ShapeDtypeStruct((1, 2 * cfg.field), jnp.float32)
  init = Wav2Vec2(cfg).init
  return jax.eval_shape(init, jax.random.key(0), wave)['params']
