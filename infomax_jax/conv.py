"""The parameterised maps.

Axes of kernels, for sharding: 'in' and 'out', and 'layers' where `encoder`
stacks them.
"""

import math

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from infomax_jax.lowering import add_bias, convolve


def uniform(limit: float) -> nn.initializers.Initializer:
  """U(-limit, limit)."""

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -limit, limit)

  return init


def near_identity(key, shape, dtype=jnp.float32):
  """U(-0.01, 0.01) with ones on the diagonal of inputs and outputs."""
  kernel = uniform(0.01)(key, shape, dtype)
  eye = jnp.eye(*shape[-2:], dtype=dtype).reshape(shape)
  return jnp.where(eye > 0, eye, kernel)


class Conv(nn.Module):
  """A convolution without padding; with width 1, a linear map of pixels.

  Attributes:
    features: Channels that go out.
    width: Rows and columns of the kernel.
    stride: Rows and columns between windows.
    use_bias: Whether to add a bias, drawn from U(+-1 / sqrt(fan in)).
    kernel_init: None draws like the bias: torch's default, kaiming_uniform with
      a = sqrt(5).
    lowering: See `convolve`.
    folded: Whether the input has been through `lowering.fold`.
    dtype: Compute dtype; parameters are float32.
  """

  features: int
  width: int = 1
  stride: int = 1
  use_bias: bool = False
  kernel_init: nn.initializers.Initializer | None = None
  lowering: str = 'auto'
  folded: bool = False
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Float[Array, 'B Y X I']) -> Float[Array, 'B Yo Xo O']:
    inputs = x.shape[-1] // (self.stride**2 if self.folded else 1)
    shape = (self.width, self.width, inputs, self.features)
    limit = 1 / math.sqrt(math.prod(shape[:-1]))
    init = self.kernel_init or uniform(limit)
    axes = (None, None, 'in', 'out')
    kernel = self.param(
      'kernel', nn.with_logical_partitioning(init, axes), shape
    )
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    y = convolve(x, kernel, self.stride, self.lowering, self.folded)
    if self.use_bias:
      init = nn.with_logical_partitioning(uniform(limit), ('out',))
      bias = self.param('bias', init, (self.features,))
      y = add_bias(y, bias.astype(self.dtype))
    return y


class Linear(nn.Module):
  """A linear map of the last axis, drawn like `Conv`."""

  features: int
  use_bias: bool = True
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Float[Array, 'B I']) -> Float[Array, 'B O']:
    init = uniform(1 / math.sqrt(x.shape[-1]))
    kernel = self.param(
      'kernel',
      nn.with_logical_partitioning(init, ('in', 'out')),
      (x.shape[-1], self.features),
    )
    y = jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype))
    if self.use_bias:
      bias = self.param(
        'bias', nn.with_logical_partitioning(init, ('out',)), (self.features,)
      )
      y = y + bias.astype(self.dtype).reshape(1, -1)
    return y
