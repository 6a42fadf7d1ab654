"""The one parameterised map: a contraction with named axes."""

from collections.abc import Sequence

from flax import linen as nn
from jax import lax, numpy as jnp
from jaxtyping import Array, Float

# Parameters of a low-rank change, if a kernel has one beside it; see `lora`.
LORA = ('lora_a', 'lora_b')


class Linear(nn.Module):
  """Contracts the last axes of the input with a kernel of any rank.

  Attributes:
    shape: Shape of the kernel: input axes, then output axes.
    axes: Logical name of each axis.
    num_in: How many of the axes are inputs.
    use_bias: Whether to add a bias of the output shape.
    zero: Initialise at zero, not LeCun normal.
    dtype: Compute dtype; parameters are float32.
  """

  shape: Sequence[int]
  axes: Sequence[str | None]
  num_in: int = 1
  use_bias: bool = True
  zero: bool = False
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Float[Array, '...']) -> Float[Array, '...']:
    shape, axes, n = tuple(self.shape), tuple(self.axes), self.num_in
    zeros = nn.initializers.zeros_init()
    init = nn.initializers.variance_scaling(
      1.0,
      'fan_in',
      'truncated_normal',
      in_axis=tuple(range(n)),
      out_axis=tuple(range(n, len(shape))),
    )
    kernel = self.param(
      'kernel',
      nn.with_logical_partitioning(zeros if self.zero else init, axes),
      shape,
      jnp.float32,
    )
    inputs = tuple(range(x.ndim - n, x.ndim))
    y = lax.dot_general(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      ((inputs, tuple(range(n))), ((), ())),
    )
    if self.has_variable('params', LORA[0]):
      y = y + self._change(x, inputs)
    if self.use_bias:
      bias = self.param(
        'bias',
        nn.with_logical_partitioning(zeros, _whole(axes[n:])),
        shape[n:],
        jnp.float32,
      )
      lead = (1,) * (x.ndim - n)
      y = y + bias.astype(self.dtype).reshape(lead + shape[n:])
    return y

  def _change(self, x, inputs):
    a, b = (self.get_variable('params', name) for name in LORA)
    contracted = tuple(range(self.num_in))
    low = lax.dot_general(
      x.astype(self.dtype),
      a.astype(self.dtype),
      ((inputs, contracted), ((), ())),
    )
    return jnp.tensordot(low, b.astype(self.dtype), 1)


def _whole(axes):
  """Of a bias: FSDP has too little to save there, and each gather waits."""
  return tuple(None if axis == 'embed' else axis for axis in axes)
