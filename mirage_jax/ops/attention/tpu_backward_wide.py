"""The backward TPU kernel for matrix units 256 wide and deep, at D = 128.

Scores fill half of such a unit's depth. The other half takes what would be
vector work: minus the log-sum-exp joins the scores there, minus delta their
gradients, and the mask. Scores have queries on rows, so that two of the three
other products load their weights as they lie, and the third as the transpose
units turn them: weights that the matrix unit turns take it twice the time.
Scores of the next queries come between the sums of these.
"""

import functools
import math

import jax
from jax import numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from mirage_jax.ops.attention import tpu_backward, tpu_blocks
from mirage_jax.ops.attention.tpu_forward import MASKED, NONE, dot

# bfloat16 numbers that add up to a float32, and where `extra` has them.
PARTS = 3
DELTA, MASK = PARTS, 2 * PARTS


def extra(
  lse: Float[Array, 'B H 1 T'], delta: Float[Array, 'B H 1 T'], dtype
) -> Float[Array, 'B H T E']:
  """What the products take beside queries: -lse, -delta in parts, and 1."""

  def parts(x):
    x = -x.astype(jnp.float32)
    for _ in range(PARTS):
      # Not by way of astype, which XLA may drop.
      top = jax.lax.reduce_precision(x, 8, 7)
      yield top
      x = x - top

  columns = [*parts(lse[:, :, 0]), *parts(delta[:, :, 0])]
  columns.append(jnp.ones_like(columns[0]))
  stacked = jnp.stack(columns, axis=-1).astype(dtype)
  unused = tpu_blocks.LANES - len(columns)
  return jnp.pad(stacked, ((0, 0),) * 3 + ((0, unused),))


def kernel(states, q, do, more, k, v, mask, *refs, blocks, counts, interpret):
  """One block of keys (grid axis 2) and one of queries (3).

  Refs: as of `tpu_backward.kernel`, but `more` [bq E], see `extra`, for lse and
  delta, and mask [1 bk], 1 for keys to use; scratch k' and v' [D + E bk] with
  what meets `more`, sums of dk and dv [D bk], weights p and ds [bq bk], ds'
  [bk bq], and the buffers.
  """
  dq, dk, dv, sums, kt, vt, dk_sum, dv_sum, *refs = refs
  p, ds, turned, *buffers = refs
  # Read here: the interpreter has no program_id inside of `pl.when`.
  ids = [pl.program_id(axis) for axis in range(4)]
  _, _, j, i = ids
  dim = q.shape[1]

  @pl.when(i == 0)
  def _():
    row = jax.lax.broadcasted_iota(jnp.int32, (more.shape[1], k.shape[0]), 0)
    ones = lambda where: jnp.where(where, 1.0, 0.0)
    hidden = jnp.where(mask[...] > 0, 0.0, MASKED)
    kt[:dim] = k[...].T
    kt[dim:] = jnp.where(row == MASK, hidden, ones(row < PARTS)).astype(
      kt.dtype
    )
    vt[:dim] = v[...].T
    vt[dim:] = ones((row >= DELTA) & (row < MASK)).astype(vt.dtype)
    dk_sum[...] = jnp.zeros_like(dk_sum)
    dv_sum[...] = jnp.zeros_like(dv_sum)

  add = functools.partial(
    _add,
    *(q, do, more, kt, vt, p, ds, turned, dk_sum, dv_sum),
    sub=blocks.sub,
    dot=functools.partial(dot, interpret=interpret),
  )
  used = states[ids[0], 1 + j] != NONE
  tpu_backward.accumulate(add, used, dq, sums, buffers, ids, counts)

  @pl.when(i == counts[1] - 1)
  def _():
    # q has the factor log2(e) D ** -0.5; only the scale belongs to dk.
    dk[...] = (dk_sum[...] * math.log(2)).T.astype(dk.dtype)
    dv[...] = dv_sum[...].T.astype(dv.dtype)


def _add(
  q,
  do,
  more,
  kt,
  vt,
  p,
  ds,
  turned,
  dk,
  dv,
  before,
  after,
  *,
  sub,
  dot,
):
  """Adds one tile's part to all three gradients, `sub` queries at a time."""
  dim = q.shape[1]

  def weights(part):
    left = jnp.concatenate([q[part, :], more[part, :]], axis=1)
    # Stored at once, as what the product with do takes.
    p[part, :] = jnp.exp2(dot(left, kt[...], (1, 0))).astype(p.dtype)

  def slopes(part):
    left = jnp.concatenate([do[part, :], more[part, :]], axis=1)
    dp = dot(left, vt[...], (1, 0))
    slope = (p[part, :].astype(jnp.float32) * dp).astype(ds.dtype)
    ds[part, :] = slope
    # By way of memory, or else the matrix unit turns it.
    turned[:, part] = slope.T

  def dks(part):
    dk[...] += dot(q[part, :].T, ds[part, :], (1, 0))

  def dvs(part):
    dv[...] += dot(do[part, :].T, p[part, :], (1, 0))

  def dqs(part):
    sums = dot(kt[:dim], turned[:, part], (1, 0))
    after[:, part] = before[:, part] + sums

  # Between two products whose results the vector units work on, one whose
  # results are only added.
  waiting = None
  for start in range(0, q.shape[0], sub):
    part = pl.ds(start, min(sub, q.shape[0] - start))
    weights(part)
    if waiting is not None:
      dks(waiting)
    slopes(part)
    dvs(part)
    if waiting is not None:
      dqs(waiting)
    waiting = part
  dks(waiting)
  dqs(waiting)


def attention_vjp(
  q: Float[Array, 'B H T D'],
  k: Float[Array, 'B H S D'],
  v: Float[Array, 'B H S D'],
  do: Float[Array, 'B H T D'],
  more: Float[Array, 'B H T E'],
  mask: Float[Array, 'B S'],
  states: Int[Array, 'B _'],
  *,
  blocks: tpu_blocks.Blocks,
  interpret=False,
) -> list[Float[Array, 'B H _ D']]:
  """Runs the kernel on arrays that are whole numbers of blocks; D is 128.

  Args as of `tpu_backward.attention_vjp`, and
    more: `extra` of log-sum-exp and delta, 0 for padding.
    mask: 1 for keys that are used, else 0.

  Returns:
    Gradients of the unscaled queries, keys and values; 0 for masked keys.
  """
  dim, bq, bk, width = q.shape[3], blocks.q, blocks.k, more.shape[3]
  rows = [tpu_backward.queries(blocks, size) for size in (dim, dim, width)]
  columns = [tpu_backward.keyed(blocks, dim)] * 2
  hidden = pl.BlockSpec((None, 1, bk), lambda b, h, j, i, _: (b, 0, j))
  turned_keys = pltpu.VMEM((dim + width, bk), k.dtype)
  key_sums = pltpu.VMEM((dim, bk), jnp.float32)
  scores = pltpu.VMEM((bq, bk), k.dtype)
  return tpu_backward.run(
    kernel,
    (states, q, do, more, k, v, mask[:, None]),
    (q, k, v),
    in_specs=[*rows, *columns, hidden],
    scratch=[
      *(turned_keys, turned_keys, key_sums, key_sums, scores, scores),
      pltpu.VMEM((bk, bq), k.dtype),
    ],
    blocks=blocks,
    moved=14,
    interpret=interpret,
  )
