"""config.init_from: what a fresh run takes from the weights of another."""

from collections.abc import Callable
import os
from typing import Any

import jax
import numpy as np

from launch.checkpoint import restore_params
from launch.errors import UserError


def load(
  state: Any,
  path: str | os.PathLike,
  adopt: Callable[[Any, Any], Any],
) -> Any:
  """A fresh state with the averaged parameters of another run.

  Args:
    state: of step 0.
    path: a workdir, or a bundle, whose transformer or VAE is taken.
    adopt: (state, parameters) -> state, with what it takes from them as numpy
      arrays; raises ValueError if they do not fit, see `same_model`.

  Raises:
    UserError: no parameters there fit.
  """
  if os.path.isdir(path):
    found = [restore_params(path)[1]]
  else:
    from launch import bundle  # It knows one package; the loop knows none.

    weights = bundle.load(path)
    found = [tree for tree in (weights.vae, weights.dit) if tree is not None]
  for tree in found:
    try:
      taken = adopt(state, tree)
    except ValueError as error:
      wrong = error
    else:
      return jax.tree.map(_place, taken, state)
  raise UserError(f'config.init_from={path}: {wrong}')


def same_model(state: Any, found: Any) -> Any:
  """All parameters of the same names and shapes."""
  shapes = [jax.tree.map(np.shape, tree) for tree in (found, state.params)]
  if shapes[0] != shapes[1]:
    raise ValueError('its parameters are of another model')
  return state.replace(params=found, ema=found)


def _place(x, like):
  """A copy of `x` laid out as `like`, which stays itself."""
  if x is like:
    return x
  return jax.device_put(x.astype(like.dtype), like.sharding)
