"""How much channels show, where the decoder is known."""

import jax
from jax import numpy as jnp
import numpy as np

from mirage_jax import visibility


def coded(frames):
  return np.zeros(frames.shape, np.float32)


class Scaled:
  """A decoder that shows the channels, each times a number."""

  gains = np.array([3.0, 0.0, 1.0], np.float32).reshape(1, 1, 1, 1, 3)

  def apply(self, variables, x, method):
    return x * variables['params'] * self.gains


def test_a_channel_counts_by_the_square_of_what_it_moves_in_the_picture():
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (400, 5, 6, 6, 3), np.uint8)
  stats = {
    'mean': np.array([1.0, 2.0, 3.0], np.float32),
    'std': np.array([1.0, 9.0, 2.0], np.float32),
  }
  shares = visibility.channels(
    Scaled(), jnp.float32(0.7), stats, frames, coded(frames), jax.random.key(0)
  )
  # Gain times spread, squared: 9, 0 and 4.
  np.testing.assert_allclose(shares / shares.sum(), [9 / 13, 0, 4 / 13], 0.02)


def test_what_does_not_move_does_not_count():
  frames = np.zeros((64, 5, 4, 4, 3), np.uint8)
  frames[:, ::2, 1:3] = 255
  stats = {'mean': np.zeros(3, np.float32), 'std': np.ones(3, np.float32)}

  class Rows(Scaled):
    """Channel 0 shows in rows that move, channel 2 in those that do not."""

    def apply(self, variables, x, method):
      moving = (jnp.arange(4) % 3 > 0)[None, None, :, None, None]
      kinds = jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 1.0])
      shape = (1, 1, 1, 1, 3)
      a, b = (kind.reshape(shape) for kind in kinds)
      return x * jnp.where(moving, a, b)

  shares = visibility.channels(
    Rows(), 0.0, stats, frames, coded(frames), jax.random.key(0)
  )
  assert shares[0] > 0 and shares[1] == shares[2] == 0


def test_weights_have_a_mean_of_one_and_a_floor():
  weights = visibility.weights(np.array([3e-4, 0.0, 1e-4]))
  np.testing.assert_allclose(weights, [2.18, 0.1, 0.73], atol=0.01)
  np.testing.assert_allclose(np.mean(weights), 1, atol=0.01)
