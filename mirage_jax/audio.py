"""Sound as the transformer takes it: one token per video frame.

A front end is any `AudioFeatures`; this one is log-mel. Wave augmentations are
in `augment.py`.
"""

import functools
from typing import Protocol

from jaxtyping import Float
import numpy as np

RATE = 16000  # Samples per second of every wave in this package.
TOKEN_RATE = 25  # Tokens, and video frames, per second.
MELS = 80
STACK = 4  # Mel frames in one token.
HOP = RATE // (TOKEN_RATE * STACK)
WINDOW = 400
FFT = 512
# Mel power that counts as silence.
FLOOR = 1e-4
# Mean and standard deviation of the log power of read speech (GRID).
LOG_MEAN = -7.5
LOG_STD = 2.7


class AudioFeatures(Protocol):
  """A front end. `LogMel` is one; wav2vec's hidden states can be another."""

  dim: int  # Width of a token.

  def __call__(
    self, wave: Float[np.ndarray, 'S'], num_frames: int
  ) -> Float[np.ndarray, 'N Ca']:
    """`num_frames` tokens, token n for [n, n + 1) / 25 s of the 16 kHz wave."""


class LogMel:
  """`log_mel` as AudioFeatures."""

  dim = MELS * STACK

  def __call__(
    self, wave: Float[np.ndarray, 'S'], num_frames: int
  ) -> Float[np.ndarray, 'N 320']:
    return log_mel(wave, num_frames)


def log_mel(
  wave: Float[np.ndarray, 'S'], num_frames: int
) -> Float[np.ndarray, 'N 320']:
  """Log-mel tokens at 25 per second.

  Token n is 4 windows of 25 ms whose centres lie 5, 15, 25 and 35 ms after
  n * 40 ms: the sound of video frame n, no more and no less on either side.
  80 mels (`mel_filters`) of the power spectrum, natural log, scaled by constants to about zero mean and unit variance.

  Args:
    wave: float32 mono at 16 kHz.
    num_frames: tokens to make; the wave is cut or padded with silence.

  Returns:
    float32; entry 80 * j + m is mel m of window j.

  Raises:
    ValueError: the wave is not mono, or has numbers that are not finite.
  """
  if wave.ndim != 1:
    raise ValueError(f'the wave must be mono: shape {wave.shape}')
  if not np.isfinite(wave).all():
    raise ValueError('the wave has samples that are not finite')
  count = num_frames * STACK
  before = FFT // 2 - HOP // 2  # The first window's centre is HOP / 2.
  padded = np.zeros((count - 1) * HOP + FFT, np.float32)
  part = wave[: max(len(padded) - before, 0)]
  padded[before : before + len(part)] = part
  frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP]
  power = np.abs(np.fft.rfft(frames * _window())) ** 2
  mels = np.log(power @ mel_filters().T + FLOOR)
  tokens = (mels - LOG_MEAN) / LOG_STD
  return tokens.reshape(num_frames, MELS * STACK).astype(np.float32)


def is_silent(wave: Float[np.ndarray, 'S']) -> bool:
  """Whether nothing is louder than -60 dB of full scale."""
  return not len(wave) or float(np.max(np.abs(wave))) < 1e-3


def hz_to_mel(hz: Float[np.ndarray, '*N']) -> Float[np.ndarray, '*N']:
  """Slaney's scale: linear to 1 kHz (15 mel), then 27 mel for a factor 6.4."""
  log = 15 + 27 * np.log(np.maximum(hz, 1e-9) / 1000) / np.log(6.4)
  return np.where(hz < 1000, hz * 0.015, log)


def mel_to_hz(mel: Float[np.ndarray, '*N']) -> Float[np.ndarray, '*N']:
  """Inverse of `hz_to_mel`."""
  return np.where(mel < 15, mel / 0.015, 1000 * 6.4 ** ((mel - 15) / 27))


@functools.cache
def mel_edges() -> Float[np.ndarray, '82']:
  """Hz of the corners of the triangles: filter m rises from m to m + 1."""
  return mel_to_hz(np.linspace(0, hz_to_mel(np.array(RATE / 2)), MELS + 2))


@functools.cache
def mel_filters() -> Float[np.ndarray, '80 257']:
  """Triangles of unit area in Hz: what librosa.filters.mel gives by default.

  Written out because importing librosa's takes seconds; a test compares them.
  """
  low, mid, high = (mel_edges()[i : i + MELS, None] for i in range(3))
  hz = np.arange(FFT // 2 + 1) * RATE / FFT
  rise, fall = (hz - low) / (mid - low), (high - hz) / (high - mid)
  filters = np.maximum(np.minimum(rise, fall), 0) * 2 / (high - low)
  return filters.astype(np.float32)


@functools.cache
def _window():
  window = np.zeros(FFT, np.float32)
  side = (FFT - WINDOW) // 2
  # Periodic Hann.
  window[side:-side] = 0.5 - 0.5 * np.cos(
    2 * np.pi * np.arange(WINDOW) / WINDOW
  )
  return window
