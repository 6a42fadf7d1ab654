"""Parameters of a network some of whose blocks do nothing, for skip guidance."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


def without_blocks(params: Any, blocks: Sequence[int]) -> Any:
  """Parameters of a Mirage of which some blocks are the identity.

  Their modulation is zero, and so are their gates (adaLN-Zero).

  Args:
    params: The tree of `dit.Mirage`; its layers are stacked along axis 0.
    blocks: Which, counted from 0; the last is counted, too.

  Raises:
    ValueError: There is no such block.
  """
  stacked = jax.tree.leaves(params.get('blocks', {}))
  keep = np.ones(1 + (len(stacked[0]) if stacked else 0), np.float32)
  for block in blocks:
    if not 0 <= block < len(keep):
      raise ValueError(
        f'there is no block {block}; there are 0 to {len(keep) - 1}.'
      )
    keep[block] = 0

  def zero(path, x):
    # A quantised kernel's own parts have no key.
    names = [getattr(entry, 'key', None) for entry in path]
    if 'modulation' not in names:
      return x
    if names[0] == 'last':
      return x * keep[-1].astype(x.dtype)
    return x * keep[:-1].astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))

  return jax.tree_util.tree_map_with_path(zero, params)
