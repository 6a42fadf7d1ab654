"""How convolutions, pooling and rectification run, and their gradients.

Gradients keep the input of a convolution, folded if it folds, and the output of
a rectification; gathered windows are made again.
"""

import functools
from typing import Literal

import einops
import jax
from jax import lax, numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from infomax_jax.ops.outer import WIDE, outer

Lowering = Literal['auto', 'native', 'matmul']

# Rows of an output on which 'auto' gathers windows into a matmul; on CPUs that
# pays from `WIDE` channels of it.
SMALL = 7
# Numbers in a window up to which it is gathered for the gradient of a kernel.
NARROW = 128
KEPT = 'kept'  # what `keep` names


def keep(x: Float[Array, '...']) -> Float[Array, '...']:
  """Names what a gradient needs and should not be made again."""
  return checkpoint_name(x, KEPT)


@jax.custom_vjp
def rectify(x: Float[Array, '...']) -> Float[Array, '...']:
  """max(x, 0), whose gradient is told from what comes out."""
  return jnp.maximum(x, 0)


def _rectify_forward(x):
  y = keep(jnp.maximum(x, 0))
  return y, y


def _rectify_backward(y, dy):
  return (jnp.where(y > 0, dy, 0),)


rectify.defvjp(_rectify_forward, _rectify_backward)


def sums(x: Float[Array, 'B V ... C']) -> Float[Array, 'V C']:
  """Of each view and channel.

  XLA would make x once more for each channel on a CPU, with strides. The
  product with ones makes it once; summing images apart keeps it exact.
  """
  batch, views, channels = *x.shape[:2], x.shape[-1]
  flat = x.reshape(batch * views, -1, channels)

  def cpu(x):
    ones = jnp.ones((batch * views, 1, x.shape[1]), x.dtype)
    each = lax.dot_general(ones, x, (((2,), (1,)), ((0,), (0,))))
    return each.reshape(batch, views, channels).sum(0)

  def default(x):
    return x.reshape(batch, views, -1, channels).sum((0, 2))

  return lax.platform_dependent(flat, cpu=cpu, default=default)


@jax.custom_vjp
def add_bias(
  x: Float[Array, 'B ... C'], bias: Float[Array, ' C']
) -> Float[Array, 'B ... C']:
  """x + bias."""
  return x + bias.reshape((1,) * (x.ndim - 1) + bias.shape)


def _add_bias_forward(x, bias):
  return add_bias(x, bias), None


def _add_bias_backward(_, dy):
  return dy, sums(dy[:, None])[0]


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def folds(width: int, stride: int, lowering: Lowering) -> bool:
  """Whether `convolve` folds the windows of its input into channels."""
  return lowering != 'native' and stride > 1 and width % stride == 0


def fold(
  x: Float[Array, 'B Y X C'], width: int, stride: int
) -> Float[Array, 'B y x S']:
  """Windows of the stride as channels (row, column, channel)."""
  return einops.rearrange(
    _crop(x, width, stride),
    'b (y i) (x j) c -> b y x (i j c)',
    i=stride,
    j=stride,
  )


def convolve(
  x: Float[Array, 'B Y X I'],
  kernel: Float[Array, 'h w I O'],
  stride: int,
  lowering: Lowering = 'auto',
  folded: bool = False,
) -> Float[Array, 'B Yo Xo O']:
  """Convolution without padding by a square kernel.

  What is no multiple of the stride is dropped at the end, as everywhere.
  'native' leaves all but 1x1 to the compiler. 'matmul' gathers the windows,
  which pays with many channels on small maps. 'auto' folds strided windows into
  channels, so that those which do not overlap become a matmul too, and gathers
  windows where the map that goes out is at most 7x7, on CPUs only if it has at
  least 512 channels. `folded` tells that x has been through `fold`.
  """
  if folds(len(kernel), stride, lowering):
    x = x if folded else keep(fold(x, len(kernel), stride))
    kernel, stride = _fold_kernel(kernel, stride), 1
  return _convolve(x, kernel, stride, lowering)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x, kernel, stride, lowering):
  if kernel.shape[:2] == (1, 1) and stride == 1:
    return jnp.dot(x, kernel[0, 0])
  if lowering == 'native':
    return _compiled(x, kernel, stride)
  cpu, default = _ways(x, kernel, stride, lowering)
  if cpu is default:
    return cpu(x, kernel, stride)
  return lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(cpu, stride=stride),
    default=functools.partial(default, stride=stride),
  )


def _ways(x, kernel, stride, lowering):
  """On CPUs, and elsewhere."""
  if len(kernel) == 1 or lowering == 'matmul':
    return _gathered, _gathered
  if (x.shape[1] - len(kernel)) // stride >= SMALL:
    return _compiled, _compiled
  return (_gathered if kernel.shape[-1] >= WIDE else _compiled), _gathered


def _convolve_forward(x, kernel, stride, lowering):
  return _convolve(x, kernel, stride, lowering), (x, kernel)


def _convolve_backward(stride, lowering, kept, dy):
  x, kernel = kept
  if kernel.shape[:2] == (1, 1) and stride == 1:
    return _times_transposed(dy, kernel[0, 0]), outer(x, dy)[None, None]
  if lowering == 'native':
    return _pull(_compiled, x, kernel, stride, dy)
  _, default = _ways(x, kernel, stride, lowering)

  def on_cpus(x, kernel, dy):
    if len(kernel) == 1:
      return _pull(_gathered, x, kernel, stride, dy)
    return _by_windows(x, kernel, stride, dy)

  def elsewhere(x, kernel, dy):
    return _pull(default, x, kernel, stride, dy)

  return lax.platform_dependent(x, kernel, dy, cpu=on_cpus, default=elsewhere)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _pull(way, x, kernel, stride, dy):
  return jax.vjp(functools.partial(way, stride=stride), x, kernel)[1](dy)


def _by_windows(x, kernel, stride, dy):
  """For the kernel XLA would copy x with images for channels, one by one."""
  width = len(kernel)
  if stride == 1 and width**2 * x.shape[-1] > NARROW:
    if dy.shape[1] > SMALL and x.shape[-1] < WIDE:
      return _spread(kernel, dy), _kernel_by_places(x, dy, width)
    return _by_places(x, kernel, dy)
  (dx,) = jax.vjp(lambda x: _compiled(x, kernel, stride), x)[1](dy)
  # Channel by channel: rows of a few would be shorter than a register.
  windows = jax.vmap(lambda x: jnp.stack(_windows(x, width, stride)), -1, 1)(x)
  dy = dy.reshape(-1, dy.shape[-1])
  dkernel = jnp.dot(windows.reshape(-1, len(dy)), dy)
  return dx, dkernel.reshape(kernel.shape)


def _spread(kernel, dy):
  """The gradient of x: a convolution of padded dy, the kernel turned around."""
  edge = (len(kernel) - 1,) * 2
  # Or XLA would pad within the convolution, which takes three times as long.
  dy = lax.optimization_barrier(jnp.pad(dy, ((0, 0), edge, edge, (0, 0))))
  return _compiled(dy, kernel[::-1, ::-1].swapaxes(2, 3), 1)


def _kernel_by_places(x, dy, width):
  """In a loop, or XLA would cut out windows in the forward pass and hold them."""
  sizes = (*dy.shape[:3], x.shape[-1])

  def gradient(place):
    start = (0, place // width, place % width, 0)
    return outer(lax.dynamic_slice(x, start, sizes), dy)

  each = lax.map(gradient, jnp.arange(width**2))
  return each.reshape(width, width, *each.shape[1:])


def _by_places(x, kernel, dy):
  """Both gradients, one place of the kernel after another.

  `_spread` would see more of its padding than of a small map. In a loop, as in
  `_kernel_by_places`.
  """
  width, sizes = len(kernel), (*dy.shape[:3], x.shape[-1])
  kernels = kernel.reshape(-1, *kernel.shape[2:])

  def gradients(place):
    start = (0, place // width, place % width, 0)
    window = lax.dynamic_slice(x, start, sizes)
    part = _times_transposed(dy, kernels[place], jnp.float32)
    return start, part, outer(window, dy)

  def step(place, so_far):
    dx, dkernels = so_far
    start, part, dkernel = gradients(place)
    part += lax.dynamic_slice(dx, start, sizes)
    dx = lax.dynamic_update_slice(dx, part, start)
    dkernels = lax.dynamic_update_index_in_dim(dkernels, dkernel, place, 0)
    return dx, dkernels

  # The first by itself: zeros to start from would be there all along.
  _, part, dkernel = gradients(0)
  edge = (0, width - 1)
  dx = jnp.pad(part, ((0, 0), edge, edge, (0, 0)))
  dkernels = jnp.pad(dkernel[None], ((0, width**2 - 1), (0, 0), (0, 0)))
  dx, dkernels = lax.fori_loop(1, width**2, step, (dx, dkernels))
  return dx.astype(x.dtype), dkernels.reshape(kernel.shape)


def _fold_kernel(kernel, stride):
  return einops.rearrange(
    kernel, '(h i) (w j) c o -> h w (i j c) o', i=stride, j=stride
  )


def _compiled(x, kernel, stride):
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride,) * 2,
    'VALID',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _gathered(x, kernel, stride):
  windows = jnp.concatenate(_windows(x, len(kernel), stride), -1)
  return _product(windows, kernel.reshape(-1, kernel.shape[-1]))


def _windows(x, width, stride):
  """x at each place of the kernel, by rows of the kernel."""
  reach = ((x.shape[1] - width) // stride + 1) * stride
  return [
    x[:, i : i + reach : stride, j : j + reach : stride]
    for i in range(width)
    for j in range(width)
  ]


@jax.custom_vjp
def _product(x, kernel):
  """A matmul whose gradients need no transposed copy of x."""
  return jnp.dot(x, kernel)


def _product_forward(x, kernel):
  return jnp.dot(x, kernel), (x, kernel)


def _product_backward(kept, dy):
  x, kernel = kept
  return _times_transposed(dy, kernel), outer(x, dy)


_product.defvjp(_product_forward, _product_backward)


def _times_transposed(dy, kernel, dtype=None):
  axes = (((dy.ndim - 1,), (1,)), ((), ()))
  return lax.dot_general(dy, kernel, axes, preferred_element_type=dtype)


def average_pool(
  x: Float[Array, 'B Y X C'], width: int, stride: int, folded: bool = False
) -> Float[Array, 'B Yo Xo C']:
  """Means of the windows that `convolve` sees; width is a multiple of stride.

  The sum over a stride first, then over neighbouring strides: no window is
  read twice, and the gradient is no dilated window, which CPUs are slow at.
  `folded` tells that x has been through `fold`.
  """
  if width == 1:
    return x
  y = x.astype(jnp.float32)
  if folded:
    y = einops.reduce(y, 'b y x (w c) -> b y x c', 'sum', w=stride**2)
  elif stride > 1:
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
