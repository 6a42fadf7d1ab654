"""The device mesh, and what lives where on it."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import itertools
import math
from typing import Any

from flax import linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from launch.errors import UserError

AXES = ('data', 'fsdp', 'context', 'tensor')
BATCH_AXES = ('data', 'fsdp')


def mesh_shape(
  sizes: Mapping[str, int], num_devices: int
) -> tuple[int, int, int, int]:
  """Sizes of the four axes, with one -1 filled so that they use every device.

  Args:
    sizes: axis name -> size; an axis left out is 1, one axis may be -1.
    num_devices: the devices to lay out.

  Raises:
    UserError: an unknown axis, or sizes whose product is not num_devices.
  """
  unknown = set(sizes) - set(AXES)
  if unknown:
    raise UserError(f'config.mesh has {sorted(unknown)}; its axes are {AXES}')
  shape = [sizes.get(axis, 1) for axis in AXES]
  if shape.count(-1) > 1 or any(n < 1 and n != -1 for n in shape):
    raise UserError(
      f'config.mesh is {dict(sizes)}: sizes must be positive, one may be -1'
    )
  fixed = math.prod(n for n in shape if n != -1)
  filled = [num_devices // fixed if n == -1 else n for n in shape]
  if math.prod(filled) != num_devices:
    given = dict(zip(AXES, shape, strict=True))
    raise UserError(
      f'config.mesh {given} does not divide the {num_devices} devices; '
      f'{as_flags(meshes(given, num_devices)[0], given)} would; an axis of -1 '
      'takes what the others leave'
    )
  return tuple(filled)


def meshes(
  sizes: Mapping[str, int], num_devices: int
) -> list[Mapping[str, int]]:
  """Every mesh of so many devices, the nearest to `sizes` first.

  Of two as near the one that cuts samples less.
  """
  divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
  found = [
    dict(zip(AXES, shape, strict=True))
    for shape in itertools.product(divisors, repeat=len(AXES))
    if math.prod(shape) == num_devices
  ]
  return sorted(
    found,
    key=lambda x: (doublings(sizes, x), x['tensor'], x['context']),
  )


def doublings(sizes: Mapping[str, int], other: Mapping[str, int]) -> float:
  """How far apart two meshes are: how often axes are doubled or halved."""
  return sum(
    abs(math.log2(size) - math.log2(max(1, sizes.get(axis, 1))))
    for axis, size in other.items()
  )


def as_flags(sizes: Mapping[str, int], given: Mapping[str, int]) -> str:
  """What to add to the command line for `sizes` in place of those given."""
  changed = {a: n for a, n in sizes.items() if n != given.get(a, 1)}
  return ' '.join(f'--config.mesh.{a}={n}' for a, n in changed.items())


def make_mesh(
  sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """A mesh over `devices` (all of them by default), nearest neighbours kept.

  Where there are several processes, `context` and `tensor` stay inside one if
  they fit: each loads whole examples. JAX's own order would lay them along a
  side of a TPU's torus, across processes. Of several slices `data` has the
  outer part: between them, over the data centre's network, goes one sum of
  gradients a step, and what `fsdp` gathers stays inside.

  Raises:
    UserError: as `mesh_shape`, or `data` is not a multiple of the slices.
  """
  devices = list(jax.devices() if devices is None else devices)
  shape = mesh_shape(sizes, len(devices))
  slices = {}
  for device in devices:
    slices.setdefault(_slice(device), []).append(device)
  if shape[0] % len(slices):
    raise UserError(
      f'config.mesh.data={shape[0]} must be a multiple of the {len(slices)} '
      'slices, which no other axis can cross'
    )
  shape = (shape[0] // len(slices), *shape[1:])
  parts = [_slice_mesh(slices[number], shape) for number in sorted(slices)]
  types = (AxisType.Auto,) * len(AXES)
  return Mesh(np.concatenate(parts), AXES, axis_types=types)


def _slice(device):
  """Which slice of a multislice job it is in; one slice's may have no number."""
  return getattr(device, 'slice_index', 0) if device.platform == 'tpu' else 0


def _slice_mesh(devices, shape):
  """Devices with fast links among them, as an array."""
  processes = len({device.process_index for device in devices})
  inner, local = shape[2] * shape[3], len(devices) // processes
  if processes > 1 and inner > 1 and local % inner == 0:
    devices = sorted(devices, key=lambda d: (d.process_index, d.id))
    return np.reshape(np.array(devices), shape)
  types = (AxisType.Auto,) * len(AXES)
  return jax.make_mesh(shape, AXES, devices=devices, axis_types=types).devices


def abstract_state(exp: Any, mesh: Mesh) -> Any:
  """Shapes, dtypes and shardings of the train state; no array is made.

  The one source for init, restore, the step's shardings and the compile for
  other hardware. Must be called outside `jax.set_mesh`: unboxing inside a mesh
  applies constraints, which abstract values cannot carry.
  """
  boxed = jax.eval_shape(exp.init, jax.random.key(0))
  shardings = nn.logical_to_mesh_sharding(
    nn.get_partition_spec(boxed), mesh, exp.axis_rules
  )
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    nn.unbox(boxed),
    shardings,
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The leading axis of every batch leaf, split over the data axes."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(batch_size: int, mesh: Mesh) -> int:
  """How many parts the mesh cuts a batch into; UserError if uneven ones."""
  shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  less = batch_size // shards * shards
  if less != batch_size:
    near = f'{less} or {less + shards}' if less else shards
    raise UserError(
      f'config.batch_size {batch_size} is not a multiple of the {shards} '
      f'shards of mesh axes {BATCH_AXES}: make it {near}, or use the axes '
      'context and tensor'
    )
  return shards


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raises UserError unless the mesh and the processes split the batch evenly.

  Each process loads its own 1/processes of the batch, so the data axes have to
  divide it the same way: `context` and `tensor` must stay inside a process.
  """
  batch_shards(batch_size, mesh)
  rows = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  local = {index[0].indices(batch_size)[:2] for index in rows.values()}
  held = sum(stop - start for start, stop in local)
  if held * jax.process_count() != batch_size:
    raise UserError(
      f'config.mesh {dict(mesh.shape)} gives this process {held} of '
      f'{batch_size} examples, but it loads 1/{jax.process_count()}: '
      'keep context * tensor within the devices of one process'
    )


@contextlib.contextmanager
def laid_out() -> Iterator[None]:
  """What a step says of a mesh that does not divide it becomes a UserError."""
  try:
    yield
  except ValueError as error:
    raise UserError(f'the step cannot be laid out so: {error}') from error


def put_batch(batch: Any, sharding: NamedSharding) -> Any:
  """Global arrays [B ...] from this process's numpy rows [B/processes ...]."""
  # JAX counts this copy as a hidden one when there are several processes.
  with jax.transfer_guard('allow'):
    return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
      batch,
    )
