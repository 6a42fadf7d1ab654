"""Scores of a chunk of sources against targets, in Pallas for NVIDIA GPUs.

Each program has a block of scores in registers and reduces it there. No two
programs add to the same number, so that runs are equal to the bit: a gradient's
block of rows and channels is one program's, which computes its rows' scores
anew. With G groups of channels these are computed 2 G times, where the TPU's
kernel, whose memory on the chip holds a tile's scores, does it once. Beside the
encoder it is little work, and no scores are ever in memory.
"""

import dataclasses
import functools
import math

import jax
from jax import lax, numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

LANES = ROWS = 128  # sources and targets of a block of the forward kernel


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Sizes of the kernels' blocks.

  Attributes:
    depth: Channels multiplied at a time.
    own: Rows whose gradient a program computes.
    other: Rows whose scores with these are in registers.
    channels: Of the gradient, at most.
  """

  depth: int
  own: int
  other: int
  channels: int


# Of bfloat16 those that leave no register in memory, as XLA compiles them: with 64
# own rows, or 32 others at a time, it does for more than 128 channels. Nobody has
# timed them. Registers of a thread by ptxas, A100 / H100: forward 173 / 180,
# gradient of sources 182 / 182, of targets 186 / 170.
BLOCKS = {
  'bfloat16': Blocks(64, 32, 64, 512),
  'float32': Blocks(32, 64, 32, 256),
}


def tile_limit(dim: int, _: str) -> int:
  """Targets that one call takes at most: their channels have 32-bit numbers."""
  return 2**31 // dim


def check_device() -> None:
  """Raises ValueError if what is compiled for is no GPU."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  device = device or jax.devices()[0]
  if device.platform not in ('gpu', 'cuda'):
    raise ValueError(
      f"nce 'pallas_gpu' is for NVIDIA GPUs, not for {device.device_kind!r}; "
      "use nce 'xla', or 'pallas_gpu_interpret' for a test."
    )


def forward(
  sources: Float[Array, 'R C'],
  targets: Float[Array, 'M C'],
  owner: Int[Array, ' R'],
  image: Int[Array, ' M'],
  *,
  clip: float,
  cores: int = 1,
  interpret: bool = False,
) -> tuple[Float[Array, ' R'], Float[Array, ' R']]:
  """See `pallas_tpu.forward`; R and M are multiples of 128, cores mean nothing.

  Programs write sums over 128 targets each, a 128th of the scores, so that
  there are enough of them for all cores; XLA adds these up.
  """
  del cores
  if not interpret:
    check_device()
  (rows, dim), count = sources.shape, len(targets) // LANES
  blocks = BLOCKS[sources.dtype.name]
  sums = jax.ShapeDtypeStruct((count, rows), jnp.float32)
  out = pl.BlockSpec((None, LANES), lambda i, j: (j, i))
  terms, squares = pl.pallas_call(
    functools.partial(
      _forward_kernel, clip=clip, depth=blocks.depth, interpret=interpret
    ),
    out_shape=(sums, sums),
    grid=(rows // LANES, count),
    in_specs=[
      pl.BlockSpec((LANES,), lambda i, j: (i,)),
      pl.BlockSpec((LANES,), lambda i, j: (j,)),
      pl.BlockSpec((LANES, dim), lambda i, j: (i, 0)),
      pl.BlockSpec((LANES, dim), lambda i, j: (j, 0)),
    ],
    out_specs=(out, out),
    compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=3),
    interpret=interpret,
    name='nce_forward',
  )(owner, image, sources, targets)
  return terms.sum(0), squares.sum(0)


def backward(
  sources: Float[Array, 'R C'],
  targets: Float[Array, 'M C'],
  owner: Int[Array, ' R'],
  image: Int[Array, ' M'],
  stats: Float[Array, '3 R'],
  total: Float[Array, 'N M C'] | None,
  *,
  clip: float,
  cores: int = 1,
  interpret: bool = False,
) -> tuple[Float[Array, 'R C'], Float[Array, 'N M C']]:
  """See `pallas_tpu.backward`; all is added to the first part of `total`."""
  if total is None:
    total = jnp.zeros((cores, *targets.shape), jnp.float32)
  pull = functools.partial(
    _pull, (owner, image, stats), clip=clip, interpret=interpret
  )
  g_sources = pull(sources, targets, None)
  return g_sources, pull(targets, sources, total)


def _pull(marks, own, others, total, *, clip, interpret):
  """The gradient of `own`, sources if there is no total, else targets."""
  owner, image, stats = marks
  (rows, dim), blocks = own.shape, BLOCKS[own.dtype.name]
  width = blocks.channels
  while dim % width:
    width //= 2
  mine = lambda n: pl.BlockSpec((n,), lambda i, g: (i,))
  whole = lambda x: pl.BlockSpec(x.shape, lambda i, g: (0,) * x.ndim)
  out = pl.BlockSpec((blocks.own, width), lambda i, g: (i, g))
  if total is None:
    marked = [mine(blocks.own), whole(image)]
    marked += [pl.BlockSpec((3, blocks.own), lambda i, g: (0, i))]
    extra, aliases, shape = (), {}, jax.ShapeDtypeStruct(own.shape, own.dtype)
  else:
    marked = [whole(owner), mine(blocks.own), whole(stats)]
    out = pl.BlockSpec((None, blocks.own, width), lambda i, g: (0, i, g))
    extra, aliases = (total,), {6: 0}
    shape = jax.ShapeDtypeStruct(total.shape, total.dtype)
  return pl.pallas_call(
    functools.partial(
      _pull_kernel,
      of_sources=total is None,
      clip=clip,
      blocks=blocks,
      interpret=interpret,
    ),
    out_shape=shape,
    grid=(rows // blocks.own, dim // width),
    in_specs=[
      *marked,
      pl.BlockSpec((blocks.own, dim), lambda i, g: (i, 0)),
      whole(others),
      pl.BlockSpec((len(others), width), lambda i, g: (0, g)),
      *[out for _ in extra],
    ],
    out_specs=out,
    input_output_aliases=aliases,
    compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=2),
    interpret=interpret,
    name='nce_sources' if total is None else 'nce_targets',
  )(owner, image, stats, own, others, others, *extra)


def _product(a, b, contract, interpret):
  precision = None
  if interpret:  # XLA's CPU code lacks some products of bfloat16.
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    precision = lax.Precision.HIGHEST
  elif a.dtype == jnp.float32:  # Tensor cores, and nearly float32.
    precision = lax.DotAlgorithmPreset.TF32_TF32_F32_X3
  dims = (((contract[0],), (contract[1],)), ((), ()))
  return lax.dot_general(
    a, b, dims, precision=precision, preferred_element_type=jnp.float32
  )


def _ratio(a, b, b_part, *, clip, depth, interpret):
  """Unclipped scores over `clip` of refs a and b, [rows of a, rows of b]."""
  dim = a.shape[1]

  def add(step, total):
    part = pl.ds(step * depth, depth)
    return total + _product(a[:, part], b[b_part, part], (1, 1), interpret)

  total = jnp.zeros((a.shape[0], b_part.size), jnp.float32)
  total = lax.fori_loop(0, dim // depth, add, total)
  return total * (1 / (clip * math.sqrt(dim)))


def _forward_kernel(
  owner, image, sources, targets, terms, squares, *, clip, **options
):
  ratio = _ratio(sources, targets, pl.ds(0, LANES), clip=clip, **options)
  owner, image = owner[...][:, None], image[...][None]
  keep = (owner != image) & (image >= 0)
  # At most 0, and so is every sum of exponentials at most its count.
  values = jnp.exp(clip * jnp.tanh(ratio) - clip)
  terms[...] = jnp.sum(jnp.where(keep, values, 0.0), axis=1)
  squares[...] = jnp.sum(jnp.square(clip * ratio), axis=1)


def _pull_kernel(*refs, of_sources, clip, blocks, interpret):
  """One block of own rows (grid axis 0) and one group of channels (1).

  Refs: owner, image, stats, own [bO C], others [N C] and a group of their
  channels [N W], for targets the total so far [bO W]; output [bO W].
  """
  owner, image, stats, own, others, group, *total, out = refs
  scale = 1 / math.sqrt(own.shape[1])
  rows, size = own.shape[0], blocks.other
  of_source, of_target = lambda x: x[:, None], lambda x: x[None]
  if not of_sources:
    of_source, of_target = of_target, of_source

  def add(step, sums):
    there, here = pl.ds(step * size, size), pl.ds(0, rows)
    source, target = (here, there) if of_sources else (there, here)
    ratio = _ratio(
      own, others, there, clip=clip, depth=blocks.depth, interpret=interpret
    )
    bent = jnp.tanh(ratio)
    log, g_log, g_square = (of_source(stats[n, source]) for n in range(3))
    weight = jnp.exp(clip * bent - log) * (1 - bent * bent) * (scale * g_log)
    images = of_target(image[target])
    keep = (of_source(owner[source]) != images) & (images >= 0)
    g = jnp.where(keep, weight, 0.0) + ratio * (2 * scale * clip * g_square)
    g = g.astype(own.dtype)
    return sums + _product(g, group[there, :], (1, 0), interpret)

  sums = jnp.zeros(out.shape, jnp.float32)
  sums = lax.fori_loop(0, others.shape[0] // size, add, sums)
  if total:
    sums += total[0][...]
  out[...] = sums.astype(out.dtype)
