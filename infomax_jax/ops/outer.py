"""Sums of outer products, the gradient of a matmul's kernel."""

from jax import lax, numpy as jnp
from jaxtyping import Array, Float

WIDE = 512  # channels from which turning one side pays on CPUs


def outer(
  x: Float[Array, '... I'], dy: Float[Array, '... O']
) -> Float[Array, 'I O']:
  """Sum of x[..., i] dy[..., o] over all positions."""
  x, dy = (a.reshape(-1, a.shape[-1]) for a in (x, dy))

  def plain(x, dy):
    return lax.dot_general(x, dy, (((0,), (0,)), ((), ())))

  def swapped(x, dy):  # Better with the fewer channels on its left.
    return lax.optimization_barrier(plain(dy, x)).T

  def transposed(x, dy):
    # XLA is half as fast at it, and would put it together again. Of x it would
    # be made in the forward pass, and held.
    product = jnp.dot(lax.optimization_barrier(dy.T), x)
    return lax.optimization_barrier(product).T

  inputs, outputs = x.shape[-1], dy.shape[-1]
  if max(inputs, outputs) >= WIDE:
    cpu = transposed
  elif outputs < inputs:
    cpu = swapped
  else:
    return plain(x, dy)
  return lax.platform_dependent(x, dy, cpu=cpu, default=plain)
