"""The parameterised maps and average pooling, and how they are lowered.

Axes of kernels, for sharding: 'in' and 'out', and 'layers' where `encoder`
stacks them.
"""

import math
from typing import Literal

import einops
from flax import linen as nn
import jax
from jax import lax, numpy as jnp
from jaxtyping import Array, Float

SMALL = 7  # rows of an output on which 'auto' gathers windows into a matmul
NARROW = 128  # channels of a window up to which its gradient is one matmul


def convolve(
  x: Float[Array, 'B Y X I'],
  kernel: Float[Array, 'h w I O'],
  stride: int,
  lowering: Literal['auto', 'native', 'matmul'] = 'auto',
) -> Float[Array, 'B Yo Xo O']:
  """Convolution without padding by a square kernel.

  What is no multiple of the stride is dropped at the end, as everywhere.
  'native' leaves all but 1x1 to the compiler. 'matmul' gathers the windows,
  which pays with many channels on small maps. 'auto' folds strided windows into
  channels, so that those which do not overlap become a matmul too, and gathers
  windows where the map that goes out is at most 7x7.
  """
  width = kernel.shape[0]
  if lowering != 'native' and stride > 1 and width % stride == 0:
    x = _fold(x, width, stride)
    kernel = einops.rearrange(
      kernel, '(h i) (w j) c o -> h w (i j c) o', i=stride, j=stride
    )
    width, stride = width // stride, 1
  if (width, stride) == (1, 1):
    return product(x, kernel[0, 0])
  rows = (x.shape[1] - width) // stride + 1
  if lowering == 'matmul' or (lowering == 'auto' and rows <= SMALL):
    flat = einops.rearrange(kernel, 'h w c o -> (h w c) o')
    return product(jnp.concatenate(_windows(x, width, stride), -1), flat)
  return _slide(x, kernel, stride)


@jax.custom_vjp
def product(
  x: Float[Array, '*B I'], kernel: Float[Array, 'I O']
) -> Float[Array, '*B O']:
  """A matmul whose gradients need no transposed copy of x or of the output.

  JAX's own rule for the kernel has XLA make one on CPUs, number by number: a
  quarter of the step of a small encoder.
  """
  return jnp.dot(x, kernel)


def _product_forward(x, kernel):
  return jnp.dot(x, kernel), (x, kernel)


def _product_backward(kept, dy):
  x, kernel = kept
  dx = lax.dot_general(dy, kernel, (((dy.ndim - 1,), (1,)), ((), ())))
  return dx, _outer(x, dy)


product.defvjp(_product_forward, _product_backward)


def _outer(x, dy):
  """Sum of x[..., i] dy[..., o] over all positions."""
  x, dy = (a.reshape(-1, a.shape[-1]) for a in (x, dy))
  return lax.dot_general(x, dy, (((0,), (0,)), ((), ())))


def _compiled(x, kernel, stride):
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride,) * 2,
    'VALID',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


# The compiler's convolution, on CPUs with our gradient of the kernel: theirs
# copies the input with images for channels.
_slide = jax.custom_vjp(_compiled, nondiff_argnums=(2,))


def _slide_forward(x, kernel, stride):
  return _compiled(x, kernel, stride), (x, kernel)


def _slide_backward(stride, kept, dy):
  x, kernel = kept
  _, pull = jax.vjp(lambda x: _compiled(x, kernel, stride), x)

  def native(x, dy):
    _, pull = jax.vjp(lambda kernel: _compiled(x, kernel, stride), kernel)
    return pull(dy)[0]

  def by_windows(x, dy):
    windows = _windows(x, len(kernel), stride)
    if len(windows) * x.shape[-1] <= NARROW:
      windows = [jnp.concatenate(windows, -1)]
    outer = [_outer(window, dy) for window in windows]
    return jnp.concatenate(outer).reshape(kernel.shape)

  dkernel = lax.platform_dependent(x, dy, cpu=by_windows, default=native)
  return pull(dy)[0], dkernel


_slide.defvjp(_slide_forward, _slide_backward)


def _windows(x, width, stride):
  """x at each place of the kernel, by rows of the kernel."""
  reach = ((x.shape[1] - width) // stride + 1) * stride
  return [
    x[:, i : i + reach : stride, j : j + reach : stride]
    for i in range(width)
    for j in range(width)
  ]


def average_pool(
  x: Float[Array, 'B Y X C'], width: int, stride: int
) -> Float[Array, 'B Yo Xo C']:
  """Means of the windows that `convolve` sees; width is a multiple of stride.

  The sum over a stride first, then over neighbouring strides: no window is
  read twice, and the gradient is no dilated window, which CPUs are slow at.
  """
  if width == 1:
    return x
  y = x.astype(jnp.float32)
  if stride > 1:
    y = _crop(y, width, stride)
    y = einops.reduce(
      y, 'b (y i) (x j) c -> b y x c', 'sum', i=stride, j=stride
    )
  reach = width // stride
  rows = y.shape[1] - reach + 1
  y = sum(y[:, i : i + rows] for i in range(reach))
  y = sum(y[:, :, i : i + rows] for i in range(reach))
  return (y / width**2).astype(x.dtype)


def _crop(x, width, stride):
  """Drops the rows and columns that no whole window reaches."""
  used = (x.shape[1] - width) // stride * stride + width
  return x[:, :used, :used]


def _fold(x, width, stride):
  return einops.rearrange(
    _crop(x, width, stride),
    'b (y i) (x j) c -> b y x (i j c)',
    i=stride,
    j=stride,
  )


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
    dtype: Compute dtype; parameters are float32.
  """

  features: int
  width: int = 1
  stride: int = 1
  use_bias: bool = False
  kernel_init: nn.initializers.Initializer | None = None
  lowering: str = 'auto'
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Float[Array, 'B Y X I']) -> Float[Array, 'B Yo Xo O']:
    shape = (self.width, self.width, x.shape[-1], self.features)
    limit = 1 / math.sqrt(math.prod(shape[:-1]))
    init = self.kernel_init or uniform(limit)
    axes = (None, None, 'in', 'out')
    kernel = self.param(
      'kernel', nn.with_logical_partitioning(init, axes), shape
    )
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    y = convolve(x, kernel, self.stride, self.lowering)
    if self.use_bias:
      init = nn.with_logical_partitioning(uniform(limit), ('out',))
      bias = self.param('bias', init, (self.features,))
      y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
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
