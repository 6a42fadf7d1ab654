"""Embeddings of noise level and text: where the condition vectors come from."""

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

from mirage_jax.linear import Linear
from mirage_jax.ops.attention import attention

SIGMA_CHANNELS = 256
SIGMA_SCALE = 1000.0


class SigmaEmbed(nn.Module):
  """MLP of the sinusoids of 1000 * (1 - sigma), float32 (Mochi 1)."""

  width: int

  @nn.compact
  def __call__(self, sigma: Float[Array, 'B']) -> Float[Array, 'B Wc']:
    time = SIGMA_SCALE * (1 - sigma.astype(jnp.float32))
    angles = time[:, None] * rates()[None, :]
    x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    shape = (SIGMA_CHANNELS, self.width)
    x = nn.silu(Linear(shape, (None, 'embed'), name='up')(x))
    shape = (self.width, self.width)
    return Linear(shape, ('embed', 'cond'), name='out')(x)


def rates() -> Float[np.ndarray, 'k']:
  """Angles of the sinusoids at time 1, as Mochi was trained with.

  Its exponents are rounded to float32. At times up to 1000 that moves angles by
  6e-5, which large weights make 3e-5 of the velocity.
  """
  half = SIGMA_CHANNELS // 2
  exponents = np.float32(-np.log(10_000.0)) * np.arange(half, dtype=np.float32)
  exponents = (exponents / np.float32(half)).astype(np.float64)
  return np.exp(exponents).astype(np.float32)


class TextPool(nn.Module):
  """Attention pooling of text with its mean token as the query (Mochi 1).

  The mean token is a key, too, so that empty text pools to a learned vector.
  """

  width: int
  num_heads: int

  @nn.compact
  def __call__(
    self, text: Float[Array, 'B L Ct'], mask: Bool[Array, 'B L']
  ) -> Float[Array, 'B Wc']:
    batch, _, size = text.shape
    heads, names = (self.num_heads, size // self.num_heads), ('heads', 'kv')
    text, weight = text.astype(jnp.float32), mask.astype(jnp.float32)
    count = jnp.maximum(weight.sum(1, keepdims=True), 1)
    mean = jnp.einsum('BLC,BL->BC', text, weight / count)[:, None]
    keys = jnp.concatenate([mean, text], axis=1)
    mask = jnp.concatenate([jnp.ones((batch, 1), bool), mask], axis=1)
    q = Linear((size, *heads), ('embed', *names), name='q')(mean)
    kv = Linear((size, 2, *heads), ('embed', None, *names), name='kv')(keys)
    pooled = attention(q, kv[:, :, 0], kv[:, :, 1], mask)[:, 0]
    shape = (*heads, self.width)
    return Linear(shape, (*names, 'embed'), num_in=2, name='out')(pooled)


class TextEmbed(nn.Module):
  """A learned table for integer text ids; float features pass through.

  Raises:
    ValueError: Ids for a model of features, or the reverse.
  """

  vocab: int
  size: int

  @nn.compact
  def __call__(self, text: Array) -> Float[Array, 'B L Ct']:
    is_ids = jnp.issubdtype(text.dtype, jnp.integer)
    if is_ids != (self.vocab > 0):
      raise ValueError(
        f'text is {text.dtype}, but text_vocab is {self.vocab}: ids are for '
        'text_vocab > 0, float features for 0.'
      )
    if not is_ids:
      return text
    init = nn.with_logical_partitioning(
      nn.initializers.normal(1.0), ('vocab', 'embed')
    )
    table = self.param('table', init, (self.vocab, self.size), jnp.float32)
    return jax.numpy.take(table, text, axis=0)
