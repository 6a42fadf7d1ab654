"""Attention in plain XLA: what every other implementation is tested against."""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

# Finite, so that a sample without keys has no NaN in its gradient.
MASKED = -1e30


def attention(
  q: Float[Array, 'B T H D'],
  k: Float[Array, 'B S H D'],
  v: Float[Array, 'B S H D'],
  mask: Bool[Array, 'B S'] | None = None,
) -> Float[Array, 'B T H D']:
  """See `api.attention`. Holds all B H T S weights; logits are float32."""
  q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
  logits = jnp.einsum(
    'BTHD,BSHD->BHTS', q, k, preferred_element_type=jnp.float32
  )
  if mask is not None:
    logits = jnp.where(mask[:, None, None, :], logits, MASKED)
  weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
  out = jnp.einsum('BHTS,BSHD->BTHD', weights, v)
  if mask is not None:
    some = jnp.any(mask, axis=1)[:, None, None, None]
    out = jnp.where(some, out, jnp.zeros_like(out))
  return out
