"""Windows along time, so that a convolution is one contraction."""

from jax import numpy as jnp
from jaxtyping import Array, Float


def windows(
  x: Float[Array, 'B S C'], size: int, stride: int
) -> Float[Array, 'B T K C']:
  """The inputs of each output of a convolution: K = size, no padding.

  A convolution is then one contraction, over K and C.

  Raises:
    ValueError: There is no whole window.
  """
  count = (x.shape[1] - size) // stride + 1
  if count < 1:
    raise ValueError(
      f'{x.shape[1]} samples are too short for a window of {size}.'
    )
  end = stride * (count - 1) + 1
  return jnp.stack([x[:, i : i + end : stride] for i in range(size)], axis=2)
