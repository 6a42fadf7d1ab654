"""Whisper's encoder (arXiv 2212.04356) and its log-mel front end.

Two convolutions over 100 mel frames a second, the second of stride 2, fixed
sinusoids, pre-norm blocks: a feature every 20 ms, of speech in many languages.
"""

import dataclasses
import functools

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from mirage_jax import audio
from mirage_jax.encoders import layers
from mirage_jax.linear import Linear
from mirage_jax.windows import windows


@dataclasses.dataclass(frozen=True)
class WhisperConfig:
  """Sizes of an encoder; `SIZES` has the published ones.

  Attributes:
    width: Of the residual stream.
    depth: Blocks.
    num_heads: Heads.
    mels: Of the input.
    max_features: Positions; 30 s of sound.
    dtype: Compute dtype.
  """

  width: int
  depth: int
  num_heads: int
  mels: int = 80
  max_features: int = 1500
  dtype: str = 'float32'


# openai/whisper-*, also their .en; turbo has large-v3's encoder.
SIZES = {
  'whisper_tiny': WhisperConfig(384, 4, 6),
  'whisper_base': WhisperConfig(512, 6, 8),
  'whisper_small': WhisperConfig(768, 12, 12),
  'whisper_medium': WhisperConfig(1024, 24, 16),
  'whisper_large': WhisperConfig(1280, 32, 20),
  'whisper_large_v3': WhisperConfig(1280, 32, 20, mels=128),
}
HOP = 160  # Samples of one mel frame.
FFT = 400


class WhisperEncoder(nn.Module):
  """Log-mel frames to one feature per 20 ms."""

  cfg: WhisperConfig

  @nn.compact
  def __call__(
    self, mel: Float[Array, 'B F M'], *, hidden: bool = False
  ) -> tuple[Float[Array, 'B T C'], Float[Array, 'N B T C'] | None]:
    """Encodes speech.

    Args:
      mel: `log_mel`. Whisper was trained on 30 s, padded with silence, and has
        no mask; less works, a little differently.
      hidden: Return the hidden states, too.

    Returns:
      Features, in the compute dtype, T = (F + 1) // 2, and the blocks' input
      and every block's output (N = depth + 1, before the last norm), or None.

    Raises:
      ValueError: More frames than positions.
    """
    cfg = self.cfg
    x = mel.astype(cfg.dtype)
    for i, stride in enumerate((1, 2)):
      x = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
      shape = (3, x.shape[-1], cfg.width)
      conv = Linear(
        shape, (None, None, 'embed'), 2, dtype=cfg.dtype, name=f'conv{i}'
      )
      x = nn.gelu(conv(windows(x, 3, stride)), approximate=False)
    if x.shape[1] > cfg.max_features:
      raise ValueError(
        f'{mel.shape[1]} mel frames are more than Whisper has positions for: '
        f'at most {2 * cfg.max_features}; cut the sound.'
      )
    init = lambda key, shape: jnp.asarray(sinusoids(*shape))
    init = nn.with_logical_partitioning(init, (None, 'embed'))
    table = self.param('positions', init, (cfg.max_features, cfg.width))
    first = x + table[None, : x.shape[1]].astype(cfg.dtype)
    blocks = layers.scan_blocks(
      layers.Block,
      cfg.depth,
      hidden,
      heads=(cfg.num_heads, cfg.width // cfg.num_heads),
      mlp_dim=4 * cfg.width,
      pre_norm=True,
      biases='q v out',
      dtype=cfg.dtype,
    )
    x, rest = blocks(first, None, None)
    return layers.LayerNorm(name='norm')(x), layers.stack_hidden(first, rest)


def sinusoids(length: int, width: int) -> Float[np.ndarray, 'T C']:
  """Sines, then cosines, of rates from 1 to 1 / 10,000 per position."""
  rates = np.geomspace(1, 1e-4, width // 2)
  angles = np.arange(length)[:, None] * rates[None]
  both = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
  return both.astype(np.float32)


def log_mel(
  wave: Float[np.ndarray, 'S'], mels: int = 80
) -> Float[np.ndarray, 'F M']:
  """Whisper's input: 100 frames a second, F = S // 160.

  Frame n is a Hann window of 25 ms around sample 160 n, mirrored at the ends;
  log10 of the mel power, at most 8 below the loudest, scaled to about [-1, 1].

  Args:
    wave: float32 mono at 16 kHz.
    mels: 128 for large-v3, 80 for the others.

  Raises:
    ValueError: the wave is not mono, or shorter than half a window.
  """
  if wave.ndim != 1 or len(wave) <= FFT // 2:
    raise ValueError(
      f'the wave must be mono and longer than {FFT // 2} samples: '
      f'shape {wave.shape}'
    )
  padded = np.pad(wave.astype(np.float64), FFT // 2, mode='reflect')
  frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP]
  frames = frames[: len(wave) // HOP]
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT) / FFT)
  power = np.abs(np.fft.rfft(frames * window)) ** 2
  log = np.log10(np.maximum(power @ _filters(mels).T, 1e-10))
  return ((np.maximum(log, log.max() - 8) + 4) / 4).astype(np.float32)


@functools.cache
def _filters(mels):
  """Triangles of unit area in Hz on Slaney's scale, as in `audio`."""
  top = audio.hz_to_mel(np.array(audio.RATE / 2))
  edges = audio.mel_to_hz(np.linspace(0, top, mels + 2))
  low, mid, high = (edges[i : i + mels, None] for i in range(3))
  hz = np.arange(FFT // 2 + 1) * audio.RATE / FFT
  rise, fall = (hz - low) / (mid - low), (high - hz) / (high - mid)
  return np.maximum(np.minimum(rise, fall), 0) * 2 / (high - low)


def abstract_params(cfg: WhisperConfig):
  """Shapes of the parameters, boxed with their logical axis names."""
  mel = jax.ShapeDtypeStruct((1, 4, cfg.mels), jnp.float32)
  init = WhisperEncoder(cfg).init
  return jax.eval_shape(init, jax.random.key(0), mel)['params']
