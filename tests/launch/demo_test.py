"""make demo's binary: a sentence or a recording in, a video and figures out."""

import re

import numpy as np
import pytest
import soundfile

from launch import clip_scores, faces, media, speech
from tests import tiny

pytest.importorskip('matplotlib', reason='needs the eval extra')


@pytest.fixture
def face(tmp_path):
  media.write_image(tmp_path / 'face.png', tiny.picture())
  return tmp_path / 'face.png'


@pytest.fixture
def demo(binary, tiny_file, face):
  def run(*arguments):
    given = [f'--checkpoint={tiny_file}', f'--image={face}', '--steps=2']
    return binary('demo')(*given, *arguments)

  return run


@pytest.fixture
def lips(monkeypatch):
  """Lips that follow the loudness of tiny.speech, shut at 0.6 s alone; one blink."""

  def look(frames, mesh):
    count = len(frames)
    wave = tiny.speech(count / 25)
    mouth = np.abs(wave).reshape(count, 640).max(1)
    mouth = np.where(np.arange(count) // 2 == 7, 0, 0.3 + mouth)
    eyes = np.where(np.arange(count) // 4 == 3, 0.05, 0.3)
    landmarks = np.zeros((count, 468, 3))
    return clip_scores.Look(frames, landmarks, mouth, eyes, True)

  monkeypatch.setattr(faces, 'default_mesh', lambda: None)
  monkeypatch.setattr(clip_scores, 'look', look)


def test_a_sentence_becomes_video_strip_and_figures(
  demo, tmp_path, lips, monkeypatch, capsys
):
  phones = [
    speech.Phone('^', 0.0, 0.05),
    speech.Phone('a', 0.05, 0.56),
    speech.Phone('b', 0.56, 0.62),
    speech.Phone('a', 0.62, 1.2),
  ]
  said = []

  def synthesise(text):
    said.append(text)
    return speech.Speech(tiny.speech(1.2), phones)

  monkeypatch.setattr(speech, 'synthesise', synthesise)
  out = tmp_path / 'new/demo.mp4'
  assert demo('--text=bah', f'--out={out}') == 0
  assert said == ['bah']
  names = [p.name for p in sorted(out.parent.iterdir())]
  assert names == ['demo.mp4', 'demo.png', 'demo.wav']
  assert len(media.read_video(out).frames) == 30
  strip = media.read_image(out.with_suffix('.png'))
  assert strip.shape[1] == 1600
  assert soundfile.info(out.with_suffix('.wav')).duration == 1.2
  text = capsys.readouterr().out
  assert max(map(len, text.replace(str(tmp_path), '').splitlines())) <= 80
  rows = dict(re.findall(r'^  (\S.*?) {2,}(.*)$', text, re.M))
  assert float(rows['mouth opening and loudness'].removeprefix('r = ')) > 0.5
  assert rows['lips closed at /p b m/'].startswith('1 of 1 (by chance 0.')
  assert rows['blinks'] == '50 a minute'
  for stage in ('load', 'speech', 'read', 'sample', 'decode', 'write', 'judge'):
    assert float(rows[f'seconds: {stage}']) >= 0
  assert rows['seconds in all'].endswith('for 1.2 s of video')
  assert f'watch {out}' in text


def test_a_recording_is_read_and_left_alone(demo, tmp_path, lips, capsys):
  soundfile.write(tmp_path / 'demo.wav', tiny.speech(0.4), 16000)
  before = (tmp_path / 'demo.wav').read_bytes()
  audio = f'--audio={tmp_path}/demo.wav'
  assert demo(audio, f'--out={tmp_path}/demo.mp4') == 0
  assert (tmp_path / 'demo.wav').read_bytes() == before
  text = capsys.readouterr().out
  assert 'reading' in text and '/p b m/' not in text
  assert 'seconds: speech' not in text


def test_a_video_without_a_face_is_said_and_drawn_all_the_same(
  demo, tmp_path, monkeypatch, capsys
):
  class Blind:
    def clip_rois(self, frames):
      raise faces.NoFaceError('no face')

  monkeypatch.setattr(faces, 'default_mesh', Blind)
  soundfile.write(tmp_path / 'a.wav', tiny.speech(0.04), 16000)  # One frame.
  out = tmp_path / 'o.mp4'
  assert demo(f'--audio={tmp_path}/a.wav', f'--out={out}') == 0
  assert 'none: no face is found in the video' in capsys.readouterr().out
  assert out.exists() and out.with_suffix('.png').exists()


def test_bad_input_is_one_line_and_leaves_nothing(demo, tmp_path, one_error):
  (tmp_path / 'empty.wav').touch()
  soundfile.write(tmp_path / 'a.wav', tiny.speech(0.04), 16000)
  out = tmp_path / 'out/o.mp4'
  for flags, said in (
    (['--text= '], 'there is no text to speak'),
    ([f'--audio={tmp_path}/empty.wav'], 'empty.wav: is empty (0 bytes)'),
    ([f'--audio={tmp_path}/no.wav'], 'no.wav: no such file'),
    ([f'--audio={tmp_path}/face.png'], 'face.png: has no audio'),
    (
      [f'--audio={tmp_path}/a.wav', f'--image={tmp_path}/no.png'],
      'no.png: no such file',
    ),
    (['--checkpoint=no'], 'no: no such checkpoint'),
    (['--out=demo.wav'], '--out=demo.wav: the video is an .mp4'),
  ):
    assert demo(f'--out={out}', *flags) == 1
    assert said in one_error()
    assert not list(out.parent.iterdir())
