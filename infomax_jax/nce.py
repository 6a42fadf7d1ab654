"""Scores of vectors against the positions of other images, and their NCE."""

from flax import linen as nn
import flax.struct
import jax
from jaxtyping import Array, Float

from infomax_jax.ops.nce import against_all
from infomax_jax.ops.nce.reference import clipped, product


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
  implementation: str = 'xla',
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
    implementation: Of the scores against all images: 'xla', 'pallas' or
      'pallas_interpret', see `ops.nce.against_all`.

  Raises:
    ValueError: The two do not fit together, there are no negatives, or the
      implementation does not take them.
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
  negative, squares = against_all(
    sources, targets, clip=clip, block=block, implementation=implementation
  )
  positive = clipped(product(sources, targets), clip)
  return Scores(
    log_softmax=-jax.nn.softplus(negative[:, :, None] - positive),
    positive=positive,
    mean_square=squares / (batch * batch * targets.shape[1]),
  )
