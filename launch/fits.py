r"""Whether weights fit a run, and what each device would hold; no array is made.

  python -m launch.fits --config configs/mirage/mirage_10b_stitch.py:v5p_256 \
      --weights weights/mochi

--weights is what the run would have as config.init_from: a folder that
`launch.convert` wrote, or a workdir. Their names and shapes are compared as the
run would, and the train state is laid out on config.mesh, of as many devices as
that has, none of which need be there. Only headers are read: 10B parameters take
seconds.
"""

import json
import math
import pathlib
import sys
from typing import Any, NamedTuple

from absl import app, flags
from flax import traverse_util
import jax
from jax.sharding import AbstractMesh, AxisType
from ml_collections import config_flags
import numpy as np

from launch import aot_compile, convert_ours, loop, mesh as mesh_lib, warm_start
from launch.config_flag import parse_flags
from launch.errors import UserError, one_line

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'configs/...py[:variant,key=value]', lock_config=True
)
_WEIGHTS = flags.DEFINE_string(
  'weights', None, 'what the run starts from; unset, its config.init_from'
)


class Fit(NamedTuple):
  """What a run would take and hold.

  Attributes:
    taken: Parameters that come from the weights.
    fresh: Those that start anew.
    devices: Of the mesh.
    held: Bytes of the train state on one device.
    whole: Bytes of all of it.
    copied: Path and bytes of the largest array that every device has whole.
  """

  taken: int
  fresh: int
  devices: int
  held: int
  whole: int
  copied: tuple[str, int]


def main(_: list[str]) -> None:
  with one_line():
    if _CONFIG.value is None:
      raise UserError('--config is needed; see --help')
    config = json.loads(_CONFIG.value.to_json())
    weights = _WEIGHTS.value or config.get('init_from')
    if not weights:
      raise UserError('--weights is needed: the config has no init_from')
    fit = compare(config, weights)
    path, size = fit.copied
    print(
      f'{weights}: fits; {fit.taken / 1e9:.3f}B parameters are taken, '
      f'{fit.fresh / 1e9:.3f}B start anew\n'
      f'{fit.devices} devices hold {fit.held / 1e9:.3f} GB each of a train '
      f'state of {fit.whole / 1e9:.1f} GB; of what all of them hold whole the '
      f'largest is {path}, {size / 1e6:.2f} MB'
    )


def compare(config: dict[str, Any], weights: str) -> Fit:
  """Lays out a run's state and puts the weights' shapes in it.

  Args:
    config: of the run, plain.
    weights: a workdir, or what `launch.convert` wrote.

  Raises:
    UserError: they are of another model, or the mesh does not divide it.
  """
  exp = loop.build(config)
  sizes = config['mesh']
  fixed = math.prod(size for size in sizes.values() if size != -1)
  mesh = AbstractMesh(
    mesh_lib.mesh_shape(sizes, fixed),
    mesh_lib.AXES,
    axis_types=(AxisType.Auto,) * len(mesh_lib.AXES),
  )
  state = mesh_lib.abstract_state(exp, mesh)
  aot_compile.check_divides(state, mesh)
  found = shapes(weights)
  adopt = getattr(exp, 'adopt', None) or warm_start.same_model
  try:
    adopt(state, found)
  except ValueError as error:
    raise UserError(f'{weights}: {error}') from error
  taken = _count(found)
  held = {
    jax.tree_util.keystr(path): (
      x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)),
      x.dtype.itemsize * math.prod(x.shape),
    )
    for path, x in jax.tree.leaves_with_path(state)
  }
  copied = {name: size for name, (size, all_) in held.items() if size == all_}
  largest = max(copied, key=copied.get, default='')
  return Fit(
    taken,
    _count(getattr(state, 'base', state.params)) - taken,
    mesh.size,
    sum(size for size, _ in held.values()),
    sum(size for _, size in held.values()),
    (largest, copied.get(largest, 0)),
  )


def shapes(weights: str) -> dict[str, Any]:
  """Parameters as nested arrays of the weights' shapes, without memory."""
  if not pathlib.Path(weights).exists():
    raise UserError(f'{weights}: no such folder')
  arrays = convert_ours.open_arrays(weights)
  flat = {
    tuple(path.split('/')[1:]): np.broadcast_to(
      np.zeros((), spec.dtype), spec.shape
    )
    for path, spec in arrays.specs.items()
  }
  return traverse_util.unflatten_dict(flat)


def _count(tree):
  return sum(math.prod(np.shape(x)) for x in jax.tree.leaves(tree))


if __name__ == '__main__':
  sys.exit(app.run(main, flags_parser=parse_flags))
