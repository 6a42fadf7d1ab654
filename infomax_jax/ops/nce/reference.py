"""Sums over all negatives in plain XLA, by automatic differentiation."""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from infomax_jax.ops.outer import outer

# Up to here exp(-2 clip) is a normal float32, so that sums of exponentials may
# be shifted by the largest score there can be rather than the largest there is.
LARGEST_CLIP = 40.0


def against_all(
  sources: Float[Array, 'B K C'],
  targets: Float[Array, 'B L C'],
  clip: float | None,
  block: int,
) -> tuple[Float[Array, 'B K'], Float[Array, ' K']]:
  """See `api.against_all`. Scores of `block` images are in memory at once."""
  batch, kinds, dim = sources.shape
  locations = targets.shape[1]
  # One long axis: XLA has no vectors of exponentials along 25 positions.
  flat = targets.reshape(-1, dim)

  @jax.checkpoint
  def rows(sources, index):
    sources = nn.with_logical_constraint(sources, (None, None, None))
    raw = _products(sources, flat) / math.sqrt(dim)
    same = index[:, None] == jnp.arange(flat.shape[0])[None] // locations
    log_sum = _log_sum_exp(clipped(raw, clip), ~same[:, None], clip)
    return log_sum, jnp.square(raw).sum((0, 2))

  if block >= batch:
    return rows(sources, jnp.arange(batch))
  count = math.ceil(batch / block)
  extra = count * block - batch  # Zero sources: no squares, cut off below.
  # Each block has rows of every device, so that it is gathered when it is
  # needed and not all of them at once.
  blocks = jnp.pad(sources, ((0, extra), (0, 0), (0, 0)))
  blocks = blocks.reshape(block, count, kinds, dim).swapaxes(0, 1)
  blocks = nn.with_logical_constraint(blocks, (None, 'batch', None, None))
  index = jnp.arange(block * count).reshape(block, count).T
  _, (log_sums, squares) = jax.lax.scan(
    lambda _, xs: (None, rows(*xs)), None, (blocks, index)
  )
  log_sums = log_sums.swapaxes(0, 1).reshape(-1, kinds)[:batch]
  return log_sums, squares.sum(0)


@jax.custom_vjp
def _products(
  sources: Float[Array, 'B K C'], flat: Float[Array, 'N C']
) -> Float[Array, 'B K N']:
  """Of all pairs, float32; gradients turn sources and not what is N wide."""
  return jnp.einsum(
    'ikc,nc->ikn', sources, flat, preferred_element_type=jnp.float32
  )


def _products_forward(sources, flat):
  return _products(sources, flat), (sources, flat)


def _products_backward(kept, g):
  sources, flat = kept
  back = jnp.einsum('ikn,nc->ikc', g, flat)
  return back.astype(sources.dtype), outer(g, sources).astype(flat.dtype)


_products.defvjp(_products_forward, _products_backward)


def product(
  sources: Float[Array, 'B K C'], targets: Float[Array, 'B L C']
) -> Float[Array, 'B K L']:
  """Unclipped scores of each image's own, float32."""
  scores = jnp.einsum(
    'ikc,ilc->ikl', sources, targets, preferred_element_type=jnp.float32
  )
  return scores / math.sqrt(sources.shape[-1])


def clipped(
  raw: Float[Array, '...'], clip: float | None
) -> Float[Array, '...']:
  """c tanh(raw / c)."""
  return raw if clip is None else clip * jnp.tanh(raw / clip)


def _log_sum_exp(scores, keep, clip):
  """Over the last axis, of those to keep."""
  if clip is not None and clip <= LARGEST_CLIP:
    terms = jnp.where(keep, jnp.exp(scores - clip), 0.0)
    return jnp.log(terms.sum(2)) + clip
  return jax.nn.logsumexp(scores, 2, where=keep)
