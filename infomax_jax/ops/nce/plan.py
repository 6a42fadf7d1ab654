"""How the sums over all negatives are cut up among devices and in time."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax

from infomax_jax.ops.nce.reference import LARGEST_CLIP

DTYPES = ('float32', 'bfloat16')
TILE = 8  # rows of a TPU's arrays in memory
LEAST = 2048  # Sources of a chunk below which what a call costs besides counts.
UNROLLED = 6  # Chunks up to which a loop would cost copies and save little.


@dataclasses.dataclass(frozen=True)
class Kernels:
  """What a backend has; `pallas_tpu` says what each function does.

  Attributes:
    name: Under which it is chosen.
    forward: Sums over a tile of targets for each source of a chunk.
    backward: Their gradients.
    tile_limit: Targets in a tile at most, of so many channels and a dtype.
    rows: A tile's targets are a multiple of it.
    lanes: A chunk's sources, and the channels, are a multiple of it.
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
    outer: Axes of the mesh along which chunks travel.
    inner: Those along which sources are gathered before, all at once.
    around: Devices along `outer`.
    within: Devices along `inner`.
    cores: Of one device.
    sizes: Of each chunk, the sources that come from one place along `outer`,
      all of one kind.
  """

  kernels: Kernels
  clip: float
  outer: tuple[str, ...]
  inner: tuple[str, ...]
  around: int
  within: int
  cores: int
  sizes: tuple[int, ...]

  @property
  def axes(self) -> tuple[str, ...]:
    """Over which the batch is divided."""
    return self.outer + self.inner


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
  wrong = None
  if dtype not in DTYPES:
    wrong = f'dtype {dtype}, only {" and ".join(DTYPES)}'
  elif dim % kernels.lanes:
    wrong = f'{dim} channels, only multiples of {kernels.lanes}'
  elif not kernels.tile_limit(dim, dtype):
    wrong = f'{dim} channels: {kernels.rows} targets exceed its memory'
  if wrong:
    raise ValueError(
      f"nce {kernels.name!r} does not do {wrong}; use nce 'xla'."
    )
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
  outer, inner = axes[:1], axes[1:]
  within = math.prod(mesh.shape[axis] for axis in inner)
  around = devices // within
  cores = _cores(mesh)
  # Of a chunk's end that is cut off: full products, see `_sizes`. Where cores
  # share a memory each call costs their sums' way to it and back, so not there.
  end = max(TILE, 2 * kernels.lanes // around) if axes and cores == 1 else 0
  return Plan(
    kernels=kernels,
    clip=clip,
    outer=outer,
    inner=inner,
    around=around,
    within=within,
    cores=cores,
    sizes=_sizes(batch // around, max(LEAST, block) // around, end) * kinds,
  )


def _sizes(total, most, end):
  """How many of so many sources of a kind each chunk has.

  Whole tiles if it can be, be they more than `most`: only these arrive as the
  kernels read them. The last chunk is cut in two, the second a multiple of
  `end`, if that is not 0: nothing hides the last one's way back, nor its work
  where chunks come late. The first of the two hides in the second's work.
  """
  divisors = [n for n in range(1, total + 1) if total % n == 0]
  whole = [n for n in divisors if n % TILE == 0] or divisors
  size = max((n for n in whole if n <= most), default=whole[0])
  sizes = [size] * (total // size)
  if end and 1 < len(sizes) < 4:
    second = size * 3 // 8 // end * end
    sizes[-1:] = [size - second, second] if second else [size]
  return tuple(sizes)


def _batch_axes(mesh):
  names = nn.logical_to_mesh_axes(('batch',))[0] or ()
  names = (names,) if isinstance(names, str) else names
  return tuple(name for name in names if mesh.shape.get(name, 1) > 1)


def _cores(mesh):
  """Of one device: two on a v4 or v5p. What JAX calls so on a GPU is no such."""
  device = mesh.abstract_device or jax.devices()[0]
  if device.platform != 'tpu':
    return 1
  return getattr(device, 'num_cores', None) or 1
