"""Sounds that talking-face models are known to trip over, 16 kHz mono."""

from jaxtyping import Float
import numpy as np
import soxr

from mirage_jax.audio import RATE, TOKEN_RATE

Wave = Float[np.ndarray, 'S']
TELEPHONE_RATE = 8000
TELEPHONE_BAND = (300.0, 3400.0)  # Hz, of ITU-T G.712
MU = 255.0  # of ITU-T G.711


def with_noise(wave: Wave, decibels: float, seed: int = 0) -> Wave:
  """With white noise, the speech's mean power so far above the noise's."""
  noise = np.random.default_rng(seed).standard_normal(len(wave))
  power = np.mean(np.square(wave, dtype=np.float64))
  level = np.sqrt(power / 10 ** (decibels / 10))
  return (wave + level * noise).astype(np.float32)


def by_telephone(wave: Wave) -> Wave:
  """8 kHz, 300 to 3400 Hz, in 256 logarithmic levels."""
  low = soxr.resample(wave, RATE, TELEPHONE_RATE)
  spectrum = np.fft.rfft(low)
  hertz = np.fft.rfftfreq(len(low), 1 / TELEPHONE_RATE)
  spectrum[(hertz < TELEPHONE_BAND[0]) | (hertz > TELEPHONE_BAND[1])] = 0
  low = np.clip(np.fft.irfft(spectrum, len(low)), -1, 1)
  coded = np.sign(low) * np.log1p(MU * np.abs(low)) / np.log1p(MU)
  coded = np.round(coded * 127) / 127
  low = np.sign(coded) * np.expm1(np.abs(coded) * np.log1p(MU)) / MU
  back = soxr.resample(low, TELEPHONE_RATE, RATE).astype(np.float32)
  return np.pad(back, (0, max(len(wave) - len(back), 0)))[: len(wave)]


def shifted(wave: Wave, frames: int) -> Wave:
  """Later by so many video frames, or earlier if negative; silence fills up."""
  samples = abs(frames) * RATE // TOKEN_RATE
  still = np.zeros(min(samples, len(wave)), np.float32)
  if frames >= 0:
    return np.concatenate([still, wave])[: len(wave)]
  return np.concatenate([wave, still])[len(still) :]


def music(length: int) -> Wave:
  """Four chords of plucked strings, two a second, without a voice."""
  wave = np.zeros(length)
  chords = ((220, 277, 330), (147, 185, 220), (165, 208, 247), (220, 277, 330))
  time = np.arange(RATE) / RATE
  for n, start in enumerate(range(0, length, RATE // 2)):
    note = sum(
      np.exp(-4 * k * time) / k * np.sin(2 * np.pi * k * pitch * time)
      for pitch in chords[n // 2 % len(chords)]
      for k in range(1, 6)
    )
    part = wave[start : start + RATE]
    part += note[: len(part)]
  return (0.3 * wave / max(np.abs(wave).max(), 1e-9)).astype(np.float32)
