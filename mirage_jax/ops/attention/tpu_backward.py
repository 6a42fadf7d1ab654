"""The backward TPU kernel: dq, dk and dv in one pass over the scores.

Five products per tile of scores, where two passes (dq apart from dk and dv)
would take seven. dk and dv of a block of keys stay on chip while the queries
go by; dq of a block of queries is added up in HBM, from one block of keys to
the next, by copies that overlap with the arithmetic.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

import jax
from jax import numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from mirage_jax.ops.attention import tpu_blocks
from mirage_jax.ops.attention.tpu_forward import NONE, dot

# A store to HBM is awaited two steps later. With fewer blocks of queries than
# these the same block could be loaded before.
OVERLAPPED = 3


def kernel(states, q, do, lse, delta, k, v, *refs, blocks, counts, interpret):
  """One block of keys (grid axis 2) and one of queries (3).

  Refs: q, do [bq D], lse, delta [1 bq], k, v [bk D]; outputs dq [bq D], dk, dv
  [bk D] and dq's sums in HBM [B H nq D bq]; scratch k' [D bk], sums of dk and
  dv, two buffers each for dq's sums as loaded and stored, with semaphores.
  """
  dq, dk, dv, sums, kt, dk_sum, dv_sum, *buffers = refs
  # Read here: the interpreter has no program_id inside of `pl.when`.
  ids = [pl.program_id(axis) for axis in range(4)]
  _, _, j, i = ids

  @pl.when(i == 0)
  def _():
    kt[...] = k[...].T
    dk_sum[...] = jnp.zeros_like(dk_sum)
    dv_sum[...] = jnp.zeros_like(dv_sum)

  add = functools.partial(
    _add,
    *(q, do, lse, delta, k, v, kt, dk_sum, dv_sum),
    blocks=blocks,
    dot=functools.partial(dot, interpret=interpret),
  )
  used = states[ids[0], 1 + j] != NONE
  accumulate(add, used, dq, sums, buffers, ids, counts)

  @pl.when(i == counts[1] - 1)
  def _():
    turn = (lambda x: x.T) if blocks.transposed else lambda x: x
    # q has the factor log2(e) D ** -0.5; only the scale belongs to dk.
    dk[...] = turn(dk_sum[...] * math.log(2)).astype(dk.dtype)
    dv[...] = turn(dv_sum[...]).astype(dv.dtype)


def accumulate(add, used, dq, sums, buffers, ids, counts):
  """Takes dq's sums one block of keys further; dq is written with the last.

  Args:
    add: (before, after) -> None, refs [D bq], where the keys are `used`.
    used: Whether any of the keys are.
    dq: The output's block [bq D].
    sums: In HBM [B H nq D bq].
    buffers: Those of sums as loaded and as stored, with their semaphores.
    ids: Of the grid step.
    counts: Blocks of keys, and of queries.
  """
  loaded, stored, load_sem, store_sem = buffers
  slot = _load(sums, loaded, stored, load_sem, store_sem, ids, counts)

  @pl.when(used)
  def _():
    add(loaded.at[slot], stored.at[slot])

  @pl.when(~used)
  def _():
    stored[slot] = loaded[slot]

  _store(sums, stored, store_sem, ids, counts)

  @pl.when(ids[2] == counts[0] - 1)
  def _():
    dq[...] = (stored[slot] * dq.shape[1] ** -0.5).T.astype(dq.dtype)


def _copies(sums, buffer, sem, ids, step, count):
  """The block of dq's sums that grid step `step` of a head works on."""
  block = sums.at[ids[0], ids[1], jax.lax.rem(step, count)]
  slot = jax.lax.rem(step, 2)
  return block, buffer.at[slot], sem.at[slot]


def _load(sums, loaded, stored, load_sem, store_sem, ids, counts):
  """Has dq's sums so far in `loaded`, and `stored` free; returns the slot."""
  (_, _, j, i), (blocks, count) = ids, counts
  step, steps = j * count + i, blocks * count

  def load(step):
    block, buffer, sem = _copies(sums, loaded, load_sem, ids, step, count)
    return pltpu.make_async_copy(block, buffer, sem)

  if count >= OVERLAPPED:
    # Two steps ago there was a store, unless it was of the last keys' block.
    @pl.when((step >= 2) & (step - 2 < steps - count))
    def _():
      block, buffer, sem = _copies(
        sums, stored, store_sem, ids, step - 2, count
      )
      pltpu.make_async_copy(buffer, block, sem).wait()

    @pl.when((step + 1 >= count) & (step + 1 < steps))
    def _():
      load(step + 1).start()
  else:

    @pl.when(j > 0)
    def _():
      load(step).start()

  slot = jax.lax.rem(step, 2)

  @pl.when(j > 0)
  def _():
    load(step).wait()

  @pl.when(j == 0)
  def _():
    loaded[slot] = jnp.zeros_like(loaded[slot])

  return slot


def _store(sums, stored, sem, ids, counts):
  """Sends dq's sums to HBM; after the last keys nobody needs them."""
  (_, _, j, i), (blocks, count) = ids, counts

  @pl.when(j < blocks - 1)
  def _():
    step = j * count + i
    block, buffer, slot_sem = _copies(sums, stored, sem, ids, step, count)
    copy = pltpu.make_async_copy(buffer, block, slot_sem)
    copy.start()
    if count < OVERLAPPED:
      copy.wait()


def _add(q, do, lse, delta, k, v, kt, dk, dv, before, after, *, blocks, dot):
  """Adds one tile's part to all three gradients, `sub` keys at a time."""
  dtype = q.dtype
  qt = q[...].T if blocks.transposed else None
  dot_t = do[...].T if blocks.transposed else None
  for start in range(0, k.shape[0], blocks.sub):
    part = pl.ds(start, blocks.sub)
    s = dot(k[part, :], q[...], (1, 1))
    # A weight is at most 1: this only matters for keys that are masked, whose
    # score is 0; their gradients are dropped, but must be finite.
    p = jnp.exp2(jnp.minimum(s - lse[...], 0.0))
    dp = dot(v[part, :], do[...], (1, 1))
    ds = (p * (dp - delta[...])).astype(dtype)
    p = p.astype(dtype)
    if blocks.transposed:
      dv[:, part] += dot(dot_t, p, (1, 1))
      dk[:, part] += dot(qt, ds, (1, 1))
    else:
      dv[part, :] += dot(p, do[...], (1, 0))
      dk[part, :] += dot(ds, q[...], (1, 0))
    sofar = before[...] if start == 0 else after[...]
    after[...] = sofar + dot(kt[:, part], ds, (1, 0))


def queries(blocks: tpu_blocks.Blocks, size: int) -> pl.BlockSpec:
  """Of an array [B H T size]."""
  return pl.BlockSpec(
    (None, None, blocks.q, size), lambda b, h, j, i, _: (b, h, i, 0)
  )


def keyed(blocks: tpu_blocks.Blocks, size: int) -> pl.BlockSpec:
  """Of an array [B H S size]."""
  return pl.BlockSpec(
    (None, None, blocks.k, size), lambda b, h, j, i, _: (b, h, j, 0)
  )


def _last(blocks, dim, last):
  """Of dq. Written with the last keys only: until then it stays on chip."""
  return pl.BlockSpec(
    (None, None, blocks.q, dim),
    lambda b, h, j, i, _: (b, h, jnp.where(j == last, i, 0), 0),
  )


def run(
  kernel: Callable[..., None],
  arrays: Sequence[Array],
  like: Sequence[Array],
  *,
  in_specs: Sequence[pl.BlockSpec],
  scratch: Sequence[Any],
  blocks: tpu_blocks.Blocks,
  moved: int,
  interpret: Any,
) -> list[Array]:
  """The three gradients by a kernel that calls `accumulate`.

  Args:
    kernel: Its refs are of `arrays`, dq, dk, dv, dq's sums, `scratch` and the
      buffers; blocks, counts and interpret come by name.
    arrays: `states` of the blocks of keys, then what `in_specs` are of.
    like: q, k and v.
    in_specs: For a grid of sample, head, block of keys and block of queries.
    scratch: Shapes on chip.
    blocks: Tokens of the blocks.
    moved: Bytes to and from memory for each number of a block of q, a step.
    interpret: As of `pallas_call`.
  """
  (batch, heads, rows, dim), keys = like[0].shape, like[1].shape[2]
  counts = keys // blocks.k, rows // blocks.q
  shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like]
  sums = (batch, heads, counts[1], dim, blocks.q)
  buffers = pltpu.VMEM((2, dim, blocks.q), jnp.float32)
  semaphores = pltpu.SemaphoreType.DMA((2,))
  *gradients, _ = pl.pallas_call(
    functools.partial(
      kernel, blocks=blocks, counts=counts, interpret=bool(interpret)
    ),
    out_shape=(*shapes, jax.ShapeDtypeStruct(sums, jnp.float32)),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(batch, heads, *counts),
      in_specs=in_specs,
      out_specs=(
        _last(blocks, dim, counts[0] - 1),
        *(keyed(blocks, dim), keyed(blocks, dim)),
        pl.BlockSpec(memory_space=pl.ANY),
      ),
      scratch_shapes=[*scratch, buffers, buffers, semaphores, semaphores],
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel', 'arbitrary', 'arbitrary'),
      vmem_limit_bytes=blocks.vmem,
    ),
    cost_estimate=pl.CostEstimate(
      flops=10 * batch * heads * rows * keys * dim,
      transcendentals=batch * heads * rows * keys,
      bytes_accessed=moved * batch * heads * dim * rows * counts[0],
    ),
    interpret=interpret,
    name='attention_backward',
  )(*arrays)
  return gradients


def attention_vjp(
  q: Float[Array, 'B H T D'],
  k: Float[Array, 'B H S D'],
  v: Float[Array, 'B H S D'],
  do: Float[Array, 'B H T D'],
  lse: Float[Array, 'B H 1 T'],
  delta: Float[Array, 'B H 1 T'],
  states: Int[Array, 'B _'],
  *,
  blocks: tpu_blocks.Blocks,
  interpret=False,
) -> list[Float[Array, 'B H _ D']]:
  """Runs the kernel on arrays that are whole numbers of blocks.

  Args:
    q: Queries times log2(e) D ** -0.5.
    k: Keys, 0 where masked.
    v: Values, 0 where masked.
    do: Gradient of the output, 0 for padding.
    lse: log2 of the sums of 2 ** score, float32.
    delta: Sums of output * do over D, float32.
    states: As of `tpu_forward.attention`, for these blocks.
    blocks: Tokens of the blocks.
    interpret: As of `pallas_call`.

  Returns:
    Gradients of the unscaled queries, keys and values. Those of masked keys
    are finite, but mean nothing.
  """
  dim, bq, bk = q.shape[3], blocks.q, blocks.k
  row = pl.BlockSpec((None, None, 1, bq), lambda b, h, j, i, _: (b, h, 0, i))
  key_sums = pltpu.VMEM(
    (dim, bk) if blocks.transposed else (bk, dim), jnp.float32
  )
  return run(
    kernel,
    (states, q, do, lse, delta, k, v),
    (q, k, v),
    in_specs=[
      *(queries(blocks, dim), queries(blocks, dim), row, row),
      *(keyed(blocks, dim), keyed(blocks, dim)),
    ],
    scratch=[pltpu.VMEM((dim, bk), k.dtype), key_sums, key_sums],
    blocks=blocks,
    moved=12,
    interpret=interpret,
  )
