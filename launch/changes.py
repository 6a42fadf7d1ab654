"""Files of what a run with config.lora learned: its changes of a transformer.

Float32 arrays named as in `mirage_jax.lora`, the layer's path and lora_a or
lora_b; the metadata has the config of both, `lora` and `model`, as JSON.
"""

from collections.abc import Mapping
import json
import os
from typing import Any

import flax.traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from launch import atomic, checkpoint
from launch.errors import UserError
from mirage_jax import config as config_lib, lora


def export(
  workdir: str | os.PathLike, step: int | None, out: str | os.PathLike
) -> None:
  """Writes the averaged changes of a run.

  Raises:
    UserError: the run has none, or the file cannot be written.
  """
  config = checkpoint.read_config(workdir)
  if not config.get('lora'):
    raise UserError(f'{workdir}: trained all parameters, not changes (no lora)')
  _, learned = checkpoint.restore_params(workdir, step)
  flat = flax.traverse_util.flatten_dict(learned, sep='/')
  arrays = {k: np.asarray(x, np.float32, order='C') for k, x in flat.items()}
  about = json.dumps({name: config[name] for name in ('lora', 'model')})
  data = safetensors.numpy.save(arrays, metadata={'config': about})
  with atomic.replacing(out) as half:
    half.write_bytes(data)


def transformer(
  workdir: str | os.PathLike, step: int | None = None
) -> tuple[dict[str, Any], Any]:
  """`checkpoint.restore_params`, with what config.lora made merged."""
  if not checkpoint.read_config(workdir).get('lora'):
    return checkpoint.restore_params(workdir, step)
  names = ('base', 'ema')
  config, trees = checkpoint.restore_trees(workdir, names, step)
  return config, merge(*(trees[name] for name in names), config, workdir)


def load(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
  """The config with `lora` and `model`, and the tree of changes.

  Raises:
    UserError: the file is not there, cut short, or of something else.
  """
  try:
    with safetensors.safe_open(path, framework='numpy') as f:
      config = json.loads((f.metadata() or {})['config'])
      flat = {name: f.get_tensor(name) for name in f.keys()}
    if missing := {'lora', 'model'} - set(config):
      raise KeyError(sorted(missing)[0])
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(
      f'{path}: is not there, cut short or no safetensors file ({error})'
    ) from error
  except (KeyError, ValueError) as error:
    raise UserError(
      f'{path}: is no file of `launch.export --changes_only` (it lacks {error})'
    ) from error
  return config, flax.traverse_util.unflatten_dict(flat, sep='/')


def merge(
  base: Any, learned: Any, config: Mapping[str, Any], name: str | os.PathLike
) -> Any:
  """A transformer's parameters with what a run learned to change in them.

  Raises:
    UserError: they are of another transformer; `name` is where they are from.
  """
  try:
    cfg = config_lib.build(lora.LoraConfig, config['lora'])
    return lora.merge(base, learned, cfg)
  except ValueError as error:
    raise UserError(f'{name}: {error}') from error
