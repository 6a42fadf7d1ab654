"""The rows of drawn clips with a model whose answers are known; the sounds."""

import json

import numpy as np
import pytest

from launch import (
  bundle,
  clip_scores,
  evaluation,
  faces,
  generate,
  media,
  robustness_drift,
  robustness_sounds as sounds,
  speech,
)
from tests.launch.drawn import (
  SIZE,
  DrawnFaces,
  draw_clip,
  loudness,
  write_clips,
)

pytest.importorskip('matplotlib', reason='needs the eval extra')
RATE = 16000
TONE = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)


class Model:
  """Opens the mouth nine tenths as far as it is loud."""

  window_frames, own_steps = 50, 0

  def __init__(self, weights, name, quantised):
    pass

  def num_windows(self, num_samples, overlap):
    return 2

  def __call__(self, wave, image, text, settings, progress):
    for _ in range(16):
      progress()
    return draw_clip(0.9 * loudness(wave))


def darker(frames):
  """An autoencoder that loses a level."""
  return np.maximum(frames, 1) - 1


def speak(text, language):
  """A stop in the middle of two vowels, in any language."""
  opening = np.r_[np.full(10, 0.7), 0, 0, 0, np.full(12, 0.8)]
  tone = np.sin(np.arange(25 * 640) * 0.3)
  wave = (0.8 * np.repeat(opening, 640) * tone).astype(np.float32)
  said.append((language, text))
  phones = [('a', 0.0, 0.4), ('b', 0.4, 0.52), ('a', 0.52, 1.0)]
  return speech.Speech(wave, [speech.Phone(*phone) for phone in phones])


said = []


@pytest.fixture
def robustness(binary, tmp_path, monkeypatch):
  (tmp_path / 'clips').mkdir()
  write_clips(tmp_path / 'clips')
  weights = bundle.Bundle({'data': {'size': SIZE}}, {}, {})
  monkeypatch.setattr(bundle, 'load', lambda path: weights)
  monkeypatch.setattr(generate, 'Generator', Model)
  monkeypatch.setattr(faces, 'default_mesh', DrawnFaces)
  monkeypatch.setattr(evaluation, 'make_rebuild', lambda weights: darker)

  def run(*arguments):
    given = [f'--data={tmp_path}/clips', f'--out={tmp_path}/out']
    return binary('robustness')(*given, '--limit=2', *arguments)

  return run


def test_a_row_for_every_sound(robustness, tmp_path, capsys):
  assert robustness('--nospoken', '--long=4') == 0
  assert '4 seconds: step 16/16, ' in capsys.readouterr().err
  rows = json.loads((tmp_path / 'out/robustness.json').read_text())
  for late in (*range(-5, 0), *range(1, 6)):
    plural = 's' * (abs(late) > 1)
    row = rows[f'{abs(late)} frame{plural} {"late" if late > 0 else "early"}']
    assert row['lag'] == row['lag_due'] == late
    assert row['mouth_correlation'] > 0.85  # Some of it is cut off.
  real, rebuilt = rows['the real clip'], rows['autoencoder alone']
  assert real['mouth_correlation'] == pytest.approx(1)
  assert real['movement'] == pytest.approx(1)
  assert 0.99 < rebuilt['mouth_correlation'] and rebuilt['opening'] < 1
  assert rows['as recorded']['mouth_correlation'] > 0.95
  assert rows['as recorded']['movement'] == pytest.approx(0.9, abs=0.05)
  assert rows['one second']['mouth_correlation'] > 0.95
  assert rows['silence']['movement'] == 0 >= rows['silence']['opening'] > -0.1
  pauses = rows['its quiet third']
  assert 0 < pauses['movement'] < 0.5 and 0 <= pauses['opening'] < 0.5
  assert rows['silence']['loudness'] == 0 < 0.5 < rows['music']['loudness']
  assert 'lag' not in rows['silence'] and 'lag' not in rows['music']
  assert rows['4 seconds']['first_window'] > 0.95
  assert rows['4 seconds']['colour_end'] > 0
  assert rows['4 seconds']['colour_noise'] == pytest.approx(1, abs=0.01)
  off = 20 * np.log10(255)
  assert rows['4 seconds']['identity_noise'] == pytest.approx(off, abs=0.2)
  drift = json.loads((tmp_path / 'out/drift.json').read_text())
  assert len(drift['mouth']) == 100 and len(drift['lips']) == 4
  table = (tmp_path / 'out/robustness.md').read_text()
  assert '| 3 frames late |' in table and '4 seconds: lips r =' in table
  assert '4 seconds: a minute adds ' in table
  assert (tmp_path / 'out/drift.png').stat().st_size > 10_000


def test_languages_are_rows_and_parts_are_kept(
  robustness, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(speech, 'synthesise', speak)
  assert robustness('--long=0') == 0
  languages = dict.fromkeys(language for language, _ in said)
  assert list(languages) == ['en-us', 'de', 'fr', 'es', 'cmn', 'hi']
  rows = json.loads((tmp_path / 'out/robustness.json').read_text())
  row = rows['synthesised, German']
  assert row['closures'] == row['closures_of'] == 1
  assert 0 < row['closures_by_chance'] < 1 and row['loudness'] > 0.8
  table = (tmp_path / 'out/robustness.md').read_text()
  assert 'synthesised, Hindi: lips shut at 1 of 1 /p b m/' in table
  assert rows['synthesised']['closures_of'] == 2
  # Everything was kept: another run makes what it lacks, and no more.
  said.clear()
  (tmp_path / 'out/parts/a/silence.json').unlink()
  (tmp_path / 'out/parts/synthesised, French.json').unlink()
  capsys.readouterr()
  assert robustness('--long=0') == 0
  done = [x for x in capsys.readouterr().out.splitlines() if ': done' in x]
  assert done == ['a/silence: done', 'synthesised, French: done']
  assert [language for language, _ in said] == ['fr']


def test_clips_that_cannot_be_used_are_skipped(robustness, tmp_path, capsys):
  media.write_video(
    tmp_path / 'clips/b.mp4', np.zeros((30, 32, 32, 3), np.uint8), None
  )
  assert robustness('--nospoken', '--long=4') == 0
  out = capsys.readouterr().out
  assert 'b: skipped, ' in out and 'Mean over 1 clips' in out


def test_what_is_too_short_to_drift_is_told(robustness, one_error):
  assert robustness('--long=2') == 1
  assert one_error().startswith('--long=2: drift shows in what comes after the')


def test_drift_is_seen_second_by_second():
  """2 levels brighter each second, the mouth right for two and then not."""
  true = np.random.default_rng(5).uniform(0, 1, 100)
  frames = draw_clip(np.full(100, 0.5)) + np.repeat(
    np.arange(0, 8, 2, np.uint8), 25
  ).reshape(-1, 1, 1, 1)
  mesh = DrawnFaces()
  look = clip_scores.look(frames, mesh)
  look = look._replace(mouth=np.concatenate([true[:50], -true[50:]]))
  curves = robustness_drift.curves(look, true)
  np.testing.assert_allclose(curves['colour'], [0, 2, 4, 6], atol=1e-3)
  np.testing.assert_allclose(curves['sharpness'], 1, rtol=1e-3)
  off = 20 * np.log10(255 / np.array([2, 4, 6]))
  np.testing.assert_allclose(curves['identity'][1:], off, atol=0.2)
  np.testing.assert_allclose(curves['lips'][:2], 1)
  assert curves['lips'][3] < curves['lips'][2] < 0.9
  found = robustness_drift.summarise(
    curves
    | {'mouth': look.mouth.tolist(), 'true_mouth': true.tolist()}
    | {'noise': {'identity': 40.0, 'colour': 1.0}},
    50,
  )
  assert found['first_window'] == pytest.approx(1)
  assert found['after_it'] == pytest.approx(-1)
  # Of three seconds, the first two and the last two.
  assert found['colour_begin'] == pytest.approx(3, abs=1e-3)
  assert found['colour_end'] == pytest.approx(5, abs=1e-3)
  assert found['colour_noise'] == 1 and found['identity_noise'] == 40
  # 2 levels a second, on a line.
  assert found['colour_trend'] == pytest.approx(120, abs=0.1)
  assert found['colour_trend_error'] == pytest.approx(0, abs=0.1)
  assert found['identity_trend'] < 0 < found['identity_trend_error']


def power(wave):
  return np.mean(np.square(wave, dtype=np.float64))


def test_noise_is_as_loud_as_it_says():
  for decibels in (0, 20):
    noise = sounds.with_noise(TONE, decibels) - TONE
    got = 10 * np.log10(power(TONE) / power(noise))
    assert got == pytest.approx(decibels, abs=0.1)


def test_a_telephone_keeps_the_middle_alone():
  time = np.arange(RATE) / RATE
  heard = {}
  for hertz in (100, 1000, 3900, 6000):
    wave = 0.5 * np.sin(2 * np.pi * hertz * time).astype(np.float32)
    heard[hertz] = power(sounds.by_telephone(wave)) / power(wave)
  assert heard[1000] == pytest.approx(1, abs=0.05)
  assert max(heard[100], heard[3900], heard[6000]) < 0.01


def test_shifts_are_whole_frames():
  wave = np.arange(1, 6401, dtype=np.float32)
  late, early = sounds.shifted(wave, 2), sounds.shifted(wave, -2)
  assert len(late) == len(early) == len(wave)
  assert not late[:1280].any() and not early[-1280:].any()
  np.testing.assert_array_equal(late[1280:], wave[:-1280])
  np.testing.assert_array_equal(early[:-1280], wave[1280:])
  assert not sounds.shifted(wave, 99).any()


def test_music_has_the_length_and_is_no_silence():
  wave = sounds.music(40_000)
  assert wave.shape == (40_000,) and wave.dtype == np.float32
  assert np.abs(wave).max() == pytest.approx(0.3, abs=1e-3)
  assert all(power(part) > 1e-5 for part in np.split(wave, 5))


def test_other_weights_of_the_same_name_are_another_run(
  robustness, one_error, monkeypatch
):
  assert robustness('--nospoken', '--long=0') == 0
  other = bundle.Bundle(
    {'data': {'size': SIZE}}, {'kernel': np.ones(1, np.float32)}, {}
  )
  monkeypatch.setattr(bundle, 'load', lambda path: other)
  assert robustness('--nospoken', '--long=0') == 1
  assert 'give another --out or remove it' in one_error()
