"""What a device's memory holds in a step, and what would fit if it does not."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import math
import re
from typing import Any

import jax

from launch import mesh as mesh_lib

GIB = 2**30
# Of the memory that the makers state, libtpu keeps some for itself.
USABLE = 0.97
# 'Used 247.9G of 31.2G hbm', 'required for HLO temporaries (241.5G) exceeds
# available HBM (31.2G)'.
_USED = re.compile(
  r'(?:Used |temporaries \(|)([\d.]+)([KMGT])\)?'
  r'(?: of| exceeds(?: available HBM \()?) ?\(?([\d.]+)([KMGT])'
)
_UNITS = {'K': 2**10, 'M': 2**20, 'G': GIB, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device while a step runs.

  Attributes:
    arguments: State and batch, by part; parts of the state are updated in
      place.
    output: What the step gives back beside the state.
    temp: Activations, gradients, gathered weights: what lives in between.
    code: The program.
  """

  arguments: Mapping[str, int]
  output: int
  temp: int
  code: int

  @property
  def total(self) -> int:
    return sum(self.arguments.values()) + self.output + self.temp + self.code

  @classmethod
  def of(cls, compiled: Any, state: Any, batch: Any) -> 'Memory':
    """From a compiled step and its abstract arguments with shardings."""
    stats = compiled.memory_analysis()
    parts = arguments(state, batch)
    # Padding to the tiles of the hardware.
    parts['padding'] = max(
      0, stats.argument_size_in_bytes - sum(parts.values())
    )
    return cls(
      parts,
      stats.output_size_in_bytes - stats.alias_size_in_bytes,
      stats.temp_size_in_bytes,
      stats.generated_code_size_in_bytes,
    )


def arguments(state: Any, batch: Any) -> dict[str, int]:
  """Bytes per device of each field of the state, and of the batch."""
  fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
  return {
    name: sum(map(_local_bytes, jax.tree.leaves(tree)))
    for name, tree in (fields | {'batch': batch}).items()
  }


def _local_bytes(x):
  return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Overflow:
  """What libtpu says of a program that does not fit; bytes."""

  used: float
  limit: float

  @classmethod
  def read(cls, message: str, held: float = 0.0) -> 'Overflow | None':
    """From an error's text; None if it is about something else.

    Args:
      message: libtpu's.
      held: bytes of the arguments, which some messages leave out.
    """
    found = _USED.search(message)
    if not found:
      return None
    used, limit = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
    return cls(used + held * ('temporaries' in found[0]), limit)


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh and a batch that should fit, and what they take per device."""

  mesh: Mapping[str, int]
  batch_size: int
  bytes: float


def layouts(
  state: Any, mesh: Mapping[str, int], batch_size: int, used: float
) -> Iterator[Layout]:
  """Every mesh of as many devices, and batch, with the memory it would take.

  State is what the shardings say. The rest of `used` grows with the batch of a
  data shard and shrinks with `context`; `tensor` is not relied on. The layout
  given comes first if it is among them, then the nearest to it.

  Args:
    state: abstract, with shardings on `mesh`.
    mesh: axis -> size.
    batch_size: over all devices.
    used: bytes per device of the layout given.
  """
  leaves = jax.tree.leaves(state)
  now = sum(_bytes_on(x, mesh) for x in leaves)
  rows = batch_size / (mesh['data'] * mesh['fsdp'] * mesh['context'])
  per_row = max(0.0, used - now) / rows
  found = []
  for axes in mesh_lib.meshes(mesh, math.prod(mesh.values())):
    held = [_bytes_on(x, axes) for x in leaves]
    if None in held:
      continue
    shards = axes['data'] * axes['fsdp']
    for size in (batch_size, batch_size // 2, batch_size // 4, batch_size // 8):
      if size and size % shards == 0:
        share = size / (shards * axes['context'])
        away = mesh_lib.doublings(mesh, axes)
        away += 4 * math.log2(batch_size / size)
        layout = Layout(axes, size, sum(held) + per_row * share)
        found.append((away, layout.bytes, len(found), layout))
  return (layout for *_, layout in sorted(found))


def advice(
  state: Any,
  mesh: Mapping[str, int],
  batch_size: int,
  over: Overflow,
  divides: Callable[[Layout], bool] = lambda layout: True,
) -> str:
  """One line: the nearest layout that fits, by the plan of `layouts`.

  Args:
    divides: Layout -> whether the torus, tokens and heads divide so.
  """
  limit = over.limit * USABLE
  for layout in layouts(state, mesh, batch_size, over.used):
    if layout.bytes <= limit and divides(layout):
      changed = mesh_lib.as_flags(layout.mesh, mesh)
      if layout.batch_size != batch_size:
        changed = f'{changed} --config.batch_size={layout.batch_size}'.strip()
      return (
        f'by the memory plan {changed} would fit '
        f'({layout.bytes / GIB:.1f} of {over.limit / GIB:.1f} GiB)'
      )
  more = math.prod(mesh.values()) * over.used / limit
  return (
    'no mesh of these devices fits, nor an eighth of the batch; it takes about '
    f'{more:.0f} of them, or less per device: config.model.remat=full'
  )


def _bytes_on(x, mesh):
  """Bytes per device of an array on a mesh of other sizes; None: no division."""
  shape, spec = list(x.shape), x.sharding.spec
  for i, names in enumerate(spec):
    for name in (names,) if isinstance(names, str) else names or ():
      if shape[i] % mesh[name]:
        return None
      shape[i] //= mesh[name]
  return math.prod(shape) * x.dtype.itemsize
