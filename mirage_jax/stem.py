"""What a token of a frame's stream sees of its neighbours before the blocks."""

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from mirage_jax.linear import Linear
from mirage_jax.windows import windows


class Stem(nn.Module):
  """Adds to each token what two convolutions over time see around it.

  As the start of Whisper's encoder, but residual and of no stride; nothing at
  first, since the second starts at zero.
  """

  reach: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T C'], mask: Bool[Array, 'B T'] | None
  ) -> Float[Array, 'B T C']:
    """`mask` hides tokens: there, as past the ends, are zeros."""
    size, taps = x.shape[-1], self.reach + 1
    hidden, names = size // 2, (None, None, 'embed')
    options = dict(num_in=2, dtype=self.dtype)

    def around(x):
      if mask is not None:
        x = jnp.where(mask[..., None], x, 0)
      x = jnp.pad(x, ((0, 0), (taps // 2, taps // 2), (0, 0)))
      return windows(x, taps, 1)

    y = Linear((taps, size, hidden), names, name='conv1', **options)(around(x))
    y = Linear((taps, hidden, size), names, zero=True, name='conv2', **options)(
      around(nn.silu(y))
    )
    return x + y
