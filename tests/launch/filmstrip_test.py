import sys

import numpy as np
from PIL import Image
import pytest

from launch import filmstrip
from launch.errors import UserError

pytest.importorskip('matplotlib', reason='needs the eval extra')


def draw(path, **changes):
  """A 2 s strip that turns from black to white half way, and its pixels."""
  clip = {
    'frames': np.repeat(np.uint8([0, 255]), 25)[:, None, None, None]
    * np.ones((1, 16, 16, 3), np.uint8),
    'wave': np.sin(np.arange(32000) / 20).astype(np.float32),
    'opening': np.linspace(0, 0.1, 50),
  }
  filmstrip.save_filmstrip(path, **(clip | changes))
  return np.asarray(Image.open(path).convert('RGB'))


def test_frames_stand_over_their_time(tmp_path):
  pixels = draw(tmp_path / 'strip.png')
  assert pixels.shape[1] == 1600
  left, right = (round(1600 * s) for s in filmstrip.SIDES)
  row = pixels[80, left + 2 : right - 2].mean(axis=-1)
  switch = np.argmax(row > 128) / len(row)
  assert (row[: int(0.49 * len(row))] < 20).all()
  assert switch == pytest.approx(0.5, abs=0.02)


def test_reference_adds_a_strip_and_a_curve(tmp_path):
  plain = draw(tmp_path / 'plain.png')
  both = draw(
    tmp_path / 'both.png',
    reference_frames=np.full((40, 16, 16, 3), 128, np.uint8),
    reference_opening=np.linspace(0.1, 0, 40),
    title='a title',
  )
  assert both.shape[0] > plain.shape[0]
  assert (both[60, 200] == 128).all()


def test_no_sound_is_drawn_as_none(tmp_path):
  assert draw(tmp_path / 'mute.png', wave=np.zeros(0, np.float32)).any()


def test_missing_matplotlib_is_told_and_leaves_nothing(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
  with pytest.raises(UserError, match='pip install'):
    draw(tmp_path / 'none.png')
  assert not list(tmp_path.iterdir())
