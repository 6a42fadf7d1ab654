"""Which blocks of queries and keys the TPU kernels work on, per chip."""

from collections.abc import Sequence
import dataclasses

import jax

LANES = 128
MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Sizes of one kernel's blocks.

  Attributes:
    q: Queries of a block.
    k: Keys of a block.
    sub: Keys whose scores are held at a time; if `wide`, queries,
      which need not divide `q`.
    transposed: Whether dk and dv are summed as [D bk], with the weights in the
      matrix unit: a 256-wide unit is half empty the other way, for D = 128.
    wide: Whether, for D = 128, `tpu_backward_wide` runs instead.
    vmem: Bytes of on-chip memory that the kernel may take.
  """

  q: int
  k: int
  sub: int
  transposed: bool = False
  wide: bool = False
  vmem: int = 64 * MIB


@dataclasses.dataclass(frozen=True)
class Chip:
  """The largest blocks of one TPU generation, for bfloat16 and D <= 128.

  Attributes:
    unit: Width of the matrix unit; blocks are multiples of it.
    forward: Blocks of the forward kernel.
    backward: Blocks of the backward kernel.
  """

  unit: int
  forward: Blocks
  backward: Blocks


# Modelled by `python -m launch.bench_attention --pod v6e:2x2 --heads 1`: 76,056
# tokens, D = 128, of the bfloat16 peak (v5p: --pod v5p:2x2x1 --heads 2):
#   v5p  forward 896 x 896     95 %   backward 896 x 896     98 %
#   v6e  forward 1792 x 3072   60 %   backward 1792 x 1024   63 %
# v5p is bound by its matrix units. Those of v6e and tpu7x are 256 deep and wide:
# scores of D = 128 leave half the depth empty, which caps the forward pass at
# 67 % and the backward at 71 %. v5e and tpu7x take the figures of their like.
CHIPS = {
  'v5e': Chip(
    128, Blocks(1024, 1024, 1024), Blocks(1024, 1024, 1024, vmem=100 * MIB)
  ),
  'v5p': Chip(128, Blocks(1024, 1024, 1024), Blocks(1024, 1024, 1024)),
  'v6e': Chip(
    256,
    Blocks(2048, 3072, 512),
    Blocks(2048, 1024, 512, transposed=True, wide=True, vmem=100 * MIB),
  ),
  'tpu7x': Chip(
    256,
    Blocks(2048, 3072, 512, vmem=56 * MIB),
    Blocks(2048, 1024, 512, transposed=True, wide=True, vmem=56 * MIB),
  ),
}
KINDS = {
  'TPU v5 lite': 'v5e',
  'TPU v5e': 'v5e',
  'TPU v5': 'v5p',
  'TPU v5p': 'v5p',
  'TPU v6 lite': 'v6e',
  'TPU v6e': 'v6e',
  'TPU7x': 'tpu7x',
}


@dataclasses.dataclass(frozen=True)
class Plan:
  """Padded lengths and the blocks that divide them.

  Attributes:
    rows: Queries with padding.
    keys: Keys with padding.
    forward: Blocks of the forward kernel.
    backward: Blocks of the backward kernel.
  """

  rows: int
  keys: int
  forward: Blocks
  backward: Blocks


def chip() -> str:
  """The generation that is being compiled for: a key of CHIPS.

  That of the mesh set with `jax.set_mesh`, which may be of a topology without
  hardware; else of the first device.

  Raises:
    ValueError: It is no TPU with a table.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  kind = device.device_kind if device else jax.devices()[0].device_kind
  if kind not in KINDS:
    raise ValueError(
      f"attention 'tpu' has no blocks for {kind!r}, only for {sorted(KINDS)}; "
      "elsewhere take 'tpu_interpret', 'recompute' or 'dot_product', and to "
      'compile for a topology set its mesh with jax.set_mesh.'
    )
  return KINDS[kind]


def plan(name: str, rows: int, keys: int, dim: int, itemsize: int) -> Plan:
  """Blocks and padding for `rows` queries and `keys` keys on a chip.

  Wider heads and wider numbers get smaller blocks, so that the same bytes are
  on chip.
  """
  table = CHIPS[name]
  shrink = max(1, dim // LANES) * max(1, itemsize // 2)
  caps = lambda size: max(table.unit, size // shrink)
  both = (table.forward, table.backward)
  rows, q_blocks = fit(rows, table.unit, [caps(b.q) for b in both])
  keys, k_blocks = fit(keys, table.unit, [caps(b.k) for b in both])
  fitted = []
  for blocks, q, k in zip(both, q_blocks, k_blocks, strict=True):
    wide = blocks.wide and dim == LANES
    # At least as many as the table's, so that a block of 7 units is not cut
    # into 7 parts.
    units, least = k // table.unit, caps(blocks.sub) // table.unit
    sub = table.unit * min(
      n
      for n in range(1, units + 1)
      if units % n == 0 and n >= min(least, units)
    )
    if wide:  # Its last part may be smaller.
      sub = min(caps(blocks.sub), q)
    fitted.append(dataclasses.replace(blocks, q=q, k=k, sub=sub, wide=wide))
  return Plan(rows, keys, *fitted)


def fit(
  total: int, unit: int, caps: Sequence[int]
) -> tuple[int, tuple[int, ...]]:
  """The cheapest padded length, and for each cap the largest block in it.

  Padding costs its share; a block costs about a quarter of a unit extra for
  its start and end, so that small blocks lose what they save in padding.

  Returns:
    A multiple of `unit`, at least `total`, and divisors of it.
  """
  need = -(-total // unit)
  best = None
  for count in range(need, need + max(cap // unit for cap in caps)):
    divisors = [
      max(n for n in range(1, max(cap // unit, 1) + 1) if count % n == 0)
      for cap in caps
    ]
    cost = count * sum(1 + 0.25 / n for n in divisors)
    if best is None or cost < best[0]:
      best = cost, count, divisors
  _, count, divisors = best
  return count * unit, tuple(n * unit for n in divisors)
