"""What is known of each TPU generation: the constants of the models.

Peaks, memory and links are the makers' (cloud.google.com/tpu/docs); clocks
follow from the peak and the size of the matrix units, except tpu7x's, which was
fitted, see `aot_cycles`.
"""

from collections.abc import Sequence
import dataclasses
import re
from typing import Any

from launch.errors import UserError

# For libtpu: no TPU is asked for, and none is locked against other processes.
ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
}


@dataclasses.dataclass(frozen=True)
class Chip:
  """One JAX device of a generation, which need not be a whole chip.

  Attributes:
    peak: bfloat16 FLOP/s.
    memory: Bytes of HBM that libtpu lets a program have.
    bandwidth: Bytes/s between HBM and the cores.
    clock: Hz.
    cores: TensorCores that share the device's work.
    mxu_rows: Rows that a matrix unit takes in a clock.
    link: Bytes/s of one link to a neighbouring chip, one way.
    links: Links of a chip.
    devices: JAX devices on a chip.
  """

  peak: float
  memory: float
  bandwidth: float
  clock: float
  cores: int
  mxu_rows: int
  link: float
  links: int
  devices: int = 1

  @property
  def peak_per_chip(self) -> float:
    return self.peak * self.devices


_GIB = 2**30
CHIPS = {
  'v5e': Chip(197e12, 15.75 * _GIB, 0.819e12, 1.5e9, 1, 1, 50e9, 4),
  'v5p': Chip(459e12, 95.74 * _GIB, 2.765e12, 1.75e9, 2, 1, 100e9, 6),
  'v6e': Chip(918e12, 31.25 * _GIB, 1.64e12, 1.75e9, 1, 2, 100e9, 4),
  'tpu7x': Chip(1153.5e12, 94.75 * _GIB, 3.69e12, 1.9e9, 1, 2, 100e9, 6, 2),
}
EXAMPLES = 'v5e:4x4, v5p:8x8x4, v6e:16x16, tpu7x:4x4x8'


def slices(topology: str) -> tuple[int, str]:
  """How many slices, and the topology of one: 2xv5p:8x8x4 is two of v5p:8x8x4."""
  found = re.fullmatch(r'([1-9]\d*)x(\D.*)', topology)
  return (int(found[1]), found[2]) if found else (1, topology)


def chip(topology: str) -> Chip:
  """The generation before the colon of a topology's name.

  Raises:
    UserError: there are no figures for it.
  """
  generation = slices(topology)[1].partition(':')[0]
  if generation not in CHIPS:
    raise UserError(
      f'--topology={topology}: no figures for {generation!r}, only for '
      f'{", ".join(CHIPS)}; write it like {EXAMPLES}'
    )
  return CHIPS[generation]


def devices(topology: str) -> Sequence[Any]:
  """The devices of a topology that is not there, to compile for.

  Raises:
    UserError: libtpu is not installed, or does not know the topology.
  """
  # Heavy, and only of use where libtpu is installed.
  from jax.experimental import topologies

  chip(topology)
  try:
    import libtpu  # noqa: F401
  except ImportError as error:
    raise UserError(
      "libtpu is not installed: pip install 'jax[tpu]'; it runs without a TPU"
    ) from error
  count, name = slices(topology)
  options = dict(num_slices=count) if count > 1 else {}
  try:
    return topologies.get_topology_desc(
      platform='tpu', topology_name=name, **options
    ).devices
  except Exception as error:  # libtpu's errors have no class of their own.
    said = str(error).splitlines()[0]
    raise UserError(
      f'--topology={topology}: libtpu does not know it ({said}); write it '
      f'like {near(topology)}'
    ) from error


def near(topology: str) -> str:
  """What libtpu knows: hosts hold 2 x 2 chips. EXAMPLES if it tells no size."""
  count, name = slices(topology)
  generation, _, layout = name.partition(':')
  sides = layout.split('x')
  if len(sides) not in (2, 3) or not all(side.isdecimal() for side in sides):
    return EXAMPLES
  even = [max(2, -(-int(side) // 2) * 2) for side in sides]
  even[2:] = [side if int(side) > 1 else 1 for side in sides[2:]]
  before = f'{count}x' if count > 1 else ''
  return f'{before}{generation}:{"x".join(map(str, even))}'
