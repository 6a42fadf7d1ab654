"""Whether lips close where the phones of a synthesiser ask for it."""

from collections.abc import Sequence

from jaxtyping import Float
import numpy as np

from launch.speech import Phone
from mirage_jax import evals
from mirage_jax.audio import TOKEN_RATE

# The synthesiser counts much of a closure to the phone before it.
LEAD = 0.08


def count(
  mouth: Float[np.ndarray, 'N'], phones: Sequence[Phone]
) -> evals.Closures:
  """Closures at /p b m/ in a curve of 25 values a second."""
  early = [(p.symbol, p.start - LEAD, p.end) for p in phones]
  return evals.closure_hits(mouth, early, TOKEN_RATE)
