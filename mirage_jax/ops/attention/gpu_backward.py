"""The backward GPU kernels: one for dq, one for dk and dv.

Two passes over the scores, seven products where one would take five: in one,
blocks of dq would be summed by atomic additions in the order in which programs
happen to end, and no run would be equal to the next.
"""

import functools

import jax
from jax import lax, numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float

from mirage_jax.ops.attention import gpu_forward
from mirage_jax.ops.attention.gpu_blocks import Blocks, Plan
from mirage_jax.ops.attention.gpu_forward import (
  dot,
  inside,
  load,
  log2_scale,
  store,
)


def queries_kernel(*refs, rows: int, blocks: Blocks, interpret: bool) -> None:
  """dq of one block of queries (grid axis 0), head (1) and sample (2).

  Refs: table [2+nk], used [S], q, do [bq D], lse, delta [bq], k, v [S D];
  output dq [bq D]. `rows` queries exist.
  """
  table, used, q, do, lse, delta, k, v, dq = refs
  dim, scale = q.shape[1], log2_scale(q.shape[1])
  product = functools.partial(dot, interpret=interpret)
  here = inside(pl.program_id(0) * blocks.q, blocks.q, rows)
  mine = [load(ref, pl.ds(0, blocks.q), here) for ref in (q, do, lse, delta)]
  queries, gradient, log, inner = mine

  def add(part, keep, total):
    keys = load(k, part, keep)
    s = product(queries, keys, (1, 1))
    p = jnp.exp2(s * scale - log[:, None])
    if keep is not None:
      p = jnp.where(keep[None], p, 0.0)
    dp = product(gradient, load(v, part, keep), (1, 1))
    ds = (p * (dp - inner[:, None])).astype(q.dtype)
    return total + product(ds, keys, (1, 0))

  total = jnp.zeros((blocks.q, dim), jnp.float32)
  total = gpu_forward.each_block(table, used, blocks.k, add, total)
  store(dq, total * dim**-0.5, here)


def keys_kernel(*refs, keys: int, blocks: Blocks, interpret: bool) -> None:
  """dk and dv of one block of keys (grid axis 0), head (1) and sample (2).

  Refs: used [bk], q, do [T D], lse, delta [T], k, v [bk D]; outputs dk, dv
  [bk D]. `keys` exist. Scores stand with keys on rows.
  """
  used, q, do, lse, delta, k, v, dk, dv = refs
  (rows, dim), scale = q.shape, log2_scale(q.shape[1])
  product = functools.partial(dot, interpret=interpret)
  here = inside(pl.program_id(0) * blocks.k, blocks.k, keys)
  own = pl.ds(0, blocks.k)
  keep = load(used, own, here) != 0
  k_own, v_own = load(k, own, keep), load(v, own, keep)

  def add(some, step, sums):
    start = step * blocks.q
    there = inside(start, blocks.q, rows) if some else None
    part = pl.ds(start, blocks.q)
    q_part, gradient, log, inner = (
      load(ref, part, there) for ref in (q, do, lse, delta)
    )
    s = product(k_own, q_part, (1, 1))
    p = jnp.exp2(s * scale - log[None])
    dp = product(v_own, gradient, (1, 1))
    ds = (p * (dp - inner[None])).astype(q.dtype)
    return (
      sums[0] + product(ds, q_part, (1, 0)),
      sums[1] + product(p.astype(do.dtype), gradient, (1, 0)),
    )

  # None of a block without used keys: as many of its queries.
  any_key = jnp.max(keep.astype(jnp.int32))
  whole, count = rows // blocks.q, pl.cdiv(rows, blocks.q)
  zeros = jnp.zeros((blocks.k, dim), jnp.float32)
  sums = zeros, zeros
  if whole:
    sums = lax.fori_loop(
      0, whole * any_key, functools.partial(add, False), sums
    )
  if count > whole:
    sums = lax.fori_loop(
      whole, whole + any_key, functools.partial(add, True), sums
    )
  # A masked key's sums are of weights that mean nothing.
  sums = [jnp.where(keep[:, None], x, 0.0) for x in sums]
  store(dk, sums[0] * dim**-0.5, here)
  store(dv, sums[1], here)


def _like(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _queries(q, k, v, used, do, lse, delta, blocks, interpret):
  (batch, rows, heads, dim), keys = q.shape, k.shape[1]
  table = gpu_forward.tables(used, batch, keys, blocks.k)
  spec = gpu_forward.specs(blocks.q, dim, keys)
  own, row, whole, sample = (
    spec[name] for name in ('block', 'row', 'all', 'sample')
  )
  run = gpu_forward.call(
    functools.partial(queries_kernel, rows=rows),
    blocks,
    interpret,
    name='attention_queries',
    out_shape=_like(q),
    grid=(pl.cdiv(rows, blocks.q), heads, batch),
    in_specs=[
      *(sample(table.shape[1]), sample(keys)),
      *(own, own, row, row, whole, whole),
    ],
    out_specs=own,
  )
  numbers = gpu_forward.as_numbers(used, batch, keys)
  return run(table, numbers, q, do, lse, delta, k, v)


def _keys(q, k, v, used, do, lse, delta, blocks, interpret):
  (batch, rows, heads, dim), keys = q.shape, k.shape[1]
  spec = gpu_forward.specs(blocks.k, dim, rows)
  own, row, whole = (spec[name] for name in ('block', 'all_rows', 'all'))
  run = gpu_forward.call(
    functools.partial(keys_kernel, keys=keys),
    blocks,
    interpret,
    name='attention_keys',
    out_shape=(_like(k), _like(v)),
    grid=(pl.cdiv(keys, blocks.k), heads, batch),
    in_specs=[spec['some'], whole, whole, row, row, own, own],
    out_specs=(own, own),
  )
  numbers = gpu_forward.as_numbers(used, batch, keys)
  return run(numbers, q, do, lse, delta, k, v)


def attention_vjp(
  q: Float[Array, 'B T H D'],
  k: Float[Array, 'B S H D'],
  v: Float[Array, 'B S H D'],
  used: Bool[Array, 'B S'] | None,
  do: Float[Array, 'B T H D'],
  lse: Float[Array, 'B H T'],
  delta: Float[Array, 'B H T'],
  *,
  plan: Plan,
  interpret: bool = False,
) -> tuple[
  Float[Array, 'B T H D'], Float[Array, 'B S H D'], Float[Array, 'B S H D']
]:
  """Runs the kernels.

  Args:
    q: Queries.
    k: Keys.
    v: Values.
    used: True for keys that were used, None for all.
    do: Gradient of the output, in q's dtype.
    lse: log2 of the sums of weights, float32, NO_KEYS for a query without
      keys. May be over more keys than the given ones.
    delta: Sums of output * do over D, float32.
    plan: Tokens of the blocks, powers of two.
    interpret: As of `pallas_call`.

  Returns:
    Gradients of queries, keys and values, 0 for masked keys.
  """
  args = q, k, v, used, do, lse, delta
  dq = _queries(*args, plan.queries, interpret)
  return dq, *_keys(*args, plan.keys, interpret)
