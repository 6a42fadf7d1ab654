"""The authors' torch state dict <-> the variables of `Encoder` and `Heads`.

Pure numpy on dicts: reading and writing `.pth` files is for others. What has no
place here (norms that `use_bn` leaves dead, counts of batches, masks) is kept
aside on the way in and put back on the way out, so that a round trip is exact.
"""

import collections
from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from infomax_jax.config import EncoderConfig, HeadsConfig

Arrays = dict[str, np.ndarray]
SHOWN = 8  # names of each kind that an error lists
# Torch axes -> ours and back.
LAYOUTS = {4: ((2, 3, 1, 0), (3, 2, 0, 1)), 2: ((1, 0), (1, 0)), 1: ((0,),) * 2}


@dataclasses.dataclass
class Weights:
  """What a state dict holds.

  Attributes:
    encoder: {'params', 'batch_stats'} for `Encoder.apply`.
    heads: The same for `Heads.apply`.
    rest: Arrays that neither has, by their torch name.
  """

  encoder: dict[str, Any]
  heads: dict[str, Any]
  rest: Arrays


class Entry(NamedTuple):
  """Where an array of the state dict belongs.

  Attributes:
    shape: In torch's layout.
    path: 'encoder' or 'heads', collection, modules, array; () if it has no
      place here.
    index: Its layer, where layers are stacked.
    default: What a new state dict has if there is no place here.
  """

  shape: tuple[int, ...]
  path: tuple[str, ...]
  index: int | None = None
  default: float = 0.0


def from_torch(
  state: Mapping[str, np.ndarray], cfg: EncoderConfig, heads: HeadsConfig
) -> Weights:
  """Sorts a state dict into variables, in our layouts.

  Raises:
    ValueError: A name is missing, unknown, or of another shape: lists which.
  """
  entries = _entries(cfg, heads)
  _check(entries, state)
  trees = {'encoder': {}, 'heads': {}}
  rest, stacks = {}, {}
  for name, entry in entries.items():
    array = np.asarray(state[name])
    if not entry.path:
      rest[name] = array
      continue
    array = np.ascontiguousarray(array.transpose(LAYOUTS[array.ndim][0]))
    if entry.index is None:
      _put(trees, entry.path, array)
    else:  # Entries of a stack come in order.
      stacks.setdefault(entry.path, []).append(array)
  for path, arrays in stacks.items():
    _put(trees, path, np.stack(arrays))
  return Weights(trees['encoder'], trees['heads'], rest)


def to_torch(
  weights: Weights, cfg: EncoderConfig, heads: HeadsConfig
) -> Arrays:
  """The state dict of these weights; what `rest` lacks is as torch starts it.

  Raises:
    ValueError: The variables are not those of the configs: lists which.
  """
  found = dict(_leaves({'encoder': weights.encoder, 'heads': weights.heads}))
  entries, state = _entries(cfg, heads), {}
  paths = collections.Counter(entry.path for entry in entries.values())
  for name, entry in entries.items():
    if not entry.path:
      state[name] = weights.rest.get(name, _default(name, entry))
    elif entry.path in found:
      array = np.asarray(found[entry.path])
      if entry.index is not None and len(array) == paths[entry.path]:
        array = array[entry.index]
      axes = LAYOUTS.get(array.ndim, (None, None))[1]
      state[name] = np.ascontiguousarray(array.transpose(axes))
  strangers = {
    '/'.join(path): array for path, array in found.items() if path not in paths
  }
  _check(entries, state | strangers)
  return state


def _check(entries, state):
  lines = []
  missing = [
    f'{name} {entry.shape}'
    for name, entry in entries.items()
    if name not in state
  ]
  extra = [
    f'{name} {np.shape(array)}'
    for name, array in state.items()
    if name not in entries
  ]
  misshaped = [
    f'{name} is {np.shape(state[name])}, must be {entry.shape}'
    for name, entry in entries.items()
    if name in state and np.shape(state[name]) != entry.shape
  ]
  for kind, names in (
    ('missing', missing),
    ('unknown', extra),
    ('of another shape', misshaped),
  ):
    if names:
      more = len(names) - SHOWN
      names = names[:SHOWN] + [f'and {more} more'] * (more > 0)
      lines += [f'  {kind}:', *(f'    {name}' for name in names)]
  if lines:
    lines = ['These weights are not of this encoder and these heads.', *lines]
    raise ValueError('\n'.join(lines))


def _entries(cfg: EncoderConfig, heads: HeadsConfig) -> dict[str, Entry]:
  """Every name of the state dict, in its order."""
  if cfg.components or not cfg.output_norm or cfg.channels != 3:
    raise ValueError(
      "The authors' weights have 3 channels, norms on the outputs and no "
      'mixture; set channels=3, output_norm=True and components=0.'
    )
  entries = {}
  for i, layer in enumerate(cfg.layers):
    torch, ours = f'encoder.module.layer_list.{i}', ('encoder', f'layer{i}')
    if layer.kind == 'conv':
      entries |= _conv(torch + '.conv', ours, layer, layer.width, bias=True)
    elif layer.kind == 'residual':
      entries |= _residual(cfg, torch, ours, layer)
    elif layer.kind == 'block':
      for j in range(cfg.n_depth):
        place = (*ours, 'rest' if j else 'first')
        inner = f'{torch}.layer_list.{j}'
        entries |= _residual(cfg, inner, place, layer, j - 1 if j else None)
    elif layer.kind == 'norm':
      live = (*ours, 'bn') if cfg.use_bn else ()
      entries |= _norm(torch + '.bn', live, layer.features)
    else:
      entries |= _norm(torch + '.bn', ours, layer.features)
  for rows in (5, 7):
    entries |= _head(cfg, rows)
  entries['g2l_loss.masks_r5'] = Entry((25, 1, 5, 5), ())
  return entries | _classifiers(cfg, heads)


class _Shape(NamedTuple):
  inputs: int
  features: int


def _conv(torch, ours, layer, width=1, bias=False, index=None):
  top, *modules = ours
  path = (top, 'params', *modules)
  shape = (layer.features, layer.inputs, width, width)
  entries = {f'{torch}.weight': Entry(shape, (*path, 'kernel'), index)}
  if bias:
    shape = (layer.features,)
    entries[f'{torch}.bias'] = Entry(shape, (*path, 'bias'), index)
  return entries


def _norm(torch, ours, features, index=None):
  """A norm, which is dead if it has no place in ours."""
  names = {
    'weight': ('params', 'scale', 1.0),
    'bias': ('params', 'bias', 0.0),
    'running_mean': ('batch_stats', 'mean', 0.0),
    'running_var': ('batch_stats', 'var', 1.0),
  }
  entries = {}
  for name, (collection, leaf, default) in names.items():
    path = (ours[0], collection, *ours[1:], leaf) if ours else ()
    entries[f'{torch}.{name}'] = Entry((features,), path, index, default)
  entries[f'{torch}.num_batches_tracked'] = Entry((), ())
  return entries


def _residual(cfg, torch, ours, layer, index=None):
  first = not index and ours[-1] != 'rest'
  width = layer.width if first else 1
  inputs = layer.inputs if first else layer.features
  conv1, conv2 = _Shape(inputs, layer.features), _Shape(*[layer.features] * 2)
  norm = (*ours, 'norm', 'bn') if cfg.use_bn else ()
  return (
    _conv(f'{torch}.conv1', (*ours, 'conv1'), conv1, width, index=index)
    | _conv(f'{torch}.conv2', (*ours, 'conv2'), conv2, index=index)
    | _norm(f'{torch}.bn1.bn', norm, layer.features, index)
  )


def _head(cfg, rows):
  torch, ours = f'encoder.module.rkhs_block_{rows}', ('encoder', f'head{rows}')
  into = _Shape(cfg.layers[-2].inputs, cfg.n_rkhs)
  within = _Shape(cfg.n_rkhs, cfg.n_rkhs)
  hidden = (*ours, 'norm', 'bn') if cfg.use_bn else ()
  return (
    _conv(f'{torch}.conv1', (*ours, 'conv1'), into)
    | _conv(f'{torch}.conv2', (*ours, 'conv2'), within)
    | _norm(f'{torch}.bn_hid.bn', hidden, cfg.n_rkhs)
    | _norm(f'{torch}.bn_out.bn', (*ours, 'output'), cfg.n_rkhs)
    | _conv(f'{torch}.shortcut', (*ours, 'shortcut'), into, bias=True)
  )


def _classifiers(cfg, heads):
  def linear(torch, name, inputs, outputs, bias=True):
    path = ('heads', 'params', name)
    entries = {f'{torch}.weight': Entry((outputs, inputs), (*path, 'kernel'))}
    if bias:
      entries[f'{torch}.bias'] = Entry((outputs,), (*path, 'bias'))
    return entries

  mlp = 'evaluator.block_glb_mlp.block_forward'
  lin = 'evaluator.block_glb_lin.block_forward'
  return (
    linear(f'{mlp}.2', 'hidden', cfg.n_rkhs, heads.hidden, bias=False)
    | _norm(f'{mlp}.3', ('heads', 'norm'), heads.hidden)
    | linear(f'{mlp}.6', 'output', heads.hidden, heads.num_classes)
    | linear(f'{lin}.2', 'linear', cfg.n_rkhs, heads.num_classes)
  )


def _default(name, entry):
  if name == 'g2l_loss.masks_r5':
    return np.eye(25, dtype=np.uint8).reshape(entry.shape)
  whole = name.endswith('num_batches_tracked')
  return np.full(entry.shape, entry.default, np.int64 if whole else np.float32)


def _put(tree, path, array):
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = array


def _leaves(tree, path=()) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, (*path, key))
    else:
      yield (*path, key), value
