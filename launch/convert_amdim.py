"""AMDIM: the authors' amdim_cpt.pth <-> ours, with nothing lost."""

from collections.abc import Mapping
import dataclasses
import pathlib
import re
from typing import Any

from flax import traverse_util
import numpy as np

from infomax_jax import config as config_lib, torch_weights
from launch import convert_torch
from launch.convert_ours import Arrays
from launch.errors import UserError

SIZES = (32, 64, 128)  # Of the images that the authors' encoders take.


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A checkpoint of the authors' in our layout.

  Attributes:
    flat: Path ('params/encoder/...', 'batch_stats/...', 'rest/...') to array.
    config: As in config.json: encoder, heads, and what else the file held.
  """

  flat: dict[str, np.ndarray]
  config: dict[str, Any]


def load(path: pathlib.Path) -> Loaded:
  """Reads a .pth file.

  Raises:
    UserError: it is damaged, unsafe, or of another model.
  """
  held = convert_torch.load(path)
  state = held.get('model', held) if isinstance(held, Mapping) else {}
  try:
    state = {k: convert_torch.to_numpy(v) for k, v in state.items()}
    cfg, heads = configs(state, held.get('hyperparams', {}))
    weights = torch_weights.from_torch(state, cfg, heads)
  except (AttributeError, KeyError, IndexError) as error:
    raise UserError(
      f"{path}: is no checkpoint of AMDIM's authors (no {error})"
    ) from error
  except ValueError as error:
    raise UserError(f'{path}: {error}') from error
  flat = {f'rest/{name}': array for name, array in weights.rest.items()}
  for model in ('encoder', 'heads'):
    for kind, tree in getattr(weights, model).items():
      for name, array in traverse_util.flatten_dict(tree, sep='/').items():
        flat[f'{kind}/{model}/{name}'] = array
  about = {
    'experiment': 'infomax_jax.experiment',
    'encoder': dataclasses.asdict(cfg),
    'heads': dataclasses.asdict(heads),
  }
  about |= {
    key: dict(held[key]) for key in ('hyperparams', 'cursor') if key in held
  }
  return Loaded(flat, about)


def configs(
  state: Mapping[str, np.ndarray], given: Mapping[str, Any]
) -> tuple[config_lib.EncoderConfig, config_lib.HeadsConfig]:
  """Of a state dict, by its shapes and the hyperparameters beside it."""
  layers = 'encoder.module.layer_list'
  inner = (re.match(rf'{layers}\.\d+\.layer_list\.(\d+)', n) for n in state)
  depth = max((int(m[1]) + 1 for m in inner if m), default=1)
  stem = f'{layers}.0.conv.weight'
  if stem not in state:
    stem = f'{layers}.0.conv1.weight'
  mlp = 'evaluator.block_glb_mlp.block_forward'
  lin = 'evaluator.block_glb_lin.block_forward'
  heads = config_lib.HeadsConfig(
    state[f'{lin}.2.weight'].shape[0], hidden=state[f'{mlp}.2.weight'].shape[0]
  )
  sizes = SIZES
  if 'encoder_size' in given:
    sizes = (int(given['encoder_size']),)
  error = None
  for size in sizes:
    try:
      cfg = config_lib.EncoderConfig(
        image_size=size,
        ndf=state[stem].shape[0],
        n_rkhs=state['encoder.module.rkhs_block_5.conv1.weight'].shape[0],
        n_depth=depth,
        use_bn=bool(given.get('use_bn', False)),
      )
      torch_weights.from_torch(state, cfg, heads)
      return cfg, heads
    except ValueError as wrong:
      error = error or wrong
  raise error


def to_state(arrays: Arrays) -> dict[str, Any]:
  """What the authors' code saves, of our weights.

  Args:
    arrays: a run of infomax_jax.experiment, or what `launch.convert` wrote.

  Returns:
    {'model': name -> torch tensor, 'hyperparams', 'cursor'}.

  Raises:
    UserError: they are of another model.
  """
  torch = convert_torch.import_torch()
  about = arrays.config
  if 'encoder' not in about or 'heads' not in about:
    raise UserError(f'{arrays.where}: is no AMDIM')
  cfg = config_lib.build(config_lib.EncoderConfig, about['encoder'])
  heads = config_lib.build(config_lib.HeadsConfig, about['heads'])
  trees = {'encoder': {}, 'heads': {}}
  rest = {}
  for path in arrays.specs:
    kind, _, name = path.partition('/')
    array = arrays.get(path, None)
    if kind == 'rest':
      rest[name] = array
    else:
      model, *keys = name.split('/')
      trees[model][(kind, *keys)] = array
  trees = {k: traverse_util.unflatten_dict(v) for k, v in trees.items()}
  weights = torch_weights.Weights(trees['encoder'], trees['heads'], rest)
  try:
    state = torch_weights.to_torch(weights, cfg, heads)
  except ValueError as error:
    raise UserError(f'{arrays.where}: {error}') from error
  given = {
    'ndf': cfg.ndf,
    'n_classes': heads.num_classes,
    'n_rkhs': cfg.n_rkhs,
    'tclip': float(about.get('objective', {}).get('clip') or 20.0),
    'n_depth': cfg.n_depth,
    'encoder_size': cfg.image_size,
    'use_bn': cfg.use_bn,
  }
  cursor = dict.fromkeys(
    ('info_epoch', 'info_step', 'classifier_epoch', 'classifier_step'), 0
  )
  return {
    'model': {
      name: torch.from_numpy(np.array(array)) for name, array in state.items()
    },
    'hyperparams': given | dict(about.get('hyperparams', {})),
    'cursor': cursor | dict(about.get('cursor', {})),
  }
