"""How much each channel of the latents shows in what moves in a picture.

Latents are normalised to vary alike, but an autoencoder puts most of a picture
into few of them: in the shipped one, of 12 channels, 2 carry nearly all. A flow
that counts errors of all channels alike spends most of what it learns on the rest.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8
import numpy as np

from mirage_jax import latents
from mirage_jax.vae import Vae

FLOOR = 0.1


@functools.partial(jax.jit, static_argnums=0)
def channels(
  vae: Vae,
  params: Any,
  stats: latents.Stats,
  frames: UInt8[Array, 'B N Yp Xp 3'],
  coded: Float[Array, 'B F Y X C'],
  key: jax.Array,
) -> Float[Array, 'C']:
  """Squared change of moving pixels by a unit of each channel, to some scale.

  The diagonal of J^T W J, J the decoder's Jacobian at `coded`, the normalised
  latents of `frames`, without their first (which holds a single frame) and W the pixels' squared
  distances from their means over time; estimated by one random vector for each
  row (Hutchinson). Average over some dozens of rows.
  """
  shape = (1, 1, 1, 1, -1)
  mean, std = (stats[name].reshape(shape) for name in ('mean', 'std'))
  x = latents.to_float(frames)

  def decode(z):
    return vae.apply({'params': params}, z * std + mean, method='decode')

  _, pull = jax.vjp(decode, coded)
  moved = jnp.sqrt(jnp.square(x - x.mean(1, keepdims=True)).mean((1, 4)))
  random = jax.random.normal(key, x.shape) * moved[:, None, :, :, None]
  return jnp.square(pull(random)[0][:, 1:]).mean((0, 1, 2, 3))


def weights(shares: Float[np.ndarray, 'C']) -> tuple[float, ...]:
  """`FlowConfig.channel_weights` of mean shares, to a mean of 1.

  No less than a tenth of the mean: a decoder must not meet, in a channel that
  hardly shows, what it has never seen.
  """
  floored = np.maximum(shares / np.mean(shares), FLOOR)
  return tuple(round(float(x), 2) for x in floored / floored.mean())
