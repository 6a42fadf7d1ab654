"""Position as a learned bias per bucket of distance (T5, arXiv 1910.10683)."""

import math

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np


def buckets(
  length: int, num_buckets: int, max_distance: int
) -> Int[np.ndarray, 'T S']:
  """The bucket of every (query, key), both directions apart.

  A direction has half of the buckets. Half of those hold one distance each, the
  others begin at logarithmic steps up to `max_distance`, the last one open.
  """
  half = num_buckets // 2
  exact = half // 2
  ratio = max_distance / exact
  steps = np.arange(half - exact) / (half - exact)
  # A start that is a whole number lies in its own bucket.
  starts = [math.ceil(exact * ratio**step - 1e-6) for step in steps]
  place = np.arange(length)
  offset = place[None] - place[:, None]
  distance = np.abs(offset)
  far = exact - 1 + np.searchsorted(starts, distance, side='right')
  bucket = np.where(distance < exact, distance, far)
  return (bucket + np.where(offset > 0, half, 0)).astype(np.int32)


class RelativeBias(nn.Module):
  """A table of one number per bucket and head."""

  num_heads: int
  num_buckets: int
  max_distance: int

  @nn.compact
  def __call__(self, length: int) -> Float[Array, '1 H T S']:
    init = nn.with_logical_partitioning(
      nn.initializers.normal(1.0), (None, 'heads')
    )
    shape = (self.num_buckets, self.num_heads)
    table = self.param('table', init, shape, jnp.float32)
    index = buckets(length, self.num_buckets, self.max_distance)
    return jnp.transpose(jnp.take(table, jnp.asarray(index), 0), (2, 0, 1))[
      None
    ]
