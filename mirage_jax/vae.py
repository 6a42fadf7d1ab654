"""Mochi's asymmetric causal video VAE, sized by a config.

Frames enter as 25-frame chunks and leave as 5 latents: the first frame keeps a
latent of its own and each further latent covers 6 frames. Space shrinks 8x8.
Layer for layer this is the autoencoder of genmoai/mochi
(`mochi_preview/vae/models.py`): replicate-padded causal convolutions, group
norms per frame, causal attention over time in the encoder only, and an
upsampling that drops the frames which would repeat the first one.
"""

import dataclasses
import functools
import math

import einops
from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

CHUNK = 25  # frames of one independently coded chunk


@dataclasses.dataclass(frozen=True)
class VaeConfig:
  """Sizes of the autoencoder; the defaults are Mochi 1's (460M parameters).

  `*_blocks` and `encoder_attention` list the levels from full resolution to the
  latent grid, the last entry being the innermost stack. `keep_repeats`: the
  decoder drops the frames that repeat a chunk's first one at its end, as
  diffusers has it, not after each expansion in time, as Genmo's code does; the
  weights are the same, the convolutions after an expansion see other frames.
  """

  encoder_channels: int = 64
  decoder_channels: int = 128
  multipliers: tuple[int, ...] = (1, 2, 4, 6)
  encoder_blocks: tuple[int, ...] = (3, 3, 4, 6, 3)
  decoder_blocks: tuple[int, ...] = (3, 3, 4, 6, 3)
  encoder_attention: tuple[bool, ...] = (False, True, True, True, True)
  time_factors: tuple[int, ...] = (1, 2, 3)
  space_factors: tuple[int, ...] = (2, 2, 2)
  latent_channels: int = 12
  norm_groups: int = 32
  head_dim: int = 32
  fourier_features: bool = True
  keep_repeats: bool = False
  dtype: str = 'float32'

  def __post_init__(self):
    levels = len(self.multipliers)
    for field in ('encoder_blocks', 'decoder_blocks', 'encoder_attention'):
      if len(getattr(self, field)) != levels + 1:
        raise ValueError(f'vae.{field} needs {levels + 1} entries.')
    for field in ('time_factors', 'space_factors'):
      if len(getattr(self, field)) != levels - 1:
        raise ValueError(f'vae.{field} needs {levels - 1} entries.')

  @property
  def time_factor(self) -> int:
    return math.prod(self.time_factors)

  @property
  def space_factor(self) -> int:
    return math.prod(self.space_factors)

  def num_latents(self, num_frames: int) -> int:
    """Latent frames of one chunk of `num_frames` frames."""
    return (num_frames - 1) // self.time_factor + 1


class FrameNorm(nn.Module):
  """Group norm over the rows, columns and channel groups of each frame."""

  groups: int

  @nn.compact
  def __call__(self, x: Float[Array, 'B F Y X C']) -> Float[Array, 'B F Y X C']:
    channels = x.shape[-1]
    scale = self.param('scale', nn.initializers.ones, (channels,))
    bias = self.param('bias', nn.initializers.zeros, (channels,))
    x32 = x.astype(jnp.float32)
    # Two reductions and one multiply-add: the activations are read just twice.
    moments = jnp.stack([x32.mean((2, 3)), jnp.square(x32).mean((2, 3))])
    grouped = moments.reshape(*moments.shape[:-1], self.groups, -1).mean(-1)
    mean, square = jnp.repeat(grouped, channels // self.groups, axis=-1)
    gain = scale[None, None] * jax.lax.rsqrt(square - mean**2 + 1e-5)
    shift = bias[None, None] - mean * gain
    y = x32 * gain[:, :, None, None] + shift[:, :, None, None]
    return y.astype(x.dtype)


def _fan_in(key, shape, dtype=jnp.float32):
  init = nn.initializers.variance_scaling(
    1.0, 'fan_in', 'truncated_normal', in_axis=(0, 1, 2, 3), out_axis=4
  )
  return init(key, shape, dtype)


class CausalConv(nn.Module):
  """3x3x3 convolution that looks back in time; edges are replicated."""

  features: int
  kernel_init: nn.initializers.Initializer = _fan_in

  @nn.compact
  def __call__(self, x: Float[Array, 'B F Y X C']) -> Float[Array, 'B F Y X K']:
    shape = (3, 3, 3, x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape).astype(x.dtype)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    frames = x.shape[1]
    x = jnp.pad(x, ((0, 0), (2, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
    # The three taps in time become channels of one 2-D convolution: 2-4x faster
    # than a 3-D one on CPU, and a deeper contraction for a matrix unit.
    x = jnp.concatenate([x[:, i : i + frames] for i in range(3)], -1)
    flat = einops.rearrange(x, 'b f y x c -> (b f) y x c')
    kernel = einops.rearrange(kernel, 't h w c k -> h w (t c) k')
    # 'SAME' and a crop: XLA's CPU convolution is 3x slower when 'VALID'.
    y = jax.lax.conv_general_dilated(
      flat, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )[:, 1:-1, 1:-1]
    y = y + bias.astype(y.dtype)[None, None, None]
    return einops.rearrange(y, '(b f) y x k -> b f y x k', f=frames)


class TimeAttention(nn.Module):
  """Causal self-attention over time at every position, with L2-normed q, k."""

  cfg: VaeConfig

  @nn.compact
  def __call__(self, x: Float[Array, 'B F Y X C']) -> Float[Array, 'B F Y X C']:
    _, frames, _, _, channels = x.shape
    dense = functools.partial(nn.Dense, dtype=x.dtype)
    qkv = dense(3 * channels, use_bias=False, name='qkv')(x)
    q, k, v = einops.rearrange(
      qkv, 'b f y x (n h d) -> n b y x f h d', n=3, d=self.cfg.head_dim
    )
    q, k = (z / jnp.linalg.norm(z, axis=-1, keepdims=True) for z in (q, k))
    logits = jnp.einsum('...qhd,...khd->...hqk', q, k).astype(jnp.float32)
    causal = jnp.tril(jnp.ones((frames, frames), bool))
    logits = jnp.where(
      causal[None, None, None, None],
      logits * self.cfg.head_dim**-0.5,
      jnp.finfo(jnp.float32).min,
    )
    weights = jax.nn.softmax(logits).astype(v.dtype)
    y = jnp.einsum('...hqk,...khd->...qhd', weights, v)
    y = einops.rearrange(y, 'b y x f h d -> b f y x (h d)')
    return dense(channels, name='out')(y)


class ResBlock(nn.Module):
  """Two norm-SiLU-convolution layers, then attention over time if asked."""

  cfg: VaeConfig
  attention: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, 'B F Y X C']) -> Float[Array, 'B F Y X C']:
    norm = functools.partial(FrameNorm, self.cfg.norm_groups)
    y = CausalConv(x.shape[-1], name='conv1')(nn.silu(norm(name='norm1')(x)))
    y = CausalConv(x.shape[-1], nn.initializers.zeros, name='conv2')(
      nn.silu(norm(name='norm2')(y))
    )
    x = x + y
    if self.attention:
      x = x + TimeAttention(self.cfg, name='attn')(norm(name='attn_norm')(x))
    return x


class Downsample(nn.Module):
  """Strided causal convolution whose kernel equals its stride."""

  features: int
  time: int
  space: int

  @nn.compact
  def __call__(self, x: Float[Array, 'B F Y X C']) -> Float[Array, 'B f y x K']:
    x = jnp.pad(x, ((0, 0), (self.time - 1, 0)) + ((0, 0),) * 3, mode='edge')
    x = x[:, : x.shape[1] // self.time * self.time]
    x = einops.rearrange(
      x,
      'b (f t) (y h) (x w) c -> b f y x (t h w c)',
      t=self.time,
      h=self.space,
      w=self.space,
    )
    return nn.Dense(self.features, dtype=x.dtype, name='proj')(x)


class Upsample(nn.Module):
  """1x1 projection, then depth to time and space, dropping repeated frames."""

  features: int
  time: int
  space: int
  keep: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, 'B f y x C']) -> Float[Array, 'B F Y X K']:
    width = self.features * self.time * self.space**2
    x = nn.Dense(width, dtype=x.dtype, name='proj')(x)
    x = einops.rearrange(
      x,
      'b f y x (c t h w) -> b (f t) (y h) (x w) c',
      t=self.time,
      h=self.space,
      w=self.space,
    )
    return x if self.keep else x[:, self.time - 1 :]


def fourier_features(x: Float[Array, '*B C']) -> Float[Array, '*B K']:
  """Appends sin and cos of the input at 2^6 and 2^7 cycles, in float32."""
  x = x.astype(jnp.float32)
  # Each channel's frequencies are neighbours, as in Mochi's weights.
  angles = [x * (2 * jnp.pi * 2.0**power) for power in (6, 7)]
  angles = jnp.stack(angles, -1).reshape(*x.shape[:-1], -1)
  return jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)], -1)


class Encoder(nn.Module):
  """Frames to the mean and log variance of the latent posterior."""

  cfg: VaeConfig

  @nn.compact
  def __call__(self, x):
    cfg = self.cfg
    widths = [m * cfg.encoder_channels for m in cfg.multipliers]

    def stack(x, level):
      for i in range(cfg.encoder_blocks[level]):
        attention = cfg.encoder_attention[level]
        x = ResBlock(cfg, attention, name=f'level{level}_block{i}')(x)
      return x

    if cfg.fourier_features:
      x = fourier_features(x)
    x = nn.Dense(widths[0], dtype=cfg.dtype, name='proj_in')(x)
    x = stack(x, 0)
    factors = zip(cfg.time_factors, cfg.space_factors, strict=True)
    for level, (time, space) in enumerate(factors, 1):
      x = Downsample(widths[level], time, space, name=f'down{level}')(x)
      x = stack(x, level)
    x = stack(x, len(widths))
    x = nn.silu(FrameNorm(cfg.norm_groups, name='norm_out')(x))
    x = nn.Dense(
      2 * cfg.latent_channels, use_bias=False, dtype=cfg.dtype, name='proj_out'
    )(x)
    return jnp.split(x.astype(jnp.float32), 2, axis=-1)


class Decoder(nn.Module):
  """Latents (in the encoder's own scale) to frames."""

  cfg: VaeConfig

  @nn.compact
  def __call__(self, z):
    cfg = self.cfg
    widths = [m * cfg.decoder_channels for m in cfg.multipliers]

    def stack(x, level):
      for i in range(cfg.decoder_blocks[level]):
        x = ResBlock(cfg, name=f'level{level}_block{i}')(x)
      return x

    x = nn.Dense(widths[-1], dtype=cfg.dtype, name='proj_in')(z)
    x = stack(x, len(widths))
    for level in range(len(widths) - 1, 0, -1):
      x = stack(x, level)
      time, space = cfg.time_factors[level - 1], cfg.space_factors[level - 1]
      keep, name = cfg.keep_repeats, f'up{level}'
      x = Upsample(widths[level - 1], time, space, keep, name=name)(x)
    x = nn.silu(stack(x, 0))
    x = nn.Dense(3, dtype=cfg.dtype, name='proj_out')(x)
    if cfg.keep_repeats:
      x = x[:, cfg.time_factor - 1 :]
    return x.astype(jnp.float32)


class Vae(nn.Module):
  """The autoencoder. Frames are float in [-1, 1], one chunk per row of B."""

  cfg: VaeConfig

  def setup(self):
    self.encoder = Encoder(self.cfg)
    self.decoder = Decoder(self.cfg)

  def encode(
    self, frames: Float[Array, 'B N Yp Xp 3']
  ) -> tuple[Float[Array, 'B F Y X C'], Float[Array, 'B F Y X C']]:
    """Posterior mean and log variance, F = num_latents(N), in float32."""
    mean, logvar = self.encoder(frames)
    return mean, jnp.clip(logvar, -30.0, 20.0)

  def decode(
    self, latents: Float[Array, 'B F Y X C']
  ) -> Float[Array, 'B N Yp Xp 3']:
    """Frames of one chunk, N = (F - 1) * time_factor + 1, not clipped."""
    return self.decoder(latents)

  def __call__(self, frames, key: PRNGKeyArray):
    """Reconstruction from a posterior sample, with the posterior itself."""
    mean, logvar = self.encode(frames)
    noise = jax.random.normal(key, mean.shape)
    latents = mean + jnp.exp(0.5 * logvar) * noise
    return self.decode(latents), mean, logvar
