"""Video <-> normalised latents, chunk by chunk.

Latents are normalised per channel before anything else sees them, and so
before noise is added (mirage.md's normalise-first; Mochi 1 denormalises after
sampling).
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8
import numpy as np

from mirage_jax.vae import CHUNK, Vae

Stats = Mapping[str, Float[Array, 'C']]  # 'mean' and 'std' of the latents
# (jitted function, its static arguments, *others) -> what it returns.
Run = Callable[..., Any]


def call(function: Callable, static: tuple[Any, ...], *arguments: Any) -> Any:
  """A `Run` that leaves all to jit; others may load what is compiled."""
  return function(*static, *arguments)


def to_float(frames: UInt8[Array, '*n']) -> Float[Array, '*n']:
  """uint8 to [-1, 1]."""
  return frames.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(frames: Float[Array, '*n']) -> UInt8[Array, '*n']:
  """[-1, 1], clipped, to the nearest uint8."""
  scaled = jnp.clip(frames, -1.0, 1.0) * 127.5 + 127.5
  return jnp.round(scaled).astype(jnp.uint8)


def channel_stats(latents: Float[np.ndarray, '*n C']) -> dict[str, np.ndarray]:
  """Mean and standard deviation of each channel, float32 [C]."""
  axes = tuple(range(latents.ndim - 1))
  std = latents.std(axes, dtype=np.float64)
  mean = latents.mean(axes, dtype=np.float64)
  return {'mean': mean.astype(np.float32), 'std': std.astype(np.float32)}


@functools.partial(jax.jit, static_argnums=0)
def _encode(vae, params, mean, std, frames):
  latents, _ = vae.apply({'params': params}, to_float(frames), method='encode')
  shape = (1,) * (latents.ndim - 1) + (-1,)
  return (latents - mean.reshape(shape)) / std.reshape(shape)


@functools.partial(jax.jit, static_argnums=0)
def _decode(vae, params, mean, std, latents):
  shape = (1,) * (latents.ndim - 1) + (-1,)
  latents = latents * std.reshape(shape) + mean.reshape(shape)
  return to_uint8(vae.apply({'params': params}, latents, method='decode'))


def encode_video(
  vae: Vae,
  params: Any,
  stats: Stats,
  frames: UInt8[np.ndarray, 'N Hp Wp 3'],
  run: Run = call,
) -> Float[np.ndarray, 'F Y X C']:
  """Posterior means of every 25-frame chunk, normalised.

  One chunk at a time goes through the device: memory does not grow with N.

  Raises:
    ValueError: N is no multiple of 25.
  """
  if len(frames) % CHUNK or not len(frames):
    raise ValueError(
      f'{len(frames)} frames are not a multiple of {CHUNK}: trim or pad them.'
    )
  parts = [
    run(
      _encode,
      (vae,),
      params,
      stats['mean'],
      stats['std'],
      frames[None, i : i + CHUNK],
    )
    for i in range(0, len(frames), CHUNK)
  ]
  return np.concatenate([np.asarray(part[0]) for part in parts])


def encode_image(
  vae: Vae,
  params: Any,
  stats: Stats,
  image: UInt8[np.ndarray, 'Hp Wp 3'],
  repeats: int = 1,
  run: Run = call,
) -> Float[np.ndarray, 'F Y X C']:
  """Normalised latents of an image shown `repeats` times.

  The paper repeats it 7 times, which makes two latents; once makes one.
  """
  frames = np.repeat(image[None, None], repeats, axis=1)
  parts = params, stats['mean'], stats['std'], frames
  return np.asarray(run(_encode, (vae,), *parts)[0])


def decode_video(
  vae: Vae,
  params: Any,
  stats: Stats,
  latents: Float[np.ndarray, 'F Y X C'],
  run: Run = call,
) -> UInt8[np.ndarray, 'N Hp Wp 3']:
  """Frames of whole chunks of latents, the inverse of `encode_video`.

  Raises:
    ValueError: F is no multiple of a chunk's latents.
  """
  step = vae.cfg.num_latents(CHUNK)
  if len(latents) % step or not len(latents):
    raise ValueError(f'{len(latents)} latents are not a multiple of {step}.')
  parts = [
    run(
      _decode,
      (vae,),
      params,
      stats['mean'],
      stats['std'],
      latents[None, i : i + step],
    )
    for i in range(0, len(latents), step)
  ]
  return np.concatenate([np.asarray(part[0]) for part in parts])
