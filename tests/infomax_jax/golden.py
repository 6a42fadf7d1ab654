"""Golden tensors of the authors' code, as our variables and layouts."""

import pathlib
import types

import jax
import numpy as np
import pytest

from infomax_jax import config, encoder, heads, torch_weights

ROOT = pathlib.Path(__file__).parents[3]  # beside the repository
GOLDEN = ROOT / 'shared/golden/amdim'
NAMES = ('enc32', 'enc64', 'enc128', 'enc32_bn', 'enc32_init')


def load(name):
  """The arrays of one file, or a skip."""
  file = GOLDEN / f'{name}.npz'
  if not file.exists():
    pytest.skip(f'no golden tensors in ../{file.parent.relative_to(ROOT)}')
  with np.load(file) as arrays:
    return {key: arrays[key] for key in arrays.files}


def part(arrays, prefix):
  """The arrays whose keys start with it, without it."""
  return {
    key.removeprefix(prefix): array
    for key, array in arrays.items()
    if key.startswith(prefix)
  }


def case(name, **overrides):
  """A file, its encoder and heads, and their converted variables."""
  arrays = load(name)
  size, ndf, n_rkhs, depth, use_bn, _ = map(int, arrays['meta'])
  cfg = config.EncoderConfig(
    size, ndf, n_rkhs, depth, use_bn=bool(use_bn), **overrides
  )
  heads_cfg = config.HeadsConfig(10)
  weights = torch_weights.from_torch(part(arrays, 'sd/'), cfg, heads_cfg)
  return types.SimpleNamespace(
    arrays=arrays,
    cfg=cfg,
    heads_cfg=heads_cfg,
    weights=weights,
    encoder=encoder.Encoder(cfg),
    heads=heads.Heads(heads_cfg),
    x1=nhwc(arrays['x1']),
    x2=nhwc(arrays['x2']),
  )


def nhwc(x):
  return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def nchw(x):
  x = np.asarray(x)
  return x.reshape(*x.shape, 1, 1) if x.ndim == 2 else x.transpose(0, 3, 1, 2)


def encoder_arrays(case, variables):
  """Variables of the encoder under the names of its torch module."""
  variables = jax.tree.map(np.asarray, variables)
  weights = torch_weights.Weights(
    variables, case.weights.heads, case.weights.rest
  )
  state = torch_weights.to_torch(weights, case.cfg, case.heads_cfg)
  return part(state, 'encoder.module.')
