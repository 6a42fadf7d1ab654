"""How loud a sound is during each frame of its video."""

from jaxtyping import Float
import numpy as np

from mirage_jax.audio import RATE, TOKEN_RATE

QUIET = 50.0  # dB below the loudest frame is as quiet as it gets.


def level(
  wave: Float[np.ndarray, 'S'], num_frames: int
) -> Float[np.ndarray, 'N']:
  """Level of each frame in dB, cut off QUIET below the loudest.

  Args:
    wave: 16 kHz mono.
    num_frames: at 25 a second; silence fills up a wave that is shorter.
  """
  samples = RATE // TOKEN_RATE
  padded = np.zeros(num_frames * samples, np.float32)
  padded[: len(wave)] = wave[: len(padded)]
  power = np.square(padded.reshape(num_frames, samples)).mean(1)
  found = 10 * np.log10(power + 1e-12)
  return np.maximum(found, found.max() - QUIET)
