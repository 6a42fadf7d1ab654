"""AMDIM's convolutional encoder and its 1x1, 5x5 and 7x7 feature maps."""

from typing import Any, NamedTuple

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from infomax_jax import layout
from infomax_jax.config import EncoderConfig
from infomax_jax.conv import Conv, average_pool, near_identity
from infomax_jax.mixture import Mixture
from infomax_jax.norm import BatchNorm


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
  mode: Mode
  initial_var: float = 0.81

  @nn.compact
  def __call__(self, x: Float[Array, 'B Y X C']) -> Float[Array, 'B Y X C']:
    if not self.cfg.use_bn:
      return x
    norm = BatchNorm(
      *self.mode, self.initial_var, dtype=self.cfg.dtype, name='bn'
    )
    return norm(x)


class Residual(nn.Module):
  """Mean-pooled input plus conv, ReLU, 1x1 conv (figure 1 of the paper).

  As in the code, the skip gains channels of zeros at the end and nothing
  rectifies the sum; the paper mentions neither. The 1x1 starts at zero.
  """

  cfg: EncoderConfig
  mode: Mode
  features: int
  width: int = 1
  stride: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, 'B Y X I']) -> Float[Array, 'B Yo Xo O']:
    kwargs = dict(lowering=self.cfg.lowering, dtype=self.cfg.dtype)
    y = Conv(self.features, self.width, self.stride, name='conv1', **kwargs)(x)
    y = nn.relu(MaybeNorm(self.cfg, self.mode, name='norm')(y))
    zeros = nn.initializers.zeros
    y = Conv(self.features, kernel_init=zeros, name='conv2', **kwargs)(y)
    skip = average_pool(x.astype(y.dtype), self.width, self.stride)
    more = self.features - skip.shape[-1]
    return y + jnp.pad(skip, ((0, 0), (0, 0), (0, 0), (0, more)))


class Block(nn.Module):
  """One residual layer that may halve or crop, then n_depth - 1 of 1x1.

  The parameters of the latter are stacked, so that compiling takes no longer
  for a deeper encoder.
  """

  cfg: EncoderConfig
  mode: Mode
  features: int
  width: int
  stride: int

  @nn.compact
  def __call__(self, x: Float[Array, 'B Y X I']) -> Float[Array, 'B Yo Xo O']:
    step = lambda module, x: module(x)
    if self.cfg.remat:
      step = nn.remat(step, prevent_cse=False)
    args = (self.cfg, self.mode, self.features)
    x = step(Residual(*args, self.width, self.stride, name='first'), x)
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
  starts near the identity.
  """

  cfg: EncoderConfig
  mode: Mode

  @nn.compact
  def __call__(self, x: Float[Array, 'B Y X I']) -> Float[Array, 'B Y X C']:
    kwargs = dict(lowering=self.cfg.lowering, dtype=self.cfg.dtype)
    features = self.cfg.n_rkhs
    y = Conv(features, name='conv1', **kwargs)(x)
    y = nn.relu(MaybeNorm(self.cfg, self.mode, 0.9, name='norm')(y))
    zeros = nn.initializers.zeros
    y = Conv(features, kernel_init=zeros, name='conv2', **kwargs)(y)
    skip = Conv(
      features,
      use_bias=True,
      kernel_init=near_identity,
      name='shortcut',
      **kwargs,
    )
    y = y + skip(x)
    if not self.cfg.output_norm:
      return y.astype(jnp.float32)
    return BatchNorm(*self.mode, 0.9, name='output')(y)


class Encoder(nn.Module):
  """Images -> `Features`.

  Layer i of `layer_list` in the authors' code is `layer{i}` here. Collections:
  'params' and, for the norms' running statistics, 'batch_stats'.
  """

  cfg: EncoderConfig

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B Y X C'], train: bool = False, views: int = 1
  ) -> Features:
    """Encodes normalised images.

    Args:
      x: Images; with several views, those of an image lie next to each other.
      train: Normalise by the batch and update running statistics, once per
        view; make 'batch_stats' mutable.
      views: See `encode_views`.

    Raises:
      ValueError: The images are not of the encoder's size, or there is only
        one to train on.
    """
    cfg, mode, taps = self.cfg, Mode(train, views), {}
    want = (cfg.image_size, cfg.image_size, cfg.channels)
    if x.shape[1:] != want:
      raise ValueError(
        f'The encoder takes images of (rows, columns, channels) {want}, got '
        f'{x.shape[1:]}.'
      )
    x = x.astype(cfg.dtype)
    for i, layer in enumerate(cfg.layers):
      x = self._layer(x, layer, mode, f'layer{i}')
      taps[layer.size] = x
    r1 = taps[1].reshape(-1, cfg.n_rkhs).astype(jnp.float32)
    components = None
    if cfg.components:
      hidden = cfg.mixture_hidden or cfg.n_rkhs
      mix = Mixture(cfg.components, hidden, cfg.dtype, name='mixture')
      components = mix(r1)
    return Features(
      r1=r1,
      r5=Head(cfg, mode, name='head5')(taps[5]),
      r7=Head(cfg, mode, name='head7')(taps[7]),
      components=components,
    )

  def _layer(self, x, layer: layout.Layer, mode: Mode, name: str):
    cfg, window = self.cfg, (layer.features, layer.width, layer.stride)
    if layer.kind == 'conv':
      pad = (layer.pad, layer.pad)
      x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)), mode='reflect')
      conv = Conv(
        *window,
        use_bias=True,
        lowering=cfg.lowering,
        dtype=cfg.dtype,
        name=name,
      )
      return nn.relu(conv(x))
    if layer.kind == 'residual':
      return Residual(cfg, mode, *window, name=name)(x)
    if layer.kind == 'block':
      return Block(cfg, mode, *window, name=name)(x)
    if layer.kind == 'norm':
      return MaybeNorm(cfg, mode, name=name)(x)
    if not cfg.output_norm:
      return x
    return BatchNorm(*mode, 0.81, name=name)(x)


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

  With several chunks, every chunks-th image is encoded at once, and once more
  in the backward pass, where only these images' activations are in memory. The
  features are of the whole batch, and so are the negatives of any loss on them;
  but each chunk is normalised by itself and moves the running statistics.

  Returns:
    The features of both and the new 'batch_stats'.
  """
  if chunks > 1:
    return _encode_chunks(encoder, variables, (one, two), chunks)
  x = jnp.stack([one, two], 1).reshape(-1, *one.shape[1:])
  both, updates = encoder.apply(
    variables, x, train=True, views=2, mutable=['batch_stats']
  )
  split = lambda view: jax.tree.map(
    lambda y: y.reshape(-1, 2, *y.shape[1:])[:, view], both
  )
  return split(0), split(1), updates.get('batch_stats', {})


def _encode_chunks(encoder, variables, views, chunks):
  # Not rows next to each other: these lie on one device.
  def deal(x):
    x = x.reshape(-1, chunks, *x.shape[1:]).swapaxes(0, 1)
    axes = (None, 'batch', *(None,) * (x.ndim - 2))
    return nn.with_logical_constraint(x, axes)

  def gather(x):
    x = x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    return nn.with_logical_constraint(x, ('batch', *(None,) * (x.ndim - 1)))

  def encode(stats, views):
    own = {'params': variables['params'], 'batch_stats': stats}
    one, two, stats = encode_views(encoder, own, *views)
    return stats, (one, two)

  stats, both = jax.lax.scan(
    jax.checkpoint(encode, prevent_cse=False),
    variables['batch_stats'],
    jax.tree.map(deal, views),
  )
  return *jax.tree.map(gather, both), stats
