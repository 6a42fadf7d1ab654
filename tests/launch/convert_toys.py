"""Small checkpoints in foreign layouts, as their owners publish them."""

import json

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy

from launch import convert_mochi
from mirage_jax import config, mochi_vae_weights, mochi_weights
from mirage_jax.encoders import names
from mirage_jax.vae import VaeConfig

# Sizes that diffusers' config can express.
MOCHI = config.MirageConfig(
  depth=3,
  num_heads=3,
  head_dim=8,
  video=config.StreamConfig(24, 64),
  text=config.StreamConfig(12, 32, 16, rope=False),
  latent_channels=3,
)
VAE = VaeConfig(
  encoder_channels=32,
  decoder_channels=32,
  multipliers=(1, 1, 1, 2),
  encoder_blocks=(1, 1, 1, 1, 1),
  decoder_blocks=(1, 1, 1, 1, 1),
  encoder_attention=(False, True, True, True, True),
  latent_channels=2,
)


def draw(shapes, dtype=np.float32, seed=0):
  rng = np.random.default_rng(seed)
  make = lambda x: rng.standard_normal(x.shape, np.float32).astype(dtype)
  return jax.tree.map(make, shapes)


def mochi_tensors(genmo=False, dtype=ml_dtypes.bfloat16):
  """Name to array; every number is random, also where ours has no place."""
  make = mochi_weights.genmo if genmo else mochi_weights.diffusers
  ours = convert_mochi.abstract_dit(MOCHI)
  shapes = names.their_shapes(make(MOCHI), ours)
  rng = np.random.default_rng(1)
  return {
    name: rng.standard_normal(shape, np.float32).astype(dtype)
    for name, shape in shapes.items()
  }


def vae_halves():
  """Genmo's two files of Mochi's VAE, and our parameters."""
  params = draw(convert_mochi.abstract_vae(VAE))
  files = {}
  for half in ('encoder', 'decoder'):
    layout = mochi_vae_weights.genmo(VAE, half)
    files[half] = names.save(layout, {half: params[half]})
  return files, params


def write_shards(folder, tensors, count=3, stem='diffusion_pytorch_model'):
  """A folder of shards with their index, by the format's own library."""
  folder.mkdir(parents=True, exist_ok=True)
  where = {}
  for i in range(count):
    file = f'{stem}-{i + 1:05}-of-{count:05}.safetensors'
    part = {n: tensors[n] for n in list(tensors)[i::count]}
    safetensors.numpy.save_file(part, folder / file)
    where |= dict.fromkeys(part, file)
  index = {'metadata': {}, 'weight_map': where}
  (folder / f'{stem}.safetensors.index.json').write_text(json.dumps(index))
  return folder


def read_folder(folder):
  """Every tensor of a folder's files, by the format's own library."""
  tensors = {}
  for file in sorted(folder.glob('*.safetensors')):
    with safetensors.safe_open(file, framework='numpy') as f:
      tensors |= {name: f.get_tensor(name) for name in f.keys()}
  return tensors
