"""AMDIM's convolutional encoder and its 1x1, 5x5 and 7x7 feature maps."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from infomax_jax.config import EncoderConfig
from infomax_jax.conv import Conv, near_identity
from infomax_jax.lowering import (
  KEPT,
  average_pool,
  fold,
  folds,
  keep,
  rectify,
)
from infomax_jax.mixture import Mixture
from infomax_jax.norm import BatchNorm

_KEEP = jax.checkpoint_policies.save_only_these_names(KEPT)


@flax.struct.dataclass
class Features:
  """What an encoder says of a batch of images, all float32.

  Attributes:
    r1: [B C] the global vector, which classifiers see.
    r5: [B 5 5 C] one vector per neighbourhood.
    r7: [B 7 7 C] the same, of smaller neighbourhoods.
    components: [B k C] mixture components of r1, or None.
  """

  r1: jax.Array
  r5: jax.Array
  r7: jax.Array
  components: jax.Array | None = None


class Mode(NamedTuple):
  """How the norms of a forward pass work, see `norm.BatchNorm`."""

  train: bool
  views: int


class MaybeNorm(nn.Module):
  """Batch normalisation if the encoder has it inside, else nothing."""

  cfg: EncoderConfig
  initial_var: float = 0.81

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B Y X C'], mode: Mode
  ) -> Float[Array, 'B Y X C']:
    if not self.cfg.use_bn:
      return x
    norm = BatchNorm(self.initial_var, dtype=self.cfg.dtype, name='bn')
    return norm(x, *mode)


class Residual(nn.Module):
  """Mean-pooled input plus conv, ReLU, 1x1 conv (figure 1 of the paper).

  As in the code, the skip gains channels of zeros at the end and nothing
  rectifies the sum; the paper mentions neither. The 1x1 starts at zero.
  """

  cfg: EncoderConfig
  features: int
  width: int = 1
  stride: int = 1
  folded: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B Y X I'], mode: Mode
  ) -> Float[Array, 'B Yo Xo O']:
    kwargs = dict(lowering=self.cfg.lowering, dtype=self.cfg.dtype)
    window = (self.width, self.stride)
    conv1 = Conv(
      self.features, *window, folded=self.folded, name='conv1', **kwargs
    )
    y = conv1(x)
    y = rectify(MaybeNorm(self.cfg, name='norm')(y, mode))
    zeros = nn.initializers.zeros
    y = Conv(self.features, kernel_init=zeros, name='conv2', **kwargs)(y)
    skip = average_pool(x.astype(y.dtype), *window, self.folded)
    more = self.features - skip.shape[-1]
    return keep(y + jnp.pad(skip, ((0, 0), (0, 0), (0, 0), (0, more))))


class Block(nn.Module):
  """One residual layer that may halve or crop, then n_depth - 1 of 1x1.

  The parameters of the latter are stacked, so that compiling takes no longer
  for a deeper encoder.
  """

  cfg: EncoderConfig
  features: int
  width: int
  stride: int
  folded: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B Y X I'], mode: Mode
  ) -> Float[Array, 'B Yo Xo O']:
    step = lambda module, x: module(x, mode)
    if self.cfg.remat:
      step = nn.remat(step, prevent_cse=False)
    args = (self.cfg, self.features)
    window = (self.width, self.stride, self.folded)
    x = step(Residual(*args, *window, name='first'), x)
    depth = self.cfg.n_depth - 1
    if depth:
      repeat = nn.scan(
        lambda module, x, _: (step(module, x), None),
        variable_axes={'params': 0, 'batch_stats': 0},
        split_rngs={'params': True},
        length=depth,
        unroll=min(self.cfg.unroll, depth),
        metadata_params={nn.PARTITION_NAME: 'layers'},
      )
      x, _ = repeat(Residual(*args, name='rest'), x, None)
    return x


class Head(nn.Module):
  """From a map of the trunk to vectors that scores are products of.

  A residual network of 1x1 convolutions whose skip is a convolution that
  starts near the identity; `finish` normalises what it gives.
  """

  cfg: EncoderConfig

  def setup(self):
    kwargs = dict(lowering=self.cfg.lowering, dtype=self.cfg.dtype)
    features, zeros = self.cfg.n_rkhs, nn.initializers.zeros
    self.conv1 = Conv(features, **kwargs)
    self.norm = MaybeNorm(self.cfg, 0.9)
    self.conv2 = Conv(features, kernel_init=zeros, **kwargs)
    self.shortcut = Conv(
      features, use_bias=True, kernel_init=near_identity, **kwargs
    )
    self.output = BatchNorm(0.9)

  def __call__(
    self, x: Float[Array, 'B Y X C'], mode: Mode
  ) -> Float[Array, 'B Y X C']:
    y = rectify(self.norm(self.conv1(x), mode))
    return self.conv2(y) + self.shortcut(x)

  def finish(
    self, y: Float[Array, 'B Y X C'], mode: Mode
  ) -> Float[Array, 'B Y X C']:
    if not self.cfg.output_norm:
      return y.astype(jnp.float32)
    return self.output(y, *mode)


class Encoder(nn.Module):
  """Images -> `Features`.

  Layer i of `layer_list` in the authors' code is `layer{i}` here. Collections:
  'params' and, for the norms' running statistics, 'batch_stats'.
  """

  cfg: EncoderConfig

  def setup(self):
    cfg = self.cfg
    for i, layer in enumerate(cfg.layers):
      setattr(self, f'layer{i}', _layer(cfg, layer, self._folded(i)))
    self.head5, self.head7 = Head(cfg), Head(cfg)
    if cfg.components:
      hidden = cfg.mixture_hidden or cfg.n_rkhs
      self.mixture = Mixture(cfg.components, hidden, cfg.dtype)

  def __call__(
    self,
    x: Float[Array, 'B Y X C'],
    train: bool = False,
    views: int = 1,
    chunks: int = 1,
  ) -> Features:
    """Encodes normalised images.

    Args:
      x: Images; with several views, those of an image lie next to each other.
      train: Normalise by the batch and update running statistics, once per
        view; make 'batch_stats' mutable.
      views: See `encode_views`.
      chunks: See `encode_views`.

    Raises:
      ValueError: The images are not of the encoder's size, or there is only
        one to train on.
    """
    cfg, mode = self.cfg, Mode(train, views)
    want = (cfg.image_size, cfg.image_size, cfg.channels)
    if x.shape[1:] != want:
      raise ValueError(
        f'The encoder takes images of (rows, columns, channels) {want}, got '
        f'{x.shape[1:]}.'
      )
    maps = lambda module, x: module.maps(x, mode)
    one, five, seven = _in_turn(maps, self, x.astype(cfg.dtype), chunks, views)
    r1 = one.reshape(-1, cfg.n_rkhs).astype(jnp.float32)
    if cfg.output_norm:
      r1 = getattr(self, f'layer{len(cfg.layers) - 1}')(r1, *mode)
    return Features(
      r1=r1,
      r5=self.head5.finish(five, mode),
      r7=self.head7.finish(seven, mode),
      components=self.mixture(r1) if cfg.components else None,
    )

  def maps(self, x: Float[Array, 'B Y X C'], mode: Mode) -> tuple[Array, ...]:
    """What r1, r5 and r7 are before their norms; each image by itself."""
    cfg, taps = self.cfg, {}
    large = sum(layer.size > 7 for layer in cfg.layers)
    start = lambda module, x: module.through(x, range(large), mode)
    count = _tiles(len(x), cfg.tile)
    x = _in_turn(start, self, x, count, policy=_KEEP)
    for i in range(large, len(cfg.layers) - 1):
      x = taps[cfg.layers[i].size] = self.through(x, [i], mode)
    return taps[1], self.head5(taps[5], mode), self.head7(taps[7], mode)

  def through(
    self, x: Float[Array, 'B Y X C'], indices: Iterable[int], mode: Mode
  ) -> Float[Array, 'B Yo Xo O']:
    """Passes the layers of these indices."""
    for i in indices:
      layer, module = self.cfg.layers[i], getattr(self, f'layer{i}')
      if layer.kind == 'conv':
        edge = (layer.pad, layer.pad)
        x = module(jnp.pad(x, ((0, 0), edge, edge, (0, 0)), mode='reflect'))
        if self._folded(i + 1):
          after = self.cfg.layers[i + 1]
          x = fold(x, after.width, after.stride)
        x = rectify(x)
      else:
        x = module(x, mode)
    return x

  def _folded(self, i):
    """Whether layer i finds its input folded, so that it is kept only once."""
    layer, lowering = self.cfg.layers[i], self.cfg.lowering
    rectified = i > 0 and self.cfg.layers[i - 1].kind == 'conv'
    return (
      rectified
      and layer.kind == 'block'
      and folds(layer.width, layer.stride, lowering)
    )


def _layer(cfg, layer, folded):
  window = (layer.features, layer.width, layer.stride)
  if layer.kind == 'conv':
    kwargs = dict(use_bias=True, lowering=cfg.lowering, dtype=cfg.dtype)
    return Conv(*window, **kwargs)
  if layer.kind == 'residual':
    return Residual(cfg, *window)
  if layer.kind == 'block':
    return Block(cfg, *window, folded=folded)
  return MaybeNorm(cfg) if layer.kind == 'norm' else BatchNorm(0.81)


def encode_views(
  encoder: Encoder,
  variables: Any,
  one: Float[Array, 'B Y X C'],
  two: Float[Array, 'B Y X C'],
  chunks: int = 1,
) -> tuple[Features, Features, Any]:
  """Trains on two views of each image by the same encoder, in one pass.

  The same as calling it on `one`, then on `two`: each is normalised by itself
  and the running statistics move twice. The views of an image go in next to
  each other, so that both stay on its device.

  With several chunks, every chunks-th image goes through the convolutions at
  once, and once more in the backward pass, where only these images' activations
  are in memory. The norms of r1, r5 and r7 and any loss are of the whole batch:
  nothing but rounding changes. Norms further inside (`use_bn`) are of each
  chunk, and it moves their running statistics.

  Returns:
    The features of both and the new 'batch_stats'.
  """
  x = jnp.stack([one, two], 1).reshape(-1, *one.shape[1:])
  both, updates = encoder.apply(
    variables, x, train=True, views=2, chunks=chunks, mutable=['batch_stats']
  )
  split = lambda view: jax.tree.map(
    lambda y: y.reshape(-1, 2, *y.shape[1:])[:, view], both
  )
  return split(0), split(1), updates.get('batch_stats', {})


def _in_turn(
  fn: Callable,
  module: Encoder,
  x: Float[Array, 'B ...'],
  count: int,
  views: int = 1,
  policy: Callable | None = None,
):
  """fn of equal parts of the batch, one after another.

  What fn keeps for its gradient is what the policy names, by default nothing.
  """
  if count == 1:
    return fn(module, x)
  scattered = not _on_one_device() or views > 1

  def deal(x):
    if not scattered:
      return x.reshape(count, -1, *x.shape[1:])
    # Not rows next to each other: these lie on one device.
    x = x.reshape(-1, count, views, *x.shape[1:]).swapaxes(0, 1)
    x = x.reshape(count, -1, *x.shape[3:])
    axes = (None, 'batch', *(None,) * (x.ndim - 2))
    return nn.with_logical_constraint(x, axes)

  def gather(y):
    if not scattered:
      return y.reshape(-1, *y.shape[2:])
    y = y.reshape(count, -1, views, *y.shape[2:]).swapaxes(0, 1)
    y = y.reshape(-1, *y.shape[3:])
    return nn.with_logical_constraint(y, ('batch', *(None,) * (y.ndim - 1)))

  step = nn.remat(fn, policy=policy, prevent_cse=False)
  moving = module.is_mutable_collection('batch_stats')
  scan = nn.scan(
    lambda module, carry, x: (carry, step(module, x)),
    variable_broadcast='params' if moving else ('params', 'batch_stats'),
    variable_carry='batch_stats' if moving else False,
    split_rngs={'params': False},
  )
  _, y = scan(module, (), deal(x))
  return jax.tree.map(gather, y)


def _tiles(images, most):
  """Equal parts to make of so many images, none with more than `most`."""
  if not most:
    return 1
  counts = range(-(-images // most), images + 1)
  return next(count for count in counts if images % count == 0)


def _on_one_device():
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.empty or mesh.size == 1
