"""Sums of outer products, the gradient of a matmul's kernel."""

from jax import lax, numpy as jnp
from jaxtyping import Array, Float

WIDE = 512  # channels from which turning one side pays on CPUs
NARROW = 128  # channels up to which a product is bound by reading them
VECTOR = 16  # float32 in a register


def outer(
  x: Float[Array, '... I'], dy: Float[Array, '... O']
) -> Float[Array, 'I O']:
  """Sum of x[..., i] dy[..., o] over all positions."""
  x, dy = (a.reshape(-1, a.shape[-1]) for a in (x, dy))

  def plain(x, dy):
    return lax.dot_general(x, dy, (((0,), (0,)), ((), ())))

  def transposed(x, dy):
    # XLA is half as fast at it, and would put it together again. Of x it would
    # be made in the forward pass, and held.
    product = jnp.dot(lax.optimization_barrier(dy.T), x)
    return lax.optimization_barrier(product).T

  inputs, outputs = x.shape[-1], dy.shape[-1]
  narrow = outputs < inputs <= NARROW and not inputs % VECTOR
  if not narrow and max(inputs, outputs) < WIDE:
    return plain(x, dy)
  return lax.platform_dependent(x, dy, cpu=transposed, default=plain)
