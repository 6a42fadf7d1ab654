import time

import numpy as np
import pytest

from mirage_jax import audio, augment


def babble(seconds=2.0, pitch=120.0, seed=0):
  """Something like speech: harmonics through moving resonances, in syllables."""
  rng = np.random.default_rng(seed)
  t = np.arange(int(seconds * audio.RATE)) / audio.RATE
  wave = np.zeros_like(t)
  for k in range(1, 40):
    centre = 700 + 400 * np.sin(2 * np.pi * 1.3 * t + seed)
    size = np.exp(-(((k * pitch - centre) / 250) ** 2)) + 0.05
    wave += size * np.sin(2 * np.pi * k * pitch * t + rng.uniform(0, 6))
  beats = np.repeat(rng.uniform(0, 1, int(seconds * 10) + 1) > 0.4, 1600)
  soft = np.convolve(beats[: len(t)], np.hanning(320) / 160, 'same')
  return (0.1 * wave * soft).astype(np.float32)


def envelope(wave):
  return np.sqrt(np.convolve(wave**2, np.hanning(480), 'same'))[::16]


def lag_ms(a, b):
  """Milliseconds by which the energy of b trails that of a."""
  a, b = (envelope(x) - envelope(x).mean() for x in (a, b))
  correlation = np.correlate(b, a, 'full')
  return int(np.argmax(correlation)) - (len(a) - 1)


def test_filters_are_librosas():
  import librosa.filters  # Seconds; no other test needs it.

  expected = librosa.filters.mel(
    sr=audio.RATE, n_fft=audio.FFT, n_mels=audio.MELS
  )
  np.testing.assert_allclose(audio.mel_filters(), expected, atol=1e-7)


def test_mel_scale_inverts():
  hz = np.array([10.0, 500, 999, 1000, 3000, 8000])
  np.testing.assert_allclose(audio.mel_to_hz(audio.hz_to_mel(hz)), hz)


@pytest.mark.parametrize('millisecond', [0, 5, 39, 40, 75, 79])
def test_a_click_is_in_the_token_and_window_of_its_time(millisecond):
  wave = np.zeros(2400, np.float32)
  wave[millisecond * 16 : millisecond * 16 + 2] = 1
  loud = audio.log_mel(wave, 4).reshape(4 * 4, 80).mean(axis=1)
  assert np.argmax(loud) == millisecond // 10


def test_log_mel_fits_any_length_and_is_scaled():
  wave = babble()
  tokens = audio.log_mel(wave, 50)
  assert tokens.shape == (50, 320) and tokens.dtype == np.float32
  # What lies ahead of a token's windows does not matter. Some BLAS sum in an
  # order that depends on the number of rows.
  np.testing.assert_allclose(audio.log_mel(wave, 20), tokens[:20], atol=1e-5)
  short = audio.log_mel(wave[:16000], 50)
  np.testing.assert_allclose(short[:24], tokens[:24], atol=1e-5)
  quiet = (np.log(audio.FLOOR) - audio.LOG_MEAN) / audio.LOG_STD
  np.testing.assert_allclose(short[26:], quiet, atol=1e-5)
  assert abs(tokens.mean()) < 1.5 and 0.4 < tokens.std() < 2


def test_log_mel_refuses_what_is_no_wave():
  with pytest.raises(ValueError, match='mono'):
    audio.log_mel(np.zeros((2, 100), np.float32), 1)
  with pytest.raises(ValueError, match='finite'):
    audio.log_mel(np.full(100, np.nan, np.float32), 1)


def test_silence_is_known():
  assert audio.is_silent(np.full(100, 5e-4, np.float32))
  assert not audio.is_silent(babble())


@pytest.mark.parametrize('semitones', [-5, 3, 5])
def test_pitch_moves_by_semitones(semitones):
  t = np.arange(32000) / audio.RATE
  tone = np.sin(2 * np.pi * 200 * t).astype(np.float32)
  out = augment.shift_pitch(tone, semitones)
  spectrum = np.abs(np.fft.rfft(out[4000:28000] * np.hanning(24000)))
  peak = np.argmax(spectrum) * audio.RATE / 24000
  assert peak == pytest.approx(200 * 2 ** (semitones / 12), abs=1)
  assert out.std() == pytest.approx(tone.std(), rel=0.05)


@pytest.mark.parametrize('factor,pitch', [(0.85, 0), (1.2, 0), (1.0, 4)])
def test_formants_move_without_the_pitch_and_stay_with_it(factor, pitch):
  """A resonance of 1 kHz over harmonics of 100 Hz."""
  t = np.arange(32000) / audio.RATE
  k = np.arange(1, 60)[:, None]
  size = np.exp(-(((k * 100 - 1000) / 250) ** 2)) + 1e-3
  wave = np.sum(size * np.sin(2 * np.pi * k * 100 * t + k**2), axis=0) * 0.05
  voice = augment.Voice(formant=factor, pitch=pitch)
  rng = np.random.default_rng(0)
  out = augment.change_voice(wave.astype(np.float32), voice, rng)
  power = np.abs(np.fft.rfft(out[4000:20000] * np.hanning(16000))) ** 2
  hz = np.arange(len(power))  # One bin is 1 Hz.
  step = 100 * 2 ** (pitch / 12)
  near = np.abs(hz / step - np.round(hz / step)) * step < 4
  assert power[near].sum() > 0.95 * power.sum()
  assert np.sum(power * hz) / power.sum() == pytest.approx(
    1000 * factor, rel=0.06
  )


def test_no_voice_moves_the_speech_in_time():
  wave = babble()
  others = [babble(pitch=200, seed=1)]
  rng = np.random.default_rng(0)
  for _ in range(12):
    out = augment.augment_wave(wave, rng, others)
    assert out.shape == wave.shape and out.dtype == np.float32
    assert np.isfinite(out).all()
    assert abs(lag_ms(wave, out)) <= 5
  # The measure itself sees 10 ms.
  assert lag_ms(wave, np.roll(wave, 160)) == 10


def test_augmentation_repeats_and_differs():
  wave = babble(1)
  first, again, other = (
    augment.augment_wave(wave, np.random.default_rng(s)) for s in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 0.01
  still = np.zeros(16000, np.float32)
  assert np.isfinite(
    augment.augment_wave(still, np.random.default_rng(0))
  ).all()


@pytest.mark.parametrize('colour', ['white', 'pink', 'babble'])
def test_noise_has_the_asked_level(colour):
  wave = babble(4)
  voice = augment.Voice(noise=-10, colour=colour)
  rng = np.random.default_rng(0)
  out = augment.change_voice(wave, voice, rng, [babble(3, seed=2)])
  loud = np.abs(wave) > 0
  ratio = np.square(out - wave)[loud].mean() / np.square(wave)[loud].mean()
  assert 10 * np.log10(ratio) == pytest.approx(-10, abs=4)


def test_feature_augmentation_keeps_time_and_is_fast():
  tokens = audio.log_mel(babble(), 50)
  rng = np.random.default_rng(0)
  for _ in range(8):
    out = augment.augment_features(tokens, rng)
    assert out.shape == tokens.shape and out.dtype == np.float32
    assert np.isfinite(out).all()
    match = np.corrcoef(out.mean(axis=1), tokens.mean(axis=1))[0, 1]
    assert match > 0.7
  times = []
  for _ in range(30):
    start = time.thread_time()  # Of a busy machine, only our own share.
    augment.augment_features(tokens, rng)
    times.append(time.thread_time() - start)
  assert min(times) < 1e-3


def test_pauses_are_sometimes_nothing_at_all():
  rng = np.random.default_rng(0)
  wave = 0.001 * rng.standard_normal(32000).astype(np.float32)
  wave[8000:24000] *= 100
  tokens = audio.log_mel(wave, 50)
  nothing = audio.log_mel(np.zeros(640, np.float32), 1)[0]
  silent = 0
  for _ in range(200):
    out = augment.augment_features(tokens, rng)
    dead = np.isclose(out, nothing, atol=1e-4).all(1)
    assert not dead[14:36].any()
    if dead.any():
      assert dead[:10].all() and dead[-10:].all()
      silent += 1
  assert 20 < silent < 60  # 2 of 10


def test_feature_warp_moves_a_tone():
  t = np.arange(16000) / audio.RATE
  tone = (0.3 * np.sin(2 * np.pi * 1500 * t)).astype(np.float32)
  higher = (0.3 * np.sin(2 * np.pi * 1650 * t)).astype(np.float32)
  power = np.exp(audio.log_mel(tone, 25) * audio.LOG_STD).reshape(-1, 80)
  target = audio.log_mel(higher, 25).reshape(-1, 80)
  moved = augment._warp_mels(power, 1.1)
  assert abs(np.argmax(moved[50]) - np.argmax(target[50])) <= 1
  assert np.argmax(power[50]) + 2 <= np.argmax(target[50])
