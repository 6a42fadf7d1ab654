"""The forward TPU kernel: scores with keys on rows, queries on columns.

Every product is laid out so that a matrix unit holds a full tile of weights
and streams the head dimension's rows (O' = V' P', primes are transposes), and
so that maxima and sums over keys are plain sums of registers.
"""

import functools

import jax
from jax import numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from mirage_jax.ops.attention import tpu_blocks

# Of a block of keys, in the table of states. 0 must be the usual one: cycle
# models take scalars they cannot know for 0.
ALL, SOME, NONE = 0, 1, 2
MASKED = -1e30
# The log2-sum-exp of a query without keys: 2 ** (s - it) is 0.
NO_KEYS = 1e30
SUBLANES = 8


def dot(
  a: Array, b: Array, contract: tuple[int, int], interpret: bool
) -> Array:
  """a b over one dimension of each, summed in float32."""
  if interpret:  # XLA's CPU code lacks some products of bfloat16.
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  dims = (((contract[0],), (contract[1],)), ((), ()))
  # float32 inputs are there for tests and for hardware with time to spare.
  precision = None if a.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
  return jax.lax.dot_general(
    a, b, dims, precision=precision, preferred_element_type=jnp.float32
  )


def kernel(states, q, k, v, mask, *refs, blocks, interpret):
  """One block of queries (grid axis 2) and one of keys (3).

  Refs: states [B 1+nk] in scalar memory; q [bq D] times log2(e) D ** -0.5; k, v
  [bk D]; mask [bk/sub 1 sub], 1 for keys to use; outputs o [bq D] and the
  log2-sum-exp [1 bq]; scratch o' [D bq], sums [8 bq] and what was subtracted
  from the scores [1 bq].
  """
  out, lse, acc, total, top = refs
  b, j = pl.program_id(0), pl.program_id(3)
  unbounded, state = states[b, 0] != 0, states[b, 1 + j]

  @pl.when(j == 0)
  def _():
    acc[...] = jnp.zeros_like(acc)
    total[...] = jnp.zeros_like(total)
    top[...] = jnp.full_like(top, jnp.where(unbounded, MASKED, 0.0))

  product = functools.partial(dot, interpret=interpret)
  usual = (state == ALL) & ~unbounded

  @pl.when(usual)
  def _():
    # Scores of the next keys come before these are weighted, so that the
    # matrix units need not wait for the others.
    waiting = None
    for start in range(0, k.shape[0], blocks.sub):
      part = pl.ds(start, blocks.sub)
      p = jnp.exp2(product(k[part, :], q[...], (1, 1)))
      _count(p, total)
      if waiting is not None:
        _weigh(v, *waiting, acc, product)
      waiting = part, p.astype(v.dtype)
    _weigh(v, *waiting, acc, product)

  @pl.when((state != NONE) & ~usual)
  def _():
    add = functools.partial(
      _add, q, k, v, mask, acc, total, top, unbounded, product
    )
    jax.lax.fori_loop(0, mask.shape[0], add, None)

  @pl.when(j == pl.num_programs(3) - 1)
  def _():
    sums = jnp.sum(total[...], axis=0, keepdims=True)
    some = sums > 0
    sums = jnp.where(some, sums, jnp.ones_like(sums))
    log = jnp.log2(sums) + top[...]
    lse[...] = jnp.where(some, log, jnp.full_like(log, NO_KEYS))
    out[...] = (acc[...] / sums).T.astype(out.dtype)


def _count(p, total):
  """Adds weights."""
  # Registers are added as they are; the 8 rows of one at the end.
  total[...] += jnp.sum(p.reshape(-1, SUBLANES, p.shape[1]), axis=0)


def _weigh(v, part, p, acc, product):
  """Adds values by their weights."""
  acc[...] += product(v[part, :].T, p, (1, 0))


def _add(q, k, v, mask, acc, total, top, unbounded, product, step, _):
  """`mask.shape[-1]` keys with a mask, and a running maximum if unbounded."""
  sub, lanes = mask.shape[-1], tpu_blocks.LANES
  part = pl.ds(pl.multiple_of(step * sub, sub), sub)
  s = product(k[part, :], q[...], (1, 1))
  # A row turned into a column, by way of a whole tile.
  valid = jnp.broadcast_to(mask[step], (lanes, sub)).T
  valid = jnp.tile(valid, (1, q.shape[0] // lanes))
  s = jnp.where(valid > 0, s, jnp.full_like(s, MASKED))
  before = top[...]
  now = jnp.maximum(before, jnp.max(s, axis=0, keepdims=True))
  now = jnp.where(unbounded, now, before)
  top[...] = now
  scale = jnp.exp2(before - now)
  total[...] *= scale
  acc[...] *= scale
  # A query that has seen no key yet has its maximum at MASKED.
  p = jnp.exp2(s - jnp.maximum(now, MASKED / 2))
  _count(p, total)
  _weigh(v, part, p.astype(v.dtype), acc, product)


def _grid(q, k, blocks):
  """Which blocks a step has, and what stays on chip."""
  (batch, heads, rows, dim), keys = q.shape, k.shape[2]
  bq, bk, sub = blocks.q, blocks.k, blocks.sub

  def key_block(b, h, i, j, states):
    # A block that is not used is not fetched either.
    return b, h, jnp.where(states[b, 1 + j] == NONE, 0, j), 0

  queries = pl.BlockSpec(
    (None, None, bq, dim), lambda b, h, i, j, _: (b, h, i, 0)
  )
  row = pl.BlockSpec((None, None, 1, bq), lambda b, h, i, j, _: (b, h, 0, i))
  keyed = pl.BlockSpec((None, None, bk, dim), key_block)
  mask = pl.BlockSpec(
    (None, bk // sub, 1, sub), lambda b, h, i, j, _: (b, j, 0, 0)
  )
  return pltpu.PrefetchScalarGridSpec(
    num_scalar_prefetch=1,
    grid=(batch, heads, rows // bq, keys // bk),
    in_specs=[queries, keyed, keyed, mask],
    out_specs=(queries, row),
    scratch_shapes=[
      pltpu.VMEM((dim, bq), jnp.float32),
      pltpu.VMEM((SUBLANES, bq), jnp.float32),
      pltpu.VMEM((1, bq), jnp.float32),
    ],
  )


def attention(
  q: Float[Array, 'B H T D'],
  k: Float[Array, 'B H S D'],
  v: Float[Array, 'B H S D'],
  states: Int[Array, 'B _'],
  mask: Float[Array, 'B S'],
  *,
  blocks: tpu_blocks.Blocks,
  interpret=False,
) -> tuple[Float[Array, 'B H T D'], Float[Array, 'B H 1 T']]:
  """Runs the kernel on arrays that are whole numbers of blocks.

  Args:
    q: Queries times log2(e) D ** -0.5.
    k: Keys.
    v: Values, 0 where masked.
    states: First 0 if no |score| of the sample reaches `tpu.BOUND`, so that 2 **
      score can be summed as it is, and 1 if the running maximum has to be
      subtracted; then ALL, SOME or NONE for the keys of each block.
    mask: 1 for keys that are used, else 0.
    blocks: Tokens of the blocks.
    interpret: As of `pallas_call`.

  Returns:
    The output, and float32 log2 of the sums of 2 ** score.
  """
  (batch, heads, rows, dim), keys = q.shape, k.shape[2]
  return pl.pallas_call(
    functools.partial(kernel, blocks=blocks, interpret=bool(interpret)),
    out_shape=(
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct((batch, heads, 1, rows), jnp.float32),
    ),
    grid_spec=_grid(q, k, blocks),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel', 'parallel', 'arbitrary'),
      vmem_limit_bytes=blocks.vmem,
    ),
    cost_estimate=pl.CostEstimate(
      flops=4 * batch * heads * rows * keys * dim,
      transcendentals=batch * heads * rows * keys,
      bytes_accessed=4 * batch * heads * dim * rows * (1 + keys // blocks.q),
    ),
    interpret=interpret,
    name='attention_forward',
  )(states, q, k, v, mask.reshape(batch, -1, 1, blocks.sub))
