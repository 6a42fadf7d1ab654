"""Mixture-based representations (section of that name in arXiv 1906.00910).

Each image gets k vectors instead of one, and each position of the other view
is predicted by those that fit it: equations 6 and 7. The authors' code has none
of it; the hidden size, k and the inverse temperature tau are not published.
"""

from flax import linen as nn
import jax
from jaxtyping import Array, Float

from infomax_jax.conv import Linear


class Mixture(nn.Module):
  """m_k: r1 -> k components, each r1 plus the output of one hidden layer.

  Both layers are drawn at random: from an output layer of zeros the components
  would be equal and stay so.
  """

  components: int
  hidden: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, r1: Float[Array, 'B C']) -> Float[Array, 'B k C']:
    y = nn.relu(Linear(self.hidden, dtype=self.dtype, name='hidden')(r1))
    width = self.components * r1.shape[-1]
    y = Linear(width, dtype=self.dtype, name='output')(y)
    y = y.reshape(-1, self.components, r1.shape[-1])
    return r1[:, None] + y.astype(r1.dtype)


def posterior(
  scores: Float[Array, 'B k L'], tau: float
) -> Float[Array, 'B k L']:
  """q(component | position), equation 7, of the NCE log-softmax `scores`."""
  return jax.nn.softmax(tau * scores, axis=1)


def entropy(q: Float[Array, 'B k L']) -> Float[Array, 'B L']:
  """H(q) in nats."""
  return jax.scipy.special.entr(q).sum(1)


def value(scores: Float[Array, 'B k L'], tau: float) -> Float[Array, 'B L']:
  """sum_j q_j s_j + H(q) / tau at the best q, equation 6 with alpha = 1 / tau.

  That is logsumexp(tau s) / tau, whose gradient in s is q itself. With one
  component it is its score.
  """
  return jax.nn.logsumexp(tau * scores, axis=1) / tau
