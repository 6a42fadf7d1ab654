"""The two encoders: what is heard and what is seen around each video frame.

Both see 11 frames around the one they speak of, so N frames give T = N - 10
vectors; vector t is of frame t + 5. Local vectors see about three frames and a
band of frequencies, or a part of the mouth.
"""

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from infomax_jax.conv import Conv, Linear
from infomax_jax.sync.config import REACH, SyncConfig
from infomax_jax.sync.sound import CONTEXT, HOPS

BAND, BAND_STEP = 16, 8  # Mels that a local vector hears, and their spacing.
STACK = 3  # Frames that a local vector sees.


@flax.struct.dataclass
class Track:
  """What an encoder says of the frames of a clip, float32.

  Attributes:
    whole: [B T C] the global vector of each frame.
    local: [B T L C] vectors of its parts: bands or places.
  """

  whole: jax.Array
  local: jax.Array


class Norm(nn.Module):
  """Zero mean and unit variance over channels, with scale and bias.

  No batch normalisation: an unseen video has none of the statistics of the
  clips trained on.
  """

  @nn.compact
  def __call__(self, x: Float[Array, '*B C']) -> Float[Array, '*B C']:
    shape, last = (x.shape[-1],), (1,) * (x.ndim - 1) + (-1,)
    make = lambda name, init: self.param(
      name, nn.with_logical_partitioning(init, ('out',)), shape
    ).reshape(last)
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)
    scale = make('scale', nn.initializers.ones)
    return x * scale + make('bias', nn.initializers.zeros)


def windows(x: Float[Array, 'B N ...'], width: int) -> Float[Array, 'B T ...']:
  """Joins the last axis of `width` consecutive frames: T = N - width + 1."""
  count = x.shape[1] - width + 1
  return jnp.concatenate([x[:, i : i + count] for i in range(width)], -1)


def rowwise(layer: Linear, x: Float[Array, '*B I']) -> Float[Array, '*B O']:
  """A linear layer on the last axis of any array."""
  return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


class OverTime(nn.Module):
  """Frames -> global vectors, through windows of `widths` frames."""

  cfg: SyncConfig
  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, x: Float[Array, 'B N I']) -> Float[Array, 'B T C']:
    for i, width in enumerate(self.widths):
      layer = Linear(self.cfg.hidden, name=f'layer{i}')
      y = rowwise(layer, windows(x, width))
      x = nn.relu(Norm(name=f'norm{i}')(y))
    x = rowwise(Linear(self.cfg.dim, name='project'), x)
    return Norm(name='output')(x)


class Local(nn.Module):
  """Maps of a trunk -> local vectors."""

  cfg: SyncConfig

  @nn.compact
  def __call__(self, x: Float[Array, 'B T L I']) -> Float[Array, 'B T L C']:
    x = nn.relu(rowwise(Linear(self.cfg.hidden, name='hidden'), x))
    x = rowwise(Linear(self.cfg.dim, name='project'), x)
    return Norm(name='output')(x)


class Audio(nn.Module):
  """Log-mel windows of N frames -> Track of 4 bands."""

  cfg: SyncConfig

  @nn.compact
  def __call__(self, mels: Float[Array, 'B W M']) -> Track:
    frames = (mels.shape[1] - 2 * CONTEXT) // HOPS
    bands = (mels.shape[2] - BAND) // BAND_STEP + 1
    # 10 windows around each frame, of 16 neighbouring mels.
    near = [
      mels[:, i : i + HOPS * frames : HOPS] for i in range(HOPS + 2 * CONTEXT)
    ]
    near = jnp.stack(near, -1)
    x = jnp.stack(
      [near[:, :, b * BAND_STEP :][:, :, :BAND] for b in range(bands)], 2
    )
    x = x.reshape(*x.shape[:3], -1)
    for i, features in enumerate((self.cfg.trunk, self.cfg.trunk)):
      x = rowwise(Linear(features, name=f'layer{i}'), x)
      x = nn.relu(Norm(name=f'norm{i}')(x))
    flat = x.reshape(*x.shape[:2], -1)
    return Track(
      OverTime(self.cfg, (5, 5, 3), name='time')(flat),
      Local(self.cfg, name='local')(x[:, 5:-5]),
    )


class Video(nn.Module):
  """Mouth regions of N frames -> Track of 4 x 4 places."""

  cfg: SyncConfig

  @nn.compact
  def __call__(self, mouth: Float[Array, 'B N Y X']) -> Track:
    batch = len(mouth)
    x = windows(mouth[..., None], STACK)
    x = x.reshape(-1, *x.shape[2:])
    for i, (features, width, stride) in enumerate(
      ((self.cfg.stem, 8, 4), (self.cfg.trunk, 3, 2))
    ):
      x = Conv(features, width, stride, use_bias=True, name=f'layer{i}')(x)
      x = nn.relu(Norm(name=f'norm{i}')(x))
    x = x.reshape(batch, -1, x.shape[1] * x.shape[2], x.shape[3])
    flat = x.reshape(*x.shape[:2], -1)
    flat = nn.relu(rowwise(Linear(self.cfg.hidden, name='flat'), flat))
    return Track(
      OverTime(self.cfg, (5, 5), name='time')(flat),
      Local(self.cfg, name='local')(x[:, 4:-4]),
    )


class Sync(nn.Module):
  """Both encoders."""

  cfg: SyncConfig

  def setup(self):
    self.audio = Audio(self.cfg)
    self.video = Video(self.cfg)

  def __call__(
    self, mels: Float[Array, 'B W M'], mouth: Float[Array, 'B N Y X']
  ) -> tuple[Track, Track]:
    """Tracks of sound and of sight.

    Args:
      mels: from `sound.log_mel`, W = 4 N + 6.
      mouth: from `mouth.mouth_frames`.

    Raises:
      ValueError: the two are not of the same frames, or fewer than 11.
    """
    frames = mouth.shape[1]
    if mels.shape[1] != HOPS * frames + 2 * CONTEXT or frames < REACH:
      raise ValueError(
        f'{mels.shape[1]} mel windows and {frames} frames: there must be '
        f'{HOPS} windows per frame and {2 * CONTEXT} more, and {REACH} frames'
      )
    return self.audio(mels), self.video(mouth)
