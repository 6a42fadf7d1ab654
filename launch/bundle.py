"""Weights for use: one safetensors file with the VAE, the DiT and how they fit.

Arrays are float16 under `vae/...` and `dit/...`; the file's metadata has the
config as JSON. A bundle of a VAE alone serves `launch.prepare`.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

import flax.traverse_util
import numpy as np
import safetensors
import safetensors.numpy

import mirage_jax
from launch import atomic
from launch.errors import UserError

DEFAULT = pathlib.Path(mirage_jax.__file__).parent / 'assets/grid.safetensors'


@dataclasses.dataclass(frozen=True)
class Bundle:
  """Plain numpy weights with their configs.

  Attributes:
    config: Plain dict with `vae` (VaeConfig's fields) and, with a DiT, `dit`
      (MirageConfig's fields), and `data` (what the model was trained on: rows
      and columns of a frame, frames of a window, repeats of the reference).
    vae: Parameters of the VAE, float32.
    stats: 'mean' and 'std' [C] of its latents.
    dit: Parameters of the transformer, float32, or None.
  """

  config: Mapping[str, Any]
  vae: Any
  stats: Mapping[str, np.ndarray]
  dit: Any = None


def save(path: str | os.PathLike, bundle: Bundle) -> None:
  """Writes a bundle under a temporary name, then renames it.

  Raises:
    UserError: the disk is full, or the folder cannot be written.
  """
  tree = {'vae': bundle.vae, 'stats': dict(bundle.stats)}
  if bundle.dit is not None:
    tree['dit'] = bundle.dit
  flat = flax.traverse_util.flatten_dict(tree, sep='/')
  flat = {
    k: np.ascontiguousarray(
      v, np.float32 if k.startswith('stats/') else np.float16
    )
    for k, v in flat.items()
  }
  metadata = {'config': json.dumps(bundle.config)}
  data = safetensors.numpy.save(flat, metadata=metadata)
  with atomic.replacing(path) as temporary:
    pathlib.Path(temporary).write_bytes(data)


def load(path: str | os.PathLike = DEFAULT) -> Bundle:
  """Reads a bundle.

  Raises:
    UserError: it is missing, cut short, or no bundle of this project.
  """
  try:
    with safetensors.safe_open(path, framework='numpy') as f:
      config = json.loads(f.metadata()['config'])
      flat = {k: f.get_tensor(k).astype(np.float32) for k in f.keys()}
    tree = flax.traverse_util.unflatten_dict(flat, sep='/')
    return Bundle(config, tree['vae'], tree['stats'], tree.get('dit'))
  except FileNotFoundError as error:
    raise UserError(
      f'{path}: no such checkpoint; leave --checkpoint out for the shipped one'
    ) from error
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(
      f'{path} is cut short or is no safetensors file ({error}); copy or '
      'export it again'
    ) from error
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f'{path} is a safetensors file, but no bundle of `launch.export`: it '
      f'lacks {error}'
    ) from error
