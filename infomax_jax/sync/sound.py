"""Sound as the audio encoder takes it, and changes of it for training."""

import functools

from jaxtyping import Float
import numpy as np

RATE = 16000  # Samples per second.
FPS = 25  # Video frames per second.
MELS = 40
HOPS = 4  # Mel windows per video frame.
CONTEXT = 3  # Mel windows in front of the first frame and after the last.
HOP = RATE // (FPS * HOPS)
WINDOW = 400
FFT = 512
LOWEST, HIGHEST = 80.0, 7600.0  # Hz.
# Mel power, of a wave of unit power, that counts as silence: about 50 dB below
# a vowel.
FLOOR = 1.0


def log_mel(
  wave: Float[np.ndarray, 'S'],
  num_frames: int,
  warp: float = 1.0,
  tilt: float = 0.0,
) -> Float[np.ndarray, 'W M']:
  """Log-mel windows at 100 per second, of zero mean over time in each mel.

  Loudness, and what a microphone does to the spectrum, cancel out. Window
  CONTEXT + 4 n + k has its centre at 5 + 10 k ms of video frame n.

  Args:
    wave: float32 mono at 16 kHz from the time of the first frame; cut, or
      padded with silence, to the frames.
    num_frames: N; W is 4 N + 6.
    warp: factor on all frequencies of the voice.
    tilt: dB at the highest mel relative to the lowest.

  Raises:
    ValueError: the wave is not mono, or has numbers that are not finite.
  """
  if wave.ndim != 1 or not np.isfinite(wave).all():
    raise ValueError(f'the wave must be mono and finite: shape {wave.shape}')
  wave = wave[: num_frames * HOPS * HOP]
  power = np.mean(np.square(wave, dtype=np.float64)) if len(wave) else 0.0
  count = num_frames * HOPS + 2 * CONTEXT
  before = FFT // 2 - HOP // 2 + CONTEXT * HOP
  padded = np.zeros((count - 1) * HOP + FFT, np.float32)
  padded[before : before + len(wave)] = wave / max(np.sqrt(power), 1e-4)
  frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP]
  spectrum = np.abs(np.fft.rfft(frames * _window())) ** 2
  mels = spectrum @ mel_filters(warp).T
  mels *= 10 ** (np.linspace(-0.05, 0.05, MELS, dtype=np.float32) * tilt)
  mels = np.log(mels + FLOOR)
  mels -= mels.mean(0, keepdims=True)
  return (mels / max(mels.std(), 0.3)).astype(np.float32)


def change_wave(
  wave: Float[np.ndarray, 'S'], rng: np.random.Generator
) -> Float[np.ndarray, 'S']:
  """Another room and other noise; timing is unchanged.

  Reverberation in 3 of 10, at -15 to 0 dB; noise in 7 of 10 (white, pink or
  speech played backwards), 0 to 35 dB below the wave.
  """
  if rng.random() < 0.3:
    wave = _reverberate(wave, rng.uniform(-15, 0), rng.uniform(0.05, 0.3), rng)
  if rng.random() < 0.7:
    noise = _noise(wave, rng)
    size = lambda x: np.sqrt(np.mean(np.square(x))) + 1e-6
    level = 10 ** (-rng.uniform(0, 35) / 20)
    wave = wave + noise * (level * size(wave) / size(noise))
  return wave.astype(np.float32)


@functools.lru_cache(1)
def mel_filters(warp: float = 1.0) -> Float[np.ndarray, 'M 257']:
  """Triangles of unit height, evenly spaced on the HTK scale.

  With a warp, at frequencies divided by it: the voice seems to have frequencies
  times the warp.
  """
  mel = lambda hz: 2595 * np.log10(1 + hz / 700)
  ends = np.linspace(mel(LOWEST), mel(HIGHEST), MELS + 2)
  edges = 700 * (10 ** (ends / 2595) - 1) / warp
  low, mid, high = (edges[i : i + MELS, None] for i in range(3))
  hz = np.arange(FFT // 2 + 1) * RATE / FFT
  rise, fall = (hz - low) / (mid - low), (high - hz) / (high - mid)
  return np.maximum(np.minimum(rise, fall), 0).astype(np.float32)


def _reverberate(wave, level, decay, rng):
  length = int(decay * RATE)
  tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
  response = tail * (10 ** (level / 20) / np.sqrt(np.sum(tail**2)))
  response[:32] = 0  # The first reflection comes 2 ms after the direct sound.
  response[0] = 1
  size = 1 << (len(wave) + length - 1).bit_length()
  spectrum = np.fft.rfft(wave, size) * np.fft.rfft(response, size)
  return np.fft.irfft(spectrum, size)[: len(wave)]


def _noise(wave, rng):
  colour = rng.integers(3)
  if colour == 0:
    return np.roll(wave[::-1], rng.integers(len(wave)))
  white = rng.standard_normal(len(wave), np.float32)
  if colour == 1:
    return white
  spectrum = np.fft.rfft(white)
  hz = np.arange(len(spectrum)) * RATE / len(wave)
  return np.fft.irfft(spectrum / np.sqrt(hz + 50), len(wave))


@functools.cache
def _window():
  window = np.zeros(FFT, np.float32)
  side = (FFT - WINDOW) // 2
  window[side:-side] = np.hanning(WINDOW + 1)[:-1]
  return window
