"""Scores of a chunk of sources against a tile of targets, in Pallas for TPUs.

Both kernels hold the tile in VMEM and walk over the chunk. Scores stand with
targets in sublanes and sources in lanes, so that what belongs to a source is a
sum over sublanes and all targets stream past each piece of a source in the MXU.
Scores never leave VMEM.
"""

import functools
import math

import jax
from jax import lax, numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

LANES = 128
ROWS = 16  # sublanes of a packed bfloat16 tile
BLOCK = 512  # sources of one grid step, of all cores
BLOCK_BYTES = 6 * 2**20  # of these; four such are in VMEM, two coming or going
PIECE = 256  # sources of one product; the next hides the softmax of this one
# Channels of one product of the backward pass. All at once leave the compiler
# free to mix it with its neighbours; where two cores share the memory, copies
# of what is done matter more.
SLICE = {1: 4096, 2: 512}
TILE_BYTES = 32 * 2**20  # of targets and all that each has; a v5p has 64 MB
VMEM_BYTES = 60 * 2**20


def tile_limit(dim: int, dtype: str) -> int:
  """Targets that one call takes at most; 0 if not even ROWS fit."""
  itemsize = jnp.dtype(dtype).itemsize
  return TILE_BYTES // target_bytes(dim, itemsize) // ROWS * ROWS


def target_bytes(dim: int, itemsize: int) -> int:
  """In VMEM: itself, its gradient in float32, gradients of its scores."""
  pieces = 3 * 4 * PIECE  # What lies between scores and their gradients.
  return dim * (itemsize + 4) + BLOCK * itemsize + pieces


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
  """Sums over targets of exp(score - clip) and of unclipped squares.

  Args:
    sources: R a multiple of 128.
    targets: M a multiple of 16. Rows of zeros may fill it up.
    owner: The image of each source, or -1 where no target is of that image.
    image: The image of each target, or -1 where it only fills up.
    clip: c of c tanh(score / c).
    cores: Of a device; they share the sources.
    interpret: Run on any device, slowly.

  Returns:
    The sum over targets of other images; the sum over all.
  """
  rows, dim = sources.shape
  block = _block(sources, cores)
  lanes = pl.BlockSpec((1, block), lambda i: (0, i))
  sums = jax.ShapeDtypeStruct((1, rows), jnp.float32)
  terms, squares = pl.pallas_call(
    functools.partial(_forward_kernel, clip=clip),
    out_shape=(sums, sums),
    grid=(rows // block,),
    in_specs=[
      lanes,
      _whole((len(targets), 1)),
      _whole(targets.shape),
      pl.BlockSpec((block, dim), lambda i: (i, 0)),
    ],
    out_specs=(lanes, lanes),
    compiler_params=_params('parallel'),
    cost_estimate=_cost(rows, targets, 1),
    interpret=interpret,
    name=f'nce_forward_{rows}x{len(targets)}',
  )(owner[None], image[:, None], targets, sources)
  return terms[0], squares[0]


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
  """Gradients of what `forward` computes, from scores computed anew.

  Args:
    sources: As in `forward`, and so are all that are not named here.
    targets, owner, image, clip, interpret: Likewise.
    stats: Of each source, the log of its summed exponentials over all devices,
      the gradient in that log and the gradient in its sum of squares.
    total: Gradient of the targets so far, float32, in one part for each of the
      N cores of a device. None at first.
    cores: Of a device, if `total` does not tell.

  Returns:
    Gradient of the sources in their dtype, `total` with this chunk's share.
  """
  rows, dim = sources.shape
  cores = cores if total is None else len(total)
  block = _block(sources, cores)
  steps = rows // block // cores
  row = lambda core, i: core * steps + i
  chunk = pl.BlockSpec((block, dim), lambda core, i: (row(core, i), 0))
  lanes = lambda n: pl.BlockSpec((n, block), lambda core, i: (0, row(core, i)))
  outside = pl.BlockSpec(memory_space=pl.ANY)
  before = [] if total is None else [total]
  sums = jax.ShapeDtypeStruct((cores, len(targets), dim), jnp.float32)
  return pl.pallas_call(
    functools.partial(_backward_kernel, clip=clip, fresh=not before),
    out_shape=(_like(sources), sums),
    grid=(cores, steps),
    in_specs=[
      lanes(1),
      _whole((len(targets), 1)),
      lanes(3),
      _whole(targets.shape),
      chunk,
      *[outside] * len(before),
    ],
    out_specs=(chunk, outside),
    scratch_shapes=[
      pltpu.VMEM((len(targets), block), sources.dtype),
      pltpu.VMEM(targets.shape, jnp.float32),
      *[pltpu.SemaphoreType.DMA(())] * 2,
    ],
    input_output_aliases={5: 1} if before else {},
    compiler_params=_params('parallel', 'arbitrary'),
    cost_estimate=_cost(rows, targets, 3),
    interpret=interpret,
    name=f'nce_backward_{rows}x{len(targets)}',
  )(owner[None], image[:, None], stats, targets, sources, *before)


def _block(sources, cores):
  """Largest block with as many steps for each core, two of them if it can be.

  The copies of one step then go on during another.
  """
  rows, size = len(sources) // cores, BLOCK // cores
  limit = BLOCK_BYTES // (sources.shape[1] * sources.dtype.itemsize)
  while size > LANES and (rows % size or rows < 2 * size or size > limit):
    size //= 2
  return size


def _params(*semantics):
  return pltpu.CompilerParams(
    dimension_semantics=semantics, vmem_limit_bytes=VMEM_BYTES
  )


def _like(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _whole(shape):
  """All of an array, once: it is the same for every step of the grid."""
  return pl.BlockSpec(
    shape, lambda *_: (0, 0), pipeline_mode=pl.Buffered(buffer_count=1)
  )


def _cost(rows, targets, products):
  scores = rows * len(targets)
  dim, itemsize = targets.shape[1], targets.dtype.itemsize
  return pl.CostEstimate(
    flops=2 * scores * dim * products,
    transcendentals=2 * scores,
    bytes_accessed=products * (rows + len(targets)) * dim * itemsize,
  )


def _pieces(ref):
  size = ref.shape[0]
  step = min(PIECE, size)
  return [slice(start, start + step) for start in range(0, size, step)]


def _ratio(targets, sources, clip):
  """Unclipped scores over `clip`, [targets, sources]."""
  product = lax.dot_general(
    targets,
    sources,
    (((1,), (1,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  return product * (1 / (clip * math.sqrt(sources.shape[1])))


def _negative(owner, image):
  """True where a target is another image's, and no filling."""
  return (owner != image) & (image >= 0)


def _forward_kernel(owner, image, targets, sources, terms, squares, *, clip):
  for piece in _pieces(sources):
    ratio = _ratio(targets[...], sources[piece], clip)
    # At most 0, and so is every sum of exponentials at most its count.
    shifted = clip * jnp.tanh(ratio) - clip
    keep = _negative(owner[:, piece], image[...])
    values = jnp.where(keep, jnp.exp(shifted), 0.0)
    terms[:, piece] = values.sum(0, keepdims=True)
    squares[:, piece] = jnp.square(clip * ratio).sum(0, keepdims=True)


def _score_gradients(owner, image, stats, targets, sources, out, clip):
  """What the unscaled products get, [targets, sources]."""
  scale = 1 / math.sqrt(sources.shape[1])
  for piece in _pieces(sources):
    ratio = _ratio(targets[...], sources[piece], clip)
    bent = jnp.tanh(ratio)
    weight = jnp.exp(clip * bent - stats[0:1, piece])
    weight = weight * ((1 - bent * bent) * (scale * stats[1:2, piece]))
    weight = jnp.where(_negative(owner[:, piece], image[...]), weight, 0.0)
    pull = ratio * (2 * scale * clip * stats[2:3, piece])
    out[:, piece] = (weight + pull).astype(out.dtype)


def _backward_kernel(*refs, clip, fresh):
  owner, image, stats, targets, sources = refs[:5]
  g_sources, total_out, g_scores, total, loading, storing = refs[-6:]
  core, step = pl.program_id(0), pl.program_id(1)
  first, last = step == 0, step == pl.num_programs(1) - 1
  width = _slice(sources.shape[1], total_out.shape[0])
  part = lambda i: pl.ds(pl.multiple_of(i * width, width), width)
  each = functools.partial(lax.fori_loop, 0, sources.shape[1] // width)
  store = pltpu.make_async_copy(total, total_out.at[core], storing)
  if not fresh:
    load = pltpu.make_async_copy(refs[5].at[core], total, loading)
    pl.when(first)(load.start)  # During the first scores.

  _score_gradients(owner, image, stats, targets, sources, g_scores, clip)

  def to_targets(i, _):
    new = jnp.dot(
      g_scores[...], sources[:, part(i)], preferred_element_type=jnp.float32
    )
    old = total[:, part(i)]
    # A step's time is the products', so that choosing costs nothing.
    total[:, part(i)] = new + (jnp.where(first, 0.0, old) if fresh else old)

  def to_sources(i, _):
    g_sources[:, part(i)] = lax.dot_general(
      g_scores[...],
      targets[:, part(i)],
      (((0,), (0,)), ((), ())),
      preferred_element_type=jnp.float32,
    ).astype(g_sources.dtype)

  early = first & ~last & (not fresh)

  @pl.when(early)  # Leaves the load more time.
  def _():
    each(to_sources, None)

  if not fresh:
    pl.when(first)(load.wait)
  each(to_targets, None)
  pl.when(last)(store.start)

  @pl.when(~early)  # Leaves the store some.
  def _():
    each(to_sources, None)

  pl.when(last)(store.wait)


def _slice(dim, cores):
  width = min(dim, SLICE[cores])
  while dim % width:
    width //= 2
  return width
