"""Mochi's checkpoints: their sizes by the shapes of their tensors."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from launch.convert_kinds import Kind, Shapes
from mirage_jax import (
  config as config_lib,
  dit,
  mochi_vae_weights,
  mochi_weights,
)
from mirage_jax.vae import Vae, VaeConfig

STREAM = config_lib.StreamConfig
MOCHI = config_lib.MirageConfig(
  depth=48,
  num_heads=24,
  head_dim=128,
  video=STREAM(3072, 8192),
  text=STREAM(1536, 4096, 4096, rope=False),
)
# Per channel, as diffusers' AutoencoderKLMochi has them; Genmo's are in code.
MOCHI_MEAN = (-0.06730895953510081, -0.038011381506090416)
MOCHI_MEAN += (-0.07477820912866141, -0.05565264470995561)
MOCHI_MEAN += (0.012767231469026969, -0.04703542746246419)
MOCHI_MEAN += (0.043896967884726704, -0.09346305707025976)
MOCHI_MEAN += (-0.09918314763016893, -0.008729793427399178)
MOCHI_MEAN += (-0.011931556316503654, -0.0321993391887285)
MOCHI_STD = (0.9263795028493863, 0.9248894543193766, 0.9393059390890617)
MOCHI_STD += (0.959253732819592, 0.8244560132752793, 0.917259975397747)
MOCHI_STD += (0.9294154431013696, 1.3720942357788521, 0.881393668867029)
MOCHI_STD += (0.9168315692124348, 0.9185249279345552, 0.9274757570805041)


def mochi(tensors: Mapping[str, Any], config: Mapping[str, Any]) -> Kind:
  """Mochi's transformer of any depth and width, in either layout."""
  del config  # Its shapes say it all.
  shapes = Shapes(tensors, 'model.diffusion_model.')
  is_genmo = 't5_yproj.weight' in shapes
  try:
    cfg = _mochi_config(shapes, is_genmo)
  except KeyError:
    cfg = MOCHI  # The comparison of names tells what is missing.
  make = mochi_weights.genmo if is_genmo else mochi_weights.diffusers
  about = {'experiment': 'mirage_jax.experiment'}
  about |= {'model': dataclasses.asdict(cfg)}
  return Kind(about, make(cfg), abstract_dit(cfg))


def _mochi_config(shapes, is_genmo):
  if is_genmo:
    block, patch = 'blocks.0.', 'x_embedder.proj.weight'
    depth = shapes.count(r'blocks\.(\d+)\.')
    head = shapes(f'{block}attn.q_norm_x.weight', 0)
    q, rows = f'{block}attn.qkv_x.weight', 3
    text, features = f'{block}attn.qkv_y.weight', 't5_yproj.weight'
    mlps = [f'{block}mlp_{s}.w1.weight' for s in 'xy']
  else:
    block, patch = 'transformer_blocks.0.', 'patch_embed.proj.weight'
    depth = shapes.count(r'transformer_blocks\.(\d+)\.')
    head = shapes(f'{block}attn1.norm_q.weight', 0)
    q, rows = f'{block}attn1.to_q.weight', 1
    text = f'{block}attn1.add_q_proj.weight'
    features = 'time_embed.caption_proj.weight'
    mlps = [f'{block}{s}.net.0.proj.weight' for s in ('ff', 'ff_context')]
  video, text = (
    STREAM(shapes(name, 1), shapes(mlp, 0) // 2)
    for name, mlp in zip((q, text), mlps, strict=True)
  )
  text = dataclasses.replace(text, in_dim=shapes(features, 1), rope=False)
  return config_lib.MirageConfig(
    depth=depth,
    num_heads=shapes(q, 0) // (rows * head),
    head_dim=head,
    video=video,
    text=text,
    latent_channels=shapes(patch, 1),
    patch_size=shapes(patch, 2),
  )


@functools.cache
def abstract_dit(cfg: config_lib.MirageConfig) -> Any:
  """Shapes of a transformer's parameters; no array is made."""
  like, size = jax.ShapeDtypeStruct, cfg.patch_size
  video = like((1, 1, size, size, cfg.latent_channels), np.float32)
  cond = {}
  if cfg.text is not None:
    text = ((1, 2), np.int32)
    if not cfg.text_vocab:
      text = ((1, 2, cfg.text.in_dim), np.float32)
    cond['text'] = like(*text)
  for name, stream in cfg.frame_streams().items():
    cond[name] = like((1, 5, stream.in_dim), np.float32)
  init, sigma = dit.Mirage(cfg).init, like((1,), np.float32)
  made = jax.eval_shape(init, jax.random.key(0), video, sigma, cond)
  return nn.unbox(made['params'])


def vae_config(config: Mapping[str, Any]) -> VaeConfig:
  """From config.json of diffusers' AutoencoderKLMochi; Mochi's own if empty."""
  if 'encoder_block_out_channels' not in config:
    return VaeConfig()
  widths = config['encoder_block_out_channels']
  blocks = tuple(config['layers_per_block'])
  return VaeConfig(
    encoder_channels=widths[0],
    decoder_channels=config['decoder_block_out_channels'][0],
    multipliers=tuple(width // widths[0] for width in widths),
    encoder_blocks=blocks,
    decoder_blocks=blocks,
    encoder_attention=tuple(config['add_attention_block']),
    time_factors=tuple(config['temporal_expansions']),
    space_factors=tuple(config['spatial_expansions']),
    latent_channels=config['latent_channels'],
    fourier_features=config['in_channels'] == 15,
  )


def mochi_vae(tensors: Mapping[str, Any], config: Mapping[str, Any]) -> Kind:
  """Mochi's VAE; Genmo's two files each fill a half."""
  cfg = vae_config(config)
  ours = abstract_vae(cfg)
  about = {'experiment': 'mirage_jax.vae_experiment'}
  about |= {'vae': dataclasses.asdict(cfg)}
  mean = config.get('latents_mean') or MOCHI_MEAN
  std = config.get('latents_std') or MOCHI_STD
  about |= {'stats': {'mean': list(mean), 'std': list(std)}}
  halves = {'layers.0.weight': 'encoder', 'blocks.0.0.weight': 'decoder'}
  half = next((h for name, h in halves.items() if name in tensors), None)
  if half is None:
    return Kind(about, mochi_vae_weights.diffusers(cfg), ours)
  layout = mochi_vae_weights.genmo(cfg, half)
  return Kind(about, layout, {half: ours[half]})


@functools.cache
def abstract_vae(cfg: VaeConfig) -> Any:
  """Shapes of a VAE's parameters."""
  side = cfg.space_factor
  x = jax.ShapeDtypeStruct((1, 7, side, side, 3), np.float32)
  key = jax.random.key(0)
  return nn.unbox(jax.eval_shape(Vae(cfg).init, key, x, key)['params'])
