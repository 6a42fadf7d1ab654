"""Batch normalisation with torch's running statistics."""

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
    axes = (0, *range(2, x.ndim - 1))
    if train:
      centre = x.mean(axes, keepdims=True)
      spread = jnp.square(x - centre).mean(axes, keepdims=True)
      by_view = (x.reshape(views, -1) for x in (centre, spread))
      self._update(mean, var, *by_view, x.size // spread.size)
    else:
      wide = (1,) * (x.ndim - 1) + channels
      centre, spread = mean.value.reshape(wide), var.value.reshape(wide)
    wide = (1,) * (x.ndim - 1) + channels
    gain = scale.reshape(wide) * jax.lax.rsqrt(spread + EPSILON)
    y = (x - centre) * gain + bias.reshape(wide)
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
