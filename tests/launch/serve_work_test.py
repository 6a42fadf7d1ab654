"""The work of a server, with a tiny model."""

import numpy as np
import pytest
import soundfile

from launch import clip_scores, faces, generate, media, serve_work, speech
from launch.errors import UserError
from launch.serve_inputs import Order
from launch.serve_jobs import Cancelled, Job, Limits
from tests import tiny


@pytest.fixture
def studio(generator, talker, monkeypatch):
  monkeypatch.setattr(faces, 'default_mesh', lambda: 'mesh')
  engine = speech.get_engine(talker)
  return serve_work.Studio(generator, engine, Limits(seconds=3))


@pytest.fixture
def job(tmp_path):
  """job(words or sound) -> a job that runs."""
  media.write_image(tmp_path / 'image', tiny.picture())

  def make(says='', wave=None):
    audio = None
    if wave is not None:
      audio = tmp_path / 'audio.wav'
      soundfile.write(audio, wave, 16000)
    image = tmp_path / 'image'
    settings = generate.Settings(steps=2)
    order = Order(says, audio, image, 'shipped', 'red', settings)
    return Job('a', tmp_path, order, {})

  return make


def test_a_sound_becomes_a_video_with_curves(studio, job, monkeypatch):
  def look(frames, mesh):
    assert mesh == 'mesh'
    if len(frames) < 25:
      raise faces.NoFaceError('none')
    opening = np.linspace(0, 1, len(frames))
    return clip_scores.Look(frames, opening, opening, opening, True)

  monkeypatch.setattr(clip_scores, 'look', look)
  wave = tiny.speech(1.4)
  made = job(wave=wave)
  studio(made)
  assert (made.step, made.steps, made.frames) == (4, 4, 35)
  assert made.seconds == pytest.approx(1.4)
  assert 0 < made.first_frame
  assert made.mouth[24:26] == [1.0, None] and len(made.mouth) == 35
  both = [f'{name}.mp4' for name in ('live', 'video')]
  shapes = [media.read_video(made.folder / n).frames.shape for n in both]
  assert shapes == [(35, 16, 16, 3)] * 2
  low, high = np.array(made.wave).T
  assert len(low) == 600 and low.min() == pytest.approx(wave.min(), abs=1e-3)
  assert high.max() == pytest.approx(wave.max(), abs=1e-3)
  assert {'read', 'sample', 'decode', 'mouth', 'write'} <= set(made.took)


def test_words_are_spoken_up_to_the_limit(studio, job, monkeypatch):
  monkeypatch.setattr(studio, '_mesh', None)
  made = job('ab')
  studio(made)
  assert made.frames == 2 and made.mouth == []
  with pytest.raises(UserError, match='would be 4 s long, at most 3 s are'):
    studio(job('a' * 100))


def test_a_cancelled_job_stops_within_a_step(studio, job, monkeypatch):
  monkeypatch.setattr(studio, '_mesh', None)
  made = job(wave=tiny.speech(2.4))
  advance = Job.advance

  def count(self):
    if self.step == 2:  # The first of the second window.
      self.stop.set()
    advance(self)

  monkeypatch.setattr(Job, 'advance', count)
  with pytest.raises(Cancelled):
    studio(made)
  assert made.step == 3 and made.frames == 25
  assert not (made.folder / 'video.mp4').exists()
  assert [p for p in made.folder.iterdir() if 'part' in p.name] == []


def test_the_shipped_face_is_for_models_of_its_size(studio, generator):
  assert not studio.has_face  # Frames of 16 x 16.
  studio.warm_up()
