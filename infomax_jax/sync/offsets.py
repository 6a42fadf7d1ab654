"""Scores of two tracks -> by how many frames they are apart, and how surely.

Offsets are those of the sound: at d > 0 it comes d frames after the sight that
it belongs to.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

AROUND = 2  # Frames beside the best offset that belong to its peak.


class Verdict(NamedTuple):
  """What the scores say of one clip.

  Attributes:
    offset: frames by which the sound is late.
    evidence: nats per frame by which the best offset is more likely than any
      other frame of the clip.
    height: how far the best offset stands above those away from it, in their
      standard deviations.
    confidence: probability that sound and sight belong together.
    curve: evidence of all offsets from -reach to reach.
  """

  offset: int
  evidence: float
  height: float
  confidence: float
  curve: Float[np.ndarray, 'O']


class Calibration(NamedTuple):
  """Confidence = sigmoid(bias + slope * height), fitted by `calibrate`.

  By the height alone: an unseen face or voice gives fewer nats than those
  trained on, but its peak stands out as much.
  """

  bias: float
  slope: float


def products(
  sound: Float[Array, '*B T C'], sight: Float[Array, '*B T C'], clip: float
) -> Float[Array, '*B T T']:
  """Scores of every frame's sound (rows) with every frame's sight."""
  raw = jnp.einsum('...tc,...uc->...tu', sound, sight)
  return clip * jnp.tanh(raw / (clip * sound.shape[-1] ** 0.5))


def by_offset(
  scores: Float[Array, '*B T U'], reach: int
) -> Float[Array, '*B O']:
  """Mean scores of the offsets -reach..reach.

  Offset d pairs the sound of frame t + d with the sight of frame t.
  """
  means = [
    jnp.diagonal(scores, -d, -2, -1).mean(-1) for d in range(-reach, reach + 1)
  ]
  return jnp.stack(means, -1)


def information(scores: Float[np.ndarray, 'T T']) -> Float[np.ndarray, 'T T']:
  """Scores less what an average frame of the clip would get, in nats.

  What NCE learns is a density ratio up to a factor of each source; the mean of
  the ratio over the other side's frames, in both directions, takes it out.
  """
  top = scores.max()
  ratio = np.exp(scores - top)
  rows = np.log(ratio.mean(1, keepdims=True))
  columns = np.log(ratio.mean(0, keepdims=True))
  return scores - top - (rows + columns) / 2


def curve(
  parts: Sequence[Float[np.ndarray, 'T T']], reach: int
) -> Float[np.ndarray, 'O']:
  """Evidence of each offset over all parts of a clip, in nats per frame.

  Args:
    parts: scores of the parts, from `products`.
    reach: the largest offset.

  Raises:
    ValueError: a part has no more than `reach` frames.
  """
  totals = np.zeros(2 * reach + 1)
  counts = np.zeros(2 * reach + 1)
  for scores in parts:
    if len(scores) <= reach:
      raise ValueError(f'{len(scores)} frames have no offset of {reach}')
    nats = information(np.asarray(scores, np.float64))
    for i, d in enumerate(range(-reach, reach + 1)):
      diagonal = np.diagonal(nats, -d)
      totals[i] += diagonal.sum()
      counts[i] += len(diagonal)
  return totals / counts


def judge(
  evidence: Float[np.ndarray, 'O'], calibration: Calibration
) -> Verdict:
  """The verdict on a curve of evidence."""
  reach, best = len(evidence) // 2, int(np.argmax(evidence))
  away = np.abs(np.arange(len(evidence)) - best) > AROUND
  spread = max(float(evidence[away].std()), 1e-6)
  peak = float(evidence[best])
  height = (peak - float(evidence[away].mean())) / spread
  logit = calibration.bias + calibration.slope * height
  confidence = 1 / (1 + np.exp(-np.clip(logit, -30, 30)))
  return Verdict(best - reach, peak, height, float(confidence), evidence)


def calibrate(
  together: Sequence[Verdict], apart: Sequence[Verdict]
) -> Calibration:
  """Logistic regression of which verdicts are of pairs that belong together.

  Both kinds weigh the same. Targets are those of Platt (1999), short of 0 and
  1 by what so few examples leave open; Newton's method.
  """
  x = np.array([(1.0, v.height) for v in (*together, *apart)])
  yes, no = len(together), len(apart)
  y = np.array([(yes + 1) / (yes + 2)] * yes + [1 / (no + 2)] * no)
  weight = np.array([0.5 / yes] * yes + [0.5 / no] * no)
  beta = np.zeros(2)
  for _ in range(50):
    p = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
    gradient = x.T @ (weight * (p - y))
    hessian = (x * (weight * p * (1 - p))[:, None]).T @ x
    beta -= np.linalg.solve(hessian + 1e-9 * np.eye(2), gradient)
  return Calibration(*map(float, beta))
