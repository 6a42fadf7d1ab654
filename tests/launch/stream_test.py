"""A video that grows: playable at any time, in step with its sound."""

import io
import os

import numpy as np
import pytest

from launch import generate, media, stream, talk
from tests import tiny


def clip(seconds):
  """Coarse noise that changes every frame, 96 x 64, with sound."""
  rng = np.random.default_rng(0)
  coarse = rng.integers(0, 256, (round(25 * seconds), 6, 4, 3), np.uint8)
  return coarse.repeat(16, 1).repeat(16, 2), tiny.speech(seconds)


def test_what_is_there_plays_and_at_the_end_it_is_all(tmp_path):
  frames, wave = clip(2.2)
  path = tmp_path / 'live.mp4'
  with path.open('wb') as file, stream.Stream(file, wave) as live:
    for start, least in ((0, 15), (25, 40)):
      live.add(frames[start : start + 25])
      so_far = media.read_video(path, tolerant=True).frames
      assert least <= len(so_far) <= start + 25
      heard = media.read_audio(path, tolerant=True)
      assert len(heard) >= 0.8 * len(so_far) * 640
    live.add(frames[50:])
  made = media.read_video(path)
  assert made.fps == 25 and made.frames.shape == frames.shape
  # Of every frame, not of a neighbour.
  assert np.abs(made.frames.astype(int) - frames).mean((1, 2, 3)).max() < 8
  heard = media.read_audio(path)[: len(wave)]
  assert len(heard) == len(wave)
  assert np.corrcoef(heard, wave)[0, 1] > 0.95  # At lag 0.


def test_frames_come_out_while_later_windows_are_sampled(
  generator, tmp_path, monkeypatch
):
  live, sizes, seen = io.BytesIO(), [], []
  sample = generator._sample

  def spy(*args):
    sizes.append(len(live.getvalue()))
    return sample(*args)

  monkeypatch.setattr(generator, '_sample', spy)
  settings = generate.Settings(steps=2)
  wave = tiny.speech(2.2)
  windows = generator.windows(wave, tiny.picture(), '', settings)
  talk.film(tmp_path / 'o.mp4', windows, wave, seen.append, live)
  assert sizes[0] < 100 < sizes[1] < sizes[2] < len(live.getvalue())
  assert [len(frames) for frames in seen] == [25, 25, 5]
  (tmp_path / 'live.mp4').write_bytes(live.getvalue())
  both = [media.read_video(tmp_path / f'{n}.mp4').frames for n in ('live', 'o')]
  assert both[0].shape == both[1].shape == (55, 16, 16, 3)


def test_a_stream_that_fails_is_closed_and_says_why(tmp_path):
  with (tmp_path / 'live.mp4').open('wb') as file:
    with pytest.raises(ZeroDivisionError):
      with stream.Stream(file, tiny.speech(1)) as live:
        live.add(clip(0.4)[0])
        raise ZeroDivisionError
    with stream.Stream(file, tiny.speech(1)):  # Left before the first frame.
      assert True


def test_who_watches_may_leave(tmp_path, caplog):
  """As a player that is closed at the other end of a pipe."""
  frames, wave = clip(2)
  reader, writer = os.pipe()

  def windows():
    yield frames[:25]
    os.close(reader)
    yield frames[25:]

  with open(writer, 'wb') as live:
    talk.film(tmp_path / 'o.mp4', windows(), wave, live=live)
  assert len(media.read_video(tmp_path / 'o.mp4').frames) == len(frames)
  assert caplog.text.count('nobody watches the stream any more') == 1
