"""What figures say of a mouth that moves, and of one that stays shut."""

import numpy as np
import pytest

from launch import robustness_report
from launch.clip_scores import Look

WAVE = np.zeros(16000, np.float32)


def seen(mouth):
  """A clip of this mouth."""
  frames = np.random.default_rng(0).integers(0, 255, (25, 16, 16, 3), np.uint8)
  return Look(frames, np.zeros((25, 468, 3)), mouth, np.ones(25), True)


def test_opening_counts_from_where_the_real_mouth_is_shut():
  # Landmarks of closed lips are not at distance 0.
  truth = seen(0.3 + np.abs(np.sin(np.arange(25) / 2)))
  shut = seen(np.full(25, 0.3))
  wider = seen(0.3 + 2 * np.abs(np.sin(np.arange(25) / 2)))
  opening = lambda clip: robustness_report.figures(clip, truth, WAVE)['opening']
  assert opening(shut) == pytest.approx(0, abs=1e-6)
  assert opening(truth) == pytest.approx(1)
  assert opening(wider) == pytest.approx(2)
