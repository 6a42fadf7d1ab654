"""Speech features at the video's frame rate: front ends like `audio.LogMel`.

Mirage interpolates wav2vec's 50 features a second "bilinearly" to one token per
video frame (section 3.2). Which instant a token stands for is our choice: the
middle of its frame, where each feature stands for the middle of what its
convolutions see. Nothing drifts then, however long the sound.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from mirage_jax import audio
from mirage_jax.encoders import wav2vec2, whisper

Layers = int | Sequence[int | None] | None
FRAME = audio.RATE // audio.TOKEN_RATE  # Samples of one video frame.


def resample(
  features: Float[np.ndarray, 'T C'],
  num_frames: int,
  stride: int,
  centre: float,
) -> Float[np.ndarray, 'N C']:
  """Linear interpolation to the middles of video frames.

  Args:
    features: Feature t stands for sample stride * t + centre at 16 kHz.
    num_frames: Tokens to make; beyond the ends the outermost feature holds.
    stride: Samples from one feature to the next.
    centre: Of feature 0, in samples.

  Returns:
    float32, token n for the middle of [n, n + 1) / 25 s.
  """
  middle = FRAME * np.arange(num_frames) + (FRAME - 1) / 2
  last = len(features) - 1
  place = np.clip((middle - centre) / stride, 0, last)
  low = np.minimum(np.floor(place).astype(int), max(last - 1, 0))
  part = (place - low)[:, None].astype(np.float32)
  features = np.asarray(features, np.float32)
  return (1 - part) * features[low] + part * features[np.minimum(low + 1, last)]


class Wav2Vec2Features:
  """wav2vec 2.0, HuBERT or WavLM as `audio.AudioFeatures`.

  Attributes:
    dim: Width of a token.
  """

  def __init__(
    self,
    cfg: wav2vec2.Wav2Vec2Config,
    params: Mapping[str, Any],
    layer: Layers = None,
  ):
    """Makes a front end.

    Args:
      cfg: The model.
      params: Its parameters, see `names.load`.
      layer: Hidden state to take: 0 is the blocks' input; None for the output.
        Several stand side by side in a token.
    """
    self.dim = cfg.width * len(_listed(layer))
    self._cfg = cfg
    self._encode = _encoder(wav2vec2.Wav2Vec2(cfg), params, layer)

  def __call__(
    self, wave: Float[np.ndarray, 'S'], num_frames: int
  ) -> Float[np.ndarray, 'N Ca']:
    """See `audio.AudioFeatures`; the wave is cut or padded with silence."""
    cfg = self._cfg
    # The last frame lies between two features: the second sees further.
    count = num_frames * FRAME + max(cfg.field - cfg.stride, 0)
    wave = _checked(wave)[:count]
    if cfg.normalize and len(wave):
      wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
    wave = np.pad(wave, (0, count - len(wave))).astype(np.float32)
    if cfg.stable:
      # Whole seconds compile once; what the mask hides has no influence here.
      room = -(-count // audio.RATE) * audio.RATE
      mask = np.arange(room) < count
      wave = np.pad(wave, (0, room - count))
      features = self._encode(wave, mask[None])[: cfg.num_features(count)]
    else:
      features = self._encode(wave)
    return resample(features, num_frames, cfg.stride, (cfg.field - 1) / 2)


class WhisperFeatures:
  """Whisper's encoder as `audio.AudioFeatures`, for up to 30 s.

  Attributes:
    dim: Width of a token.
  """

  def __init__(
    self,
    cfg: whisper.WhisperConfig,
    params: Mapping[str, Any],
    layer: Layers = None,
  ):
    """Makes a front end; see `Wav2Vec2Features`."""
    self.dim = cfg.width * len(_listed(layer))
    self._cfg = cfg
    self._encode = _encoder(whisper.WhisperEncoder(cfg), params, layer)

  def __call__(
    self, wave: Float[np.ndarray, 'S'], num_frames: int
  ) -> Float[np.ndarray, 'N Ca']:
    """See `audio.AudioFeatures`; the wave is cut or padded with silence.

    Raises:
      ValueError: More frames than Whisper has positions for.
    """
    stride = 2 * whisper.HOP
    count = self._cfg.max_features * stride
    if num_frames * FRAME > count:
      raise ValueError(
        f'Whisper hears at most {count // FRAME} frames at once, not '
        f'{num_frames}; cut the sound into clips.'
      )
    wave = _checked(wave)[: num_frames * FRAME]
    wave = np.pad(wave, (0, count - len(wave)))  # as in its training
    features = self._encode(whisper.log_mel(wave, self._cfg.mels))
    return resample(features, num_frames, stride, 0.0)


def _encoder(
  module: Any, params: Mapping[str, Any], layer: Layers
) -> Callable[..., np.ndarray]:
  """One clip's input to its features; compiles once per length."""
  layers = _listed(layer)
  inner = any(k is not None for k in layers)

  @jax.jit
  def encode(params: Any, x: Float[Array, '...'], *mask) -> Float[Array, 'T C']:
    output, hidden = module.apply(
      {'params': params}, x[None], *mask, hidden=inner
    )
    picked = [output if k is None else hidden[k] for k in layers]
    return jnp.concatenate(picked, axis=-1)[0]

  return lambda x, *mask: np.asarray(encode(params, x, *mask), np.float32)


def _listed(layer: Layers) -> tuple[int | None, ...]:
  return tuple(layer) if isinstance(layer, Sequence) else (layer,)


def _checked(wave):
  if wave.ndim != 1:
    raise ValueError(f'the wave must be mono: shape {wave.shape}')
  if not np.isfinite(wave).all():
    raise ValueError('the wave has samples that are not finite')
  return wave
