"""How the sums over all negatives are cut up among devices and in time."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax

from infomax_jax.ops.nce.reference import LARGEST_CLIP

TILE = 8  # rows of a TPU's arrays in memory


@dataclasses.dataclass(frozen=True)
class Kernels:
  """What a backend has; `pallas_tpu` says what each function does.

  Attributes:
    name: Under which it is chosen.
    forward: Sums over a tile of targets for each source of a chunk.
    backward: Their gradients.
    tile_limit: Targets in a tile at most.
    rows: A tile's targets are a multiple of it.
    lanes: A chunk's sources are a multiple of it.
  """

  name: str
  forward: Callable[..., Any]
  backward: Callable[..., Any]
  tile_limit: Callable[[int, str], int]
  rows: int
  lanes: int


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a call is cut up; the same on every device.

  Attributes:
    kernels: That compute it.
    clip: c of c tanh(score / c).
    axes: Axes of the mesh over which the batch is divided.
    devices: Their number.
    cores: Of one device.
    images: Of one device in a chunk.
  """

  kernels: Kernels
  clip: float
  axes: tuple[str, ...]
  devices: int
  cores: int
  images: int


def make(
  shape: tuple[int, int, int],
  dtype: str,
  clip: float | None,
  block: int,
  kernels: Kernels,
) -> Plan:
  """For sources of this shape, B K C, on the mesh of the context.

  Raises:
    ValueError: The kernels cannot do it; names what can.
  """
  batch, kinds, dim = shape
  kernels.tile_limit(dim, dtype)
  if clip is None or clip > LARGEST_CLIP:
    raise ValueError(
      f'nce {kernels.name!r} needs a clip up to {LARGEST_CLIP:g}, got {clip}; '
      "use nce 'xla'."
    )
  mesh = jax.sharding.get_abstract_mesh()
  axes = _batch_axes(mesh)
  devices = math.prod(mesh.shape[axis] for axis in axes)
  if batch % devices:
    raise ValueError(
      f'nce {kernels.name!r} divides {batch} images among {devices} devices, '
      f"which leaves {batch % devices}; change batch_size or use nce 'xla'."
    )
  images = _images(batch // devices, kinds, max(1, block // devices))
  return Plan(kernels, clip, axes, devices, _cores(mesh), images)


def _images(local, kinds, most):
  """How many of a device's images give their sources to a chunk.

  Whole tiles of sources if it can be, be they more than `most`: only these
  arrive as the kernels read them.
  """
  divisors = [n for n in range(1, local + 1) if local % n == 0]
  whole = [n for n in divisors if n * kinds % TILE == 0]
  if whole:
    return max((n for n in whole if n <= most), default=whole[0])
  return max(n for n in divisors if n <= most)


def _batch_axes(mesh):
  names = nn.logical_to_mesh_axes(('batch',))[0] or ()
  names = (names,) if isinstance(names, str) else names
  return tuple(name for name in names if mesh.shape.get(name, 1) > 1)


def _cores(mesh):
  """Of one device: two on a v4 or v5p."""
  device = mesh.abstract_device or jax.devices()[0]
  return getattr(device, 'num_cores', None) or 1
