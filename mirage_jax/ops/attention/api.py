"""One entry for all implementations of attention, chosen by name."""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from mirage_jax.ops.attention import recompute, reference


def attention(
  q: Float[Array, 'B T H D'],
  k: Float[Array, 'B S H D'],
  v: Float[Array, 'B S H D'],
  mask: Bool[Array, 'B S'] | None = None,
  *,
  implementation: str = 'reference',
) -> Float[Array, 'B T H D']:
  """Softmax attention with logits scaled by D ** -0.5.

  Args:
    q: Queries.
    k: Keys.
    v: Values.
    mask: True for keys that may be attended to; None for all. A sample with no
      such key gets zeros.
    implementation: 'reference' (plain XLA, softmax in float32), 'recompute'
      (the same without stored weights) or 'dot_product' (`jax.nn.dot_product_attention`). Never replaced by another
      one when it cannot run.

  Returns:
    Weighted values, in q's dtype.

  Raises:
    ValueError: There is no such implementation.
  """
  if implementation not in _IMPLEMENTATIONS:
    raise ValueError(
      f'no attention implementation {implementation!r}; '
      f'there are {sorted(_IMPLEMENTATIONS)}.'
    )
  return _IMPLEMENTATIONS[implementation](q, k, v, mask)


def _dot_product(q, k, v, mask):
  if mask is None:
    return jax.nn.dot_product_attention(q, k, v)
  out = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :])
  some = jnp.any(mask, axis=1)[:, None, None, None]
  return jnp.where(some, out, jnp.zeros_like(out))


_IMPLEMENTATIONS = {
  'reference': reference.attention,
  'recompute': recompute.attention,
  'dot_product': _dot_product,
}
