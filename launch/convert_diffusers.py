"""Our weights -> a folder that diffusers loads with `from_pretrained`."""

import collections
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from flax import traverse_util
import numpy as np

from launch import convert_mochi
from launch.convert_foreign import as_dtype
from launch.convert_job import Unit
from launch.convert_ours import Arrays
from launch.convert_sink import Spec
from launch.errors import UserError
from mirage_jax import (
  config as config_lib,
  mochi_vae_weights,
  mochi_weights,
)
from mirage_jax.encoders import names
from mirage_jax.vae import VaeConfig


@dataclasses.dataclass(frozen=True)
class Export:
  """What diffusers gets.

  Attributes:
    specs: Their name to what will be written.
    units: One per tensor.
    config: Their config.json.
    left_out: Our paths that Mochi has no place for.
  """

  specs: dict[str, Spec]
  units: list[Unit]
  config: dict[str, Any]
  left_out: list[str]


def export(arrays: Arrays, dtype: str) -> Export:
  """Mochi's part of a Mirage, or a VAE.

  Args:
    arrays: a run, or what `launch.convert` wrote.
    dtype: 'keep' or the dtype to write.

  Raises:
    UserError: diffusers' model cannot do what this one does; says why.
  """
  config = arrays.config
  try:
    if 'model' in config:
      cfg = config_lib.build(config_lib.MirageConfig, config['model'])
      cfg, theirs = mochi_part(cfg)
      layout = mochi_weights.diffusers(cfg)
      ours = convert_mochi.abstract_dit(cfg)
    elif 'vae' in config:
      cfg = config_lib.build(VaeConfig, config['vae'])
      theirs = vae_part(cfg, config.get('stats'))
      layout = mochi_vae_weights.diffusers(cfg)
      ours = convert_mochi.abstract_vae(cfg)
    else:
      raise UserError('holds neither a Mirage nor a VAE')
  except (UserError, ValueError) as error:
    raise UserError(f'{arrays.where}: {error}') from error
  root = next(iter(arrays.specs)).split('/')[0] + '/'
  flat = traverse_util.flatten_dict(ours, sep='/')
  for path, want in flat.items():
    found = arrays.specs.get(root + path)
    if found is None or found.shape != want.shape:
      raise UserError(
        f'{arrays.where}: {root}{path} is {found and found.shape}, its config '
        f'says {want.shape}: it is damaged, or of another version'
      )
  groups: dict[str, list[names.Place]] = {}
  for place in layout.places:
    groups.setdefault(place.name, []).append(place)
  specs, units = {}, []
  usual = collections.Counter(spec.dtype for spec in arrays.specs.values())
  for name, shape in names.their_shapes(layout, ours).items():
    paths = [root + place.path for place in groups[name] if place.path]
    held = [arrays.specs[p].dtype for p in paths] or [max(usual, key=usual.get)]
    spec = Spec(shape, as_dtype(dtype, held))
    make = functools.partial(_tensor, arrays, root, groups[name], spec.dtype)
    specs[name] = spec
    units.append(Unit(name, None, make))
  left = [p for p in arrays.specs if p.removeprefix(root) not in flat]
  return Export(specs, units, theirs, left)


def _tensor(arrays, root, places, dtype):
  """One of their tensors, of its parts."""
  parts = []
  for place in sorted(places, key=lambda place: place.part):
    if place.path is None:
      parts.append(np.zeros(place.shape, dtype))
      continue
    lead, index = None, place.index
    if index and isinstance(index[0], int):
      lead, *rest = index
      index = tuple(rest)
    slab = arrays.get(root + place.path, lead)
    parts.append(dataclasses.replace(place, index=index).to_theirs(slab))
  return np.concatenate(parts) if len(parts) > 1 else parts[0]


def mochi_part(
  cfg: config_lib.MirageConfig,
) -> tuple[config_lib.MirageConfig, dict[str, Any]]:
  """The silent model in a Mirage, and diffusers' config of it.

  Raises:
    UserError: it does what diffusers' model cannot.
  """
  reasons = {
    'prediction': cfg.prediction == 'velocity',
    'text': cfg.text is not None and not cfg.text.rope,
    'text_vocab': not cfg.text_vocab,
    'text_pool_heads': cfg.text_pool_heads == 8,
    'video.rope': cfg.video.rope,
    'rope_area': cfg.rope_area == convert_mochi.MOCHI.rope_area,
    'mlp_dim': all(
      stream is None or stream.mlp_dim == 4 * stream.width * 2 // 3
      for stream in (cfg.video, cfg.text)
    ),
  }
  if wrong := [key for key, fits in reasons.items() if not fits]:
    raise UserError(
      f"diffusers' Mochi has no model whose {' and '.join(wrong)} is as in this "
      'one: use --to safetensors'
    )
  silent = dataclasses.replace(cfg, audio=None, time_alignment=0.0)
  return silent, {
    '_class_name': 'MochiTransformer3DModel',
    'patch_size': cfg.patch_size,
    'num_attention_heads': cfg.num_heads,
    'attention_head_dim': cfg.head_dim,
    'num_layers': cfg.depth,
    'pooled_projection_dim': cfg.text.width,
    'in_channels': cfg.latent_channels,
    'text_embed_dim': cfg.text.in_dim,
    'time_embed_dim': 256,
    'qk_norm': 'rms_norm',
    'activation_fn': 'swiglu',
    'max_sequence_length': 256,
  }


def vae_part(cfg: VaeConfig, stats: Mapping[str, Any] | None) -> dict[str, Any]:
  """diffusers' config of a VAE; UserError if it cannot be theirs."""
  same = cfg.encoder_blocks == cfg.decoder_blocks
  if not (same and cfg.norm_groups == 32 and cfg.head_dim == 32):
    raise UserError(
      "diffusers' VAE has groups and heads of 32 and as many blocks in the "
      'decoder as in the encoder, this one not: use --to safetensors'
    )
  if stats is None:
    raise UserError(
      'config.json has no "stats" (mean and std of the latents), which '
      "diffusers' VAE needs: put those of the bundle there"
    )
  widths = lambda first: [m * first for m in cfg.multipliers]
  return {
    '_class_name': 'AutoencoderKLMochi',
    'in_channels': 15 if cfg.fourier_features else 3,
    'out_channels': 3,
    'encoder_block_out_channels': widths(cfg.encoder_channels),
    'decoder_block_out_channels': widths(cfg.decoder_channels),
    'latent_channels': cfg.latent_channels,
    'layers_per_block': list(cfg.encoder_blocks),
    'temporal_expansions': list(cfg.time_factors),
    'spatial_expansions': list(cfg.space_factors),
    'add_attention_block': list(cfg.encoder_attention),
    'latents_mean': list(stats['mean']),
    'latents_std': list(stats['std']),
    'scaling_factor': 1.0,
  }
