"""Batch normalisation with torch's running statistics."""

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from infomax_jax.lowering import sums

EPSILON = 1e-5
MOMENTUM = 0.1


class BatchNorm(nn.Module):
  """Normalises each channel over images and pixels, in float32.

  Statistics are of the whole global batch, on however many devices it lies; the
  authors' DataParallel took those of each device. The running variance is the
  unbiased one (n / (n - 1) times that of the batch), as torch keeps it.

  Attributes:
    initial_var: Of the running variance. The authors' constructor passes zeros
      through a fresh model, twice (heads: once), which leaves 0.9 of it each
      time.
    random_scale: Draw the scale from U(0, 1), not 1.
    dtype: Of the output.
  """

  initial_var: float = 1.0
  random_scale: bool = False
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B ... C'], train: bool, views: int = 1
  ) -> Float[Array, 'B ... C']:
    """Normalises.

    Args:
      x: What to normalise.
      train: By the batch, updating the running statistics; else by these.
      views: The batch holds this many views of each image, one next to the
        other. Each view has statistics of its own, and the running ones are
        updated once per view, as if the views had been passed one by one.

    Raises:
      ValueError: There is one number to take the statistics of.
    """
    shape, channels = x.shape, x.shape[-1:]
    ones = nn.initializers.ones
    init = nn.initializers.uniform(1.0) if self.random_scale else ones
    scale = self.param(
      'scale', nn.with_logical_partitioning(init, ('out',)), channels
    )
    init = nn.with_logical_partitioning(nn.initializers.zeros, ('out',))
    bias = self.param('bias', init, channels)
    mean = self.variable('batch_stats', 'mean', jnp.zeros, channels)
    # Without a dtype it is of a weak type, and the second step compiles anew.
    full = lambda: jnp.full(channels, self.initial_var, jnp.float32)
    var = self.variable('batch_stats', 'var', full)
    x = x.astype(jnp.float32).reshape(-1, views, *shape[1:])
    if train:
      y, centre, spread = _by_batch(x, scale, bias)
      self._update(mean, var, centre, spread, x.size // centre.size)
    else:
      spread = jax.lax.rsqrt(var.value + EPSILON)
      y = _like(x, scale * spread) * (x - _like(x, mean.value)) + _like(x, bias)
    return y.reshape(shape).astype(self.dtype)

  def _update(self, mean, var, centre, spread, count):
    if count < 2:
      raise ValueError(
        'A batch of one image has no statistics to normalise by; train with a '
        'batch of at least two.'
      )
    if self.is_initializing():
      return
    spread = spread * (count / (count - 1))
    for view in range(len(centre)):
      for running, batch in ((mean, centre), (var, spread)):
        batch = batch[view]
        running.value = (1 - MOMENTUM) * running.value + MOMENTUM * batch


@jax.custom_vjp
def _by_batch(x, scale, bias):
  """x [B V ... C] normalised, and what by: means and variances [V C].

  The last two have no gradient.
  """
  return _by_batch_forward(x, scale, bias)[0]


def _by_batch_forward(x, scale, bias):
  count = x.size // (x.shape[1] * x.shape[-1])
  centre = sums(x) / count
  # The mean again, of what its rounding leaves: gradients depend on it.
  centre = centre, sums(x - _like(x, centre)) / count
  spread = sums(jnp.square(_centred(x, centre))) / count
  inverse = jax.lax.rsqrt(spread + EPSILON)
  gain = _like(x, scale) * _like(x, inverse)
  y = _centred(x, centre) * gain + _like(x, bias)
  return (y, sum(centre), spread), (x, centre, inverse, scale)


def _by_batch_backward(kept, cotangents):
  x, centre, inverse, scale = kept
  dy, _, _ = cotangents
  count = x.size // inverse.size
  unit = _centred(x, centre) * _like(x, inverse)
  total, along = sums(dy), sums(dy * unit)
  pull = dy - _like(x, total / count) - unit * _like(x, along / count)
  dx = pull * (_like(x, scale) * _like(x, inverse))
  return dx, along.sum(0), total.sum(0)


def _centred(x, centre):
  for part in centre:
    x = x - _like(x, part)
  return x


_by_batch.defvjp(_by_batch_forward, _by_batch_backward)


def _like(x, per_channel):
  """[C] or [V C] with axes of one where x [B V ... C] has others."""
  views = per_channel.shape[:-1] or (1,)
  ones = (1,) * (x.ndim - 3)
  return per_channel.reshape(1, *views, *ones, x.shape[-1])
