"""Changes of voice, level and room that leave the timing of speech alone."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
import numpy as np
import soxr

from mirage_jax import audio

FFT = 512
HOP = 128
BINS = FFT // 2 + 1
QUEFRENCY = 24  # Cepstral terms of the envelope: 1.5 ms, above any pitch.
EPS = 1e-8


class Voice(NamedTuple):
  """One drawn change; the defaults change nothing."""

  pitch: float = 0.0  # Semitones.
  formant: float = 1.0  # Factor on the resonances of the vocal tract.
  gain: float = 0.0  # dB.
  tilt: float = 0.0  # dB at 8 kHz relative to 0 Hz.
  room: float = -np.inf  # dB of the reverberation relative to the direct sound.
  decay: float = 0.1  # Seconds in which it falls by 60 dB.
  noise: float = -np.inf  # dB relative to the speech.
  colour: str = 'white'  # 'white', 'pink' or 'babble'.


def draw_voice(rng: np.random.Generator) -> Voice:
  """A random change. In 3 of 10 pitch and formants move together.

  That is another speed of the tape, stretched back to the old length.
  """
  pitch = rng.uniform(-5, 5)
  tape = rng.random() < 0.3
  return Voice(
    pitch=pitch,
    formant=2 ** (pitch / 12) if tape else 2 ** rng.uniform(-0.27, 0.27),
    gain=rng.uniform(-18, 6),
    tilt=rng.uniform(-12, 12),
    room=rng.uniform(-20, -3) if rng.random() < 0.4 else -np.inf,
    decay=rng.uniform(0.05, 0.3),
    noise=-rng.uniform(8, 40) if rng.random() < 0.7 else -np.inf,
    colour=str(rng.choice(['white', 'pink', 'babble'])),
  )


def augment_wave(
  wave: Float[np.ndarray, 'S'],
  rng: np.random.Generator,
  others: Sequence[Float[np.ndarray, '_']] = (),
) -> Float[np.ndarray, 'S']:
  """Another voice in another room, in step with the original.

  Args:
    wave: float32 mono at 16 kHz.
    rng: the same state gives the same result.
    others: waves of other clips to babble; without any, the wave's own pieces.

  Returns:
    float32 of the same length; energy envelopes match within 5 ms.
  """
  return change_voice(wave, draw_voice(rng), rng, others)


def change_voice(
  wave: Float[np.ndarray, 'S'],
  voice: Voice,
  rng: np.random.Generator,
  others: Sequence[Float[np.ndarray, '_']] = (),
) -> Float[np.ndarray, 'S']:
  """`augment_wave` with a change of your own; `rng` draws room and noise."""
  loud = _loudness(wave)
  out = shift_pitch(wave, voice.pitch)
  if voice.pitch or voice.formant != 1 or voice.tilt:
    out = _filter(out, voice.formant / 2 ** (voice.pitch / 12), voice.tilt)
  if voice.room > -np.inf:
    out = _reverberate(out, voice.room, voice.decay, rng)
  out = out * (loud / max(_loudness(out), EPS))
  if voice.noise > -np.inf:
    noise = _noise(len(wave), voice.colour, rng, others or (wave,))
    level = loud * 10 ** (voice.noise / 20)
    out = out + noise * (level / max(_loudness(noise), EPS))
  return (out * 10 ** (voice.gain / 20)).astype(np.float32)


def shift_pitch(
  wave: Float[np.ndarray, 'S'], semitones: float
) -> Float[np.ndarray, 'S']:
  """Pitch and formants times 2^(semitones / 12), timing unchanged.

  A phase vocoder (with Puckette's phase locking, 1995) stretches, resampling
  brings the length back.
  """
  if not semitones:
    return wave
  ratio = 2 ** (semitones / 12)
  count = int(np.ceil(len(wave) * ratio / HOP)) + 2
  starts = np.round(np.arange(count) * HOP / ratio).astype(int)
  # A frame's centre is its time; one hop more for the frame before it.
  padded = np.pad(wave, (FFT // 2 + HOP, FFT + HOP))
  frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)
  now = np.fft.rfft(frames[starts + HOP] * _hann())
  turn = now * np.conj(np.fft.rfft(frames[starts] * _hann()))
  size = np.abs(now)
  out = np.empty_like(now)
  out[0] = now[0]
  for k in range(1, count):
    locked = out[k - 1].copy()
    # Neighbours of a peak have the opposite sign, the window being centred.
    locked[1:] -= out[k - 1, :-1]
    locked[:-1] -= out[k - 1, 1:]
    step = locked * turn[k]
    length = np.abs(step)
    # After silence there is no phase to go on from: begin with the input's.
    fresh = length < 1e-12
    out[k] = np.where(fresh, now[k], size[k] * step / (length + fresh))
  stretched = _overlap_add(out, int(len(wave) * ratio) + 1)
  short = soxr.resample(stretched, ratio, 1)
  return np.pad(short, (0, max(len(wave) - len(short), 0)))[: len(wave)]


def augment_features(
  features: Float[np.ndarray, 'N 320'], rng: np.random.Generator
) -> Float[np.ndarray, 'N 320']:
  """A cheap change of voice on log-mel tokens, for use while training.

  Formants (a warp of the frequency axis by up to 12%), gain, tilt and a noise
  floor, all on the mel power; in 3 of 10 only a band of it, as telephones and
  compressed files leave; and in 2 of 10 nothing at all in pauses, as
  synthesisers, editors and noise gates leave. Under 1 ms for 50 tokens.
  """
  flat = features.reshape(-1, audio.MELS) * audio.LOG_STD + audio.LOG_MEAN
  power = np.maximum(np.exp(flat) - audio.FLOOR, 0)
  speech = _speech(power, rng)
  power = _warp_mels(power, 2 ** rng.uniform(-0.16, 0.16))
  slope = np.linspace(-0.5, 0.5, audio.MELS) * rng.uniform(-12, 12)
  power *= _power(rng.uniform(-15, 9) + slope).astype(np.float32)
  floor = _power(rng.uniform(-60, -25)) * np.mean(power)
  shape = _power(np.linspace(-0.5, 0.5, audio.MELS) * rng.uniform(-15, 15))
  ripple = np.exp(rng.standard_normal(power.shape, np.float32) * 0.5)
  power += ripple * (floor * shape).astype(np.float32)
  if rng.random() < 0.3:
    power *= _band(rng)
  if rng.random() < 0.2:
    power *= speech
  scaled = (np.log(power + audio.FLOOR) - audio.LOG_MEAN) / audio.LOG_STD
  return scaled.reshape(features.shape).astype(np.float32)


def _band(rng):
  """1 for mels that a random channel passes, else 0; [80]."""
  hertz = audio.mel_edges()[1:-1]
  low, high = rng.uniform(0, 350), 8000 * 2 ** -rng.uniform(0, 1.6)
  return ((hertz > low) & (hertz < high)).astype(np.float32)


def _speech(power, rng):
  """1 within 30 ms of what is louder than a random level, else 0; [T 1]."""
  loud = power.sum(1)
  loud = loud > loud.mean() * _power(-rng.uniform(15, 30))
  near = np.convolve(loud, np.ones(7), 'same') > 0
  return near[:, None].astype(np.float32)


def _warp_mels(power, factor):
  """Moves mel powers [T 80] to `factor` times their frequency."""
  edges = audio.mel_edges()
  # Mel m now holds what was at its frequency / factor; above 8 kHz was nothing.
  at = audio.hz_to_mel(edges[1:-1] / factor) / audio.hz_to_mel(edges[1]) - 1
  low = np.clip(at.astype(int), 0, audio.MELS - 1)
  high = np.minimum(low + 1, audio.MELS - 1)
  part = np.clip(at - low, 0, 1).astype(np.float32)
  moved = power[:, low] * (1 - part) + power[:, high] * part
  return moved * (at < audio.MELS)


def _filter(wave, warp, tilt):
  """Scales the spectral envelope's frequencies by `warp`, tilts the rest."""
  count = len(wave) // HOP + 2
  padded = np.pad(wave, (FFT // 2, FFT + HOP))
  frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP][:count]
  spectrum = np.fft.rfft(frames * _hann())
  log = np.log(np.abs(spectrum) + 1e-6)
  cepstrum = np.fft.irfft(log)
  cepstrum[:, QUEFRENCY : FFT - QUEFRENCY + 1] = 0
  envelope = np.fft.rfft(cepstrum).real
  at = np.minimum(np.arange(BINS) / warp, BINS - 1)
  low = np.minimum(at.astype(int), BINS - 2)
  part = at - low
  moved = envelope[:, low] * (1 - part) + envelope[:, low + 1] * part
  change = np.clip(moved - envelope, -3, 3)
  change += np.log(10) / 20 * tilt * np.linspace(-0.5, 0.5, BINS)
  return _overlap_add(spectrum * np.exp(change), len(wave))


def _overlap_add(spectra, length):
  """Frames whose centres are HOP apart, the first at sample 0 -> wave."""
  frames = np.fft.irfft(spectra) * _hann()
  total = np.zeros((len(frames) + FFT // HOP - 1, HOP))
  weight = np.zeros_like(total)
  square = (_hann() ** 2).reshape(-1, HOP)
  for j, piece in enumerate(np.split(frames, FFT // HOP, axis=1)):
    total[j : j + len(frames)] += piece
    weight[j : j + len(frames)] += square[j]
  wave = (total / np.maximum(weight, 1e-3)).reshape(-1)[FFT // 2 :]
  return wave[:length].astype(np.float32)


def _reverberate(wave, level, decay, rng):
  length = int(decay * audio.RATE)
  tail = rng.standard_normal(length)
  tail *= 10 ** (-3 * np.arange(length) / length)
  response = tail * (10 ** (level / 20) / np.sqrt(np.sum(tail**2)))
  response[:32] = 0  # The first reflection comes 2 ms after the direct sound.
  response[0] = 1
  size = len(wave) + length
  size = 1 << (size - 1).bit_length()
  spectrum = np.fft.rfft(wave, size) * np.fft.rfft(response, size)
  return np.fft.irfft(spectrum, size)[: len(wave)].astype(np.float32)


def _noise(length, colour, rng, others):
  if colour == 'babble':
    voices = []
    for n in rng.integers(len(others), size=5):
      # Backwards and from anywhere: speech, but of no words or lips.
      voice = np.resize(others[n][::-1], length)
      voices.append(np.roll(voice, rng.integers(length)))
    return np.mean(voices, axis=0)
  white = rng.standard_normal(length, np.float32)
  if colour == 'white':
    return white
  spectrum = np.fft.rfft(white)
  spectrum /= np.sqrt(np.arange(len(spectrum)) + 50 * length / audio.RATE)
  return np.fft.irfft(spectrum, length)


def _loudness(wave):
  """Root mean square of the loud half of 20 ms pieces: pauses do not count."""
  pieces = wave[: len(wave) // 320 * 320].reshape(-1, 320)
  if not len(pieces):
    return 0.0
  energy = np.sort(np.mean(np.square(pieces, dtype=np.float64), axis=1))
  return float(np.sqrt(np.mean(energy[len(energy) // 2 :])))


def _power(decibels):
  return 10 ** (decibels / 10)


def _hann():
  return np.hanning(FFT + 1)[:-1].astype(np.float32)
