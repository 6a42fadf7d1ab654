"""Scores of vectors against the positions of other images, and their NCE."""

import math

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Up to here exp(-2 clip) is a normal float32, so that sums of exponentials may
# be shifted by the largest score there can be rather than the largest there is.
LARGEST_CLIP = 40.0


@flax.struct.dataclass
class Scores:
  """What `score` says of K sources per image and L positions.

  Attributes:
    log_softmax: [B K L] of each true position against the negatives.
    positive: [B K L] clipped scores of the true positions.
    mean_square: [K] of all unclipped scores, for the regulariser.
  """

  log_softmax: jax.Array
  positive: jax.Array
  mean_square: jax.Array


def score(
  sources: Float[Array, 'B K C'],
  targets: Float[Array, 'B L C'],
  *,
  clip: float | None = 20.0,
  block: int = 256,
  dtype: str = 'float32',
) -> Scores:
  """Scores each image's sources against the positions of every image.

  score[i, k, j, l] = c tanh(<source_ik, target_jl> / sqrt(C) / c). Each of the
  L positions of image i stands against all positions of all other images; the
  other positions of image i itself are in neither set (the authors' `costs.py`).

  Negatives are those of the whole global batch. Under jit with the batch over
  devices, sources are gathered (K C numbers per image) while targets stay where
  they are and only sums travel. Gathered sources and scores exist for `block`
  images at a time, and again so in the backward pass; `sources` and `targets`
  are all it keeps.

  Args:
    sources: Vectors that predict.
    targets: Positions to predict, row i being of the image of source i.
    clip: c, or None for no clipping.
    block: Images whose sources are scored at once.
    dtype: Of the products' inputs; sums and all that follows are float32.

  Raises:
    ValueError: The two do not fit together, or there are no negatives.
  """
  batch, _, dim = sources.shape
  if targets.shape[::2] != (batch, dim):
    raise ValueError(
      f'Sources of shape {sources.shape} (B K C) and targets of shape '
      f'{targets.shape} (B L C) differ in B or C: both encoders need the same '
      'n_rkhs and as many images.'
    )
  if batch < 2:
    raise ValueError('A batch of one image has no negatives; use two or more.')
  sources = sources.astype(dtype)
  targets = nn.with_logical_constraint(
    targets.astype(dtype), ('batch', None, None)
  )
  negative, squares = _against_all(sources, targets, clip, block)
  positive = _clipped(_product('ikc,ilc->ikl', sources, targets), clip)
  return Scores(
    log_softmax=-jax.nn.softplus(negative[:, :, None] - positive),
    positive=positive,
    mean_square=squares / (batch * batch * targets.shape[1]),
  )


def _against_all(sources, targets, clip, block):
  """Log of the summed exponentials of negatives [B K], and squares [K]."""
  batch, kinds, dim = sources.shape

  @jax.checkpoint
  def rows(sources, index):
    sources = nn.with_logical_constraint(sources, (None, None, None))
    raw = _product('ikc,jlc->ikjl', sources, targets)
    same = index[:, None] == jnp.arange(batch)[None]
    same = same[:, None, :, None]
    log_sum = _log_sum_exp(_clipped(raw, clip), ~same, clip)
    return log_sum, jnp.square(raw).sum((0, 2, 3))

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


def _product(axes, sources, targets):
  product = jnp.einsum(
    axes, sources, targets, preferred_element_type=jnp.float32
  )
  return product / math.sqrt(sources.shape[-1])


def _clipped(raw, clip):
  return raw if clip is None else clip * jnp.tanh(raw / clip)


def _log_sum_exp(scores, keep, clip):
  """Over the last two axes, of those to keep."""
  if clip is not None and clip <= LARGEST_CLIP:
    terms = jnp.where(keep, jnp.exp(scores - clip), 0.0)
    return jnp.log(terms.sum((2, 3))) + clip
  return jax.nn.logsumexp(scores, (2, 3), where=keep)
