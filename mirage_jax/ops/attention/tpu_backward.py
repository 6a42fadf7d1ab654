"""The backward TPU kernel: dq, dk and dv in one pass over the scores.

Five products per tile of scores, where two passes (dq apart from dk and dv)
would take seven. dk and dv of a block of keys stay on chip while the queries
go by; dq of a block of queries is added up in HBM, from one block of keys to
the next, by copies that overlap with the arithmetic.
"""

import functools
import math

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
  dq, dk, dv, sums, kt, dk_sum, dv_sum, loaded, stored, *sems = refs
  # Read here: the interpreter has no program_id inside of `pl.when`.
  ids = [pl.program_id(axis) for axis in range(4)]
  _, _, j, i = ids
  last_j, last_i = (count - 1 for count in counts)

  @pl.when(i == 0)
  def _():
    kt[...] = k[...].T
    dk_sum[...] = jnp.zeros_like(dk_sum)
    dv_sum[...] = jnp.zeros_like(dv_sum)

  slot = load(sums, loaded, stored, *sems, ids, counts)
  add = functools.partial(
    _add,
    *(q, do, lse, delta, k, v, kt, dk_sum, dv_sum),
    *(loaded.at[slot], stored.at[slot]),
    blocks=blocks,
    dot=functools.partial(dot, interpret=interpret),
  )
  used = states[ids[0], 1 + j] != NONE
  pl.when(used)(add)

  @pl.when(~used)
  def _():
    stored[slot] = loaded[slot]

  store(sums, stored, sems[1], ids, counts)

  @pl.when(j == last_j)
  def _():
    scale = q.shape[1] ** -0.5
    dq[...] = (stored[slot] * scale).T.astype(dq.dtype)

  @pl.when(i == last_i)
  def _():
    turn = (lambda x: x.T) if blocks.transposed else lambda x: x
    # q has the factor log2(e) D ** -0.5; only the scale belongs to dk.
    dk[...] = turn(dk_sum[...] * math.log(2)).astype(dk.dtype)
    dv[...] = turn(dv_sum[...]).astype(dv.dtype)


def _copies(sums, buffer, sem, ids, step, count):
  """The block of dq's sums that grid step `step` of a head works on."""
  block = sums.at[ids[0], ids[1], jax.lax.rem(step, count)]
  slot = jax.lax.rem(step, 2)
  return block, buffer.at[slot], sem.at[slot]


def load(sums, loaded, stored, load_sem, store_sem, ids, counts):
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


def store(sums, stored, sem, ids, counts):
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


def _grid(q, k, blocks):
  """Which blocks a step has, and what stays on chip."""
  (batch, heads, rows, dim), keys = q.shape, k.shape[2]
  bq, bk = blocks.q, blocks.k
  last = keys // bk - 1
  queries = pl.BlockSpec(
    (None, None, bq, dim), lambda b, h, j, i, _: (b, h, i, 0)
  )
  row = pl.BlockSpec((None, None, 1, bq), lambda b, h, j, i, _: (b, h, 0, i))
  keyed = pl.BlockSpec(
    (None, None, bk, dim), lambda b, h, j, i, _: (b, h, j, 0)
  )
  # Written with the last keys only: until then it stays on chip.
  dq = pl.BlockSpec(
    (None, None, bq, dim),
    lambda b, h, j, i, _: (b, h, jnp.where(j == last, i, 0), 0),
  )
  key_sums = pltpu.VMEM(
    (dim, bk) if blocks.transposed else (bk, dim), jnp.float32
  )
  buffers = pltpu.VMEM((2, dim, bq), jnp.float32)
  semaphores = pltpu.SemaphoreType.DMA((2,))
  return pltpu.PrefetchScalarGridSpec(
    num_scalar_prefetch=1,
    grid=(batch, heads, keys // bk, rows // bq),
    in_specs=[queries, queries, row, row, keyed, keyed],
    out_specs=(dq, keyed, keyed, pl.BlockSpec(memory_space=pl.ANY)),
    scratch_shapes=[
      pltpu.VMEM((dim, bk), k.dtype),
      *(key_sums, key_sums, buffers, buffers, semaphores, semaphores),
    ],
  )


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
) -> tuple[
  Float[Array, 'B H T D'], Float[Array, 'B H S D'], Float[Array, 'B H S D']
]:
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
  (batch, heads, rows, dim), keys = q.shape, k.shape[2]
  counts = keys // blocks.k, rows // blocks.q
  shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
  sums = (batch, heads, counts[1], dim, blocks.q)
  dq, dk, dv, _ = pl.pallas_call(
    functools.partial(
      kernel, blocks=blocks, counts=counts, interpret=bool(interpret)
    ),
    out_shape=(*shapes, jax.ShapeDtypeStruct(sums, jnp.float32)),
    grid_spec=_grid(q, k, blocks),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel', 'arbitrary', 'arbitrary'),
      vmem_limit_bytes=blocks.vmem,
    ),
    cost_estimate=pl.CostEstimate(
      flops=10 * batch * heads * rows * keys * dim,
      transcendentals=batch * heads * rows * keys,
      bytes_accessed=12 * batch * heads * dim * rows * counts[0],
    ),
    interpret=interpret,
    name='attention_backward',
  )(states, q, do, lse, delta, k, v)
  return dq, dk, dv
