"""Which blocks of queries and keys the GPU kernels work on, per head size."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Sizes of one kernel's blocks.

  Attributes:
    q: Queries of a block.
    k: Keys of a block.
    warps: Groups of 32 threads that share a block.
    stages: Blocks on their way at a time.
  """

  q: int
  k: int
  warps: int
  stages: int


@dataclasses.dataclass(frozen=True)
class Plan:
  """Blocks of the three kernels.

  Attributes:
    forward: The output.
    queries: The gradient of queries.
    keys: The gradients of keys and values.
  """

  forward: Blocks
  queries: Blocks
  keys: Blocks


# Of bfloat16 large ones that leave no register in memory, as XLA compiles them,
# whatever the tokens; float32 does. Nobody has timed them. Registers of a thread by
# ptxas and KiB of shared memory by XLA, A100 / H100:
#         forward             queries             keys
#   64    255  33 / 234  49   188  48 / 254  64   176  73 / 254  97  at most
#   128   255  48 / 128  64   200  80 / 142  96   176  73 / 254  97
#   256   172  68 / 148  96   166 100 / 192 128   163  66 / 161  66
PLANS = {
  64: Plan(Blocks(128, 64, 4, 3), Blocks(128, 64, 8, 2), Blocks(64, 64, 8, 2)),
  128: Plan(Blocks(128, 32, 8, 2), Blocks(128, 32, 8, 2), Blocks(64, 64, 8, 2)),
  256: Plan(Blocks(64, 32, 8, 2), Blocks(64, 32, 8, 2), Blocks(32, 32, 8, 2)),
}


def plan(dim: int, itemsize: int) -> Plan:
  """Blocks for heads of a size in PLANS; of wider numbers half as many."""
  table = PLANS[dim]
  if itemsize <= 2:
    return table
  halves = [
    dataclasses.replace(blocks, q=blocks.q // 2, k=blocks.k // 2, stages=1)
    for blocks in (table.forward, table.queries, table.keys)
  ]
  return Plan(*halves)


def check_device() -> None:
  """Raises ValueError if what is compiled for is no GPU.

  That of the mesh set with `jax.set_mesh`, which may be of a topology without
  hardware; else of the first device.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  device = device or jax.devices()[0]
  if device.platform not in ('gpu', 'cuda'):
    raise ValueError(
      f"attention 'gpu' is for NVIDIA GPUs, not for {device.device_kind!r}; "
      "elsewhere take 'gpu_interpret', 'recompute' or 'dot_product'."
    )
