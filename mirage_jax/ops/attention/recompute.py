"""Attention in plain XLA that keeps no weights for its gradient.

The backward pass computes the B H T S weights again from q, k and each query's
logsumexp, as FlashAttention does, though not in tiles. One more matmul, and no
T x S arrays stored per block: faster wherever memory is slower than arithmetic.
"""

import jax
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from mirage_jax.ops.attention.reference import MASKED


def attention(
  q: Float[Array, 'B T H D'],
  k: Float[Array, 'B S H D'],
  v: Float[Array, 'B S H D'],
  mask: Bool[Array, 'B S'] | None = None,
) -> Float[Array, 'B T H D']:
  """See `api.attention`."""
  if mask is None:
    mask = jnp.ones(k.shape[:2], bool)
  return _attention(q, k, v, mask)


@jax.custom_vjp
def _attention(q, k, v, mask):
  return _forward(q, k, v, mask)[0]


def _logits(q, k, mask):
  q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
  logits = jnp.einsum(
    'BTHD,BSHD->BHTS', q, k, preferred_element_type=jnp.float32
  )
  return jnp.where(mask[:, None, None, :], logits, MASKED)


def forward(
  q: Float[Array, 'B T H D'],
  k: Float[Array, 'B S H D'],
  v: Float[Array, 'B S H D'],
  mask: Bool[Array, 'B S'],
) -> tuple[Float[Array, 'B T H D'], Float[Array, 'B H T 1']]:
  """The output, and float32 log-sum-exp of the scores."""
  logits = _logits(q, k, mask)
  top = jnp.max(logits, axis=-1, keepdims=True)
  weights = jnp.exp(logits - top)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  out = jnp.einsum(
    'BHTS,BSHD->BTHD',
    weights.astype(v.dtype),
    v,
    preferred_element_type=jnp.float32,
  )
  # Dividing T D numbers, not T S; a sample without keys gets zeros.
  some = jnp.any(mask, axis=1)[:, None, None, None]
  out = (out * (some / jnp.swapaxes(total, 1, 2))).astype(q.dtype)
  return out, top + jnp.log(total)


def _forward(q, k, v, mask):
  out, log_total = forward(q, k, v, mask)
  out = checkpoint_name(out, 'attention')
  log_total = checkpoint_name(log_total, 'attention')
  return out, (q, k, v, mask, out, log_total)


def _backward(saved, g):
  q, k, v, mask, out, log_total = saved
  some = jnp.any(mask, axis=1)[:, None, None, None]
  g = jnp.where(some, g, jnp.zeros_like(g))
  inner = jnp.sum((g * out).astype(jnp.float32), axis=-1, keepdims=True)
  inner = jnp.swapaxes(inner, 1, 2)
  return *backward(q, k, v, mask, log_total, inner, g), None


def backward(
  q: Float[Array, 'B T H D'],
  k: Float[Array, 'B S H D'],
  v: Float[Array, 'B S H D'],
  mask: Bool[Array, 'B S'],
  log_total: Float[Array, 'B H T 1'],
  inner: Float[Array, 'B H T 1'],
  g: Float[Array, 'B T H D'],
) -> tuple[
  Float[Array, 'B T H D'], Float[Array, 'B S H D'], Float[Array, 'B S H D']
]:
  """Gradients of q, k and v from g, the output's.

  `log_total` may be over more keys than the given ones, `inner` are the sums of
  output * g over D; a query without any key has g = 0.
  """
  weights = jnp.exp(_logits(q, k, mask) - log_total)
  g_weights = jnp.einsum(
    'BTHD,BSHD->BHTS', g, v, preferred_element_type=jnp.float32
  )
  g_logits = weights * (g_weights - inner)
  g_logits = (g_logits * q.shape[-1] ** -0.5).astype(q.dtype)
  weights = weights.astype(v.dtype)
  return (
    jnp.einsum('BHTS,BSHD->BTHD', g_logits, k),
    jnp.einsum('BHTS,BTHD->BSHD', g_logits, q),
    jnp.einsum('BHTS,BTHD->BSHD', weights, g),
  )


_attention.defvjp(_forward, _backward)
