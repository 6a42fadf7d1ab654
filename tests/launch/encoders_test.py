"""Sound of any length through front ends that hear so much at once."""

import numpy as np
import pytest

from launch import encoders

FRAME = 640


class Ear:
  """Each token is its frame's first sample, and refuses what is too long."""

  def __init__(self, most):
    self.most, self.calls = most, 0

  def __call__(self, wave, num_frames):
    assert num_frames <= self.most
    self.calls += 1
    wave = np.pad(wave, (0, num_frames * FRAME - len(wave)))
    return wave[::FRAME, None]


@pytest.mark.parametrize('frames', [1, 19, 20, 21, 36, 400])
def test_every_frame_is_heard_once(frames):
  wave = np.repeat(1 + np.arange(frames), FRAME).astype(np.float32)
  ear = Ear(20)
  tokens = encoders.hear(ear, wave, frames, 20 / 25)
  assert tokens[:, 0].tolist() == list(range(1, frames + 1))
  assert ear.calls == 1 + -(-max(frames - 20, 0) // 15)


def test_a_sound_may_end_before_or_after_the_frames():
  wave = np.ones(30 * FRAME + 7, np.float32)
  assert encoders.hear(Ear(20), wave, 25, 20 / 25).sum() == 25
  assert encoders.hear(Ear(20), wave, 90, 20 / 25).sum() == 31
