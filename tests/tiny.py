"""Models and records so small that they compile in a second or two.

Frames are 16 x 16, latents 2 x 2 x 3, a window is one chunk: 25 frames.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from launch import bundle as bundle_lib
from mirage_jax import config as config_lib
from mirage_jax.dit import Mirage
from mirage_jax.vae import Vae, VaeConfig

SIZE, FPS, RATE = 16, 25, 16000
VAE = dict(
  encoder_channels=4,
  decoder_channels=4,
  multipliers=[1, 1, 1, 2],
  encoder_blocks=[0, 0, 0, 0, 0],
  decoder_blocks=[0, 0, 0, 0, 0],
  encoder_attention=[False] * 5,
  latent_channels=3,
  norm_groups=2,
  head_dim=4,
  fourier_features=False,
)
DIT = dict(
  depth=2,
  num_heads=2,
  head_dim=8,
  video=dict(width=16, mlp_dim=32),
  text=dict(width=8, mlp_dim=16, in_dim=16),
  audio=dict(width=16, mlp_dim=32, in_dim=320, stem=0),
  latent_channels=3,
  text_vocab=256,
  rope_area=1.0,
  patch_size=2,
  time_alignment=2.0,
)
WINDOW = dict(num_chunks=1, text_length=8, past=2)


def filled(shapes, seed=0):
  """Random parameters of the given shapes, none of them zero."""
  rng = np.random.default_rng(seed)

  def fill(path, x):
    noise = rng.standard_normal(x.shape, np.float32)
    if x.ndim > 1:
      return noise / np.sqrt(np.prod(x.shape[:-1]), dtype=np.float32)
    return 0.1 * noise + ('scale' in str(path[-1]))

  return jax.tree_util.tree_map_with_path(fill, shapes)


def vae_params(seed=0):
  vae = Vae(config_lib.build(VaeConfig, VAE))
  key, frames = jax.random.key(0), jnp.zeros((1, 7, SIZE, SIZE, 3))
  return filled(jax.eval_shape(vae.init, key, frames, key)['params'], seed)


def dit_params(seed=1):
  from flax import linen as nn

  model = Mirage(config_lib.build(config_lib.MirageConfig, DIT))
  cond = {
    'reference': jnp.zeros((1, 3, 2, 2, 3)),
    'reference_time': jnp.zeros((1, 3)),
    'audio': jnp.zeros((1, 25, 320)),
    'text': jnp.zeros((1, 8), jnp.int32),
  }
  video = jnp.zeros((1, 5, 2, 2, 3))
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), video, jnp.zeros(1), cond
  )
  return filled(nn.unbox(shapes)['params'], seed)


def bundle(dit=True):
  """A bundle whose every weight is random."""
  about = {'vae': VAE, 'data': {'size': SIZE}}
  stats = {
    'mean': np.array([0.1, -0.2, 0.3], np.float32),
    'std': np.array([1.0, 2.0, 0.5], np.float32),
  }
  made = bundle_lib.Bundle(about, vae_params(), stats)
  if not dit:
    return made
  about = about | {'dit': DIT, 'data': about['data'] | WINDOW}
  return dataclasses.replace(made, config=about, dit=dit_params())


def speech(seconds, seed=0):
  """Noise that gets louder and softer, float32 at 16 kHz."""
  count = round(seconds * RATE)
  noise = np.random.default_rng(seed).standard_normal(count)
  envelope = 0.5 + 0.5 * np.sin(np.arange(count) / RATE * 2 * np.pi * 3)
  return (0.2 * envelope * noise).astype(np.float32)


def picture(seed=0, size=SIZE):
  shape = (size, size, 3)
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def clip_record(number, num_frames=50):
  """As `launch.prepare --stage clips` writes it."""
  rng = np.random.default_rng(number)
  return {
    'id': f'clip{number}',
    'frames': rng.integers(0, 256, (num_frames, SIZE, SIZE, 3), np.uint8),
    'wave': speech(num_frames / FPS, number),
    'caption': 'blue wall',
  }


def plain(config):
  """A ConfigDict as a run gets it: through JSON."""
  return json.loads(config.to_json())
