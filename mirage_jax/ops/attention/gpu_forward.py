"""The forward GPU kernel: a program has a block of queries and one head.

It walks over those blocks of keys that have used ones: first the ones without
a masked key, as a loop without masks that Triton can pipeline, then the others.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
from jax import lax, numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from mirage_jax.ops.attention.gpu_blocks import Blocks
from mirage_jax.ops.attention.reference import MASKED

# The log2-sum-exp of a query without keys: 2 ** (s - it) is 0.
NO_KEYS = 1e30


def dot(
  a: Array, b: Array, contract: tuple[int, int], interpret: bool
) -> Array:
  """a b over one dimension of each, summed in float32."""
  dims = (((contract[0],), (contract[1],)), ((), ()))
  precision = None
  if interpret:  # XLA's CPU code lacks some products of bfloat16.
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    precision = lax.Precision.HIGHEST
  elif a.dtype == jnp.float32:  # Tensor cores, and nearly float32.
    precision = lax.DotAlgorithmPreset.TF32_TF32_F32_X3
  return lax.dot_general(
    a, b, dims, precision=precision, preferred_element_type=jnp.float32
  )


def log2_scale(dim: int) -> float:
  """What makes log2 of weights of products of queries and keys."""
  return math.log2(math.e) * dim**-0.5


def inside(start: Int[Array, ''], size: int, total: int) -> Any:
  """Which of `size` tokens from `start` exist; None if all surely do."""
  return None if total % size == 0 else start + jnp.arange(size) < total


def load(ref: Any, part: Any, keep: Any) -> Array:
  """Tokens of a ref [T] or [T D], zeros where not `keep`."""
  if keep is None:
    return ref[part] if ref.ndim == 1 else ref[part, :]
  if ref.ndim == 1:
    return plgpu.load(ref.at[part], mask=keep, other=0)
  return plgpu.load(ref.at[part, :], mask=keep[:, None], other=0.0)


def store(ref: Any, value: Array, keep: Any) -> None:
  """Writes a block; only rows to `keep`, if not None."""
  value = value.astype(ref.dtype)
  if keep is None:
    ref[...] = value
  else:
    mask = keep if value.ndim == 1 else keep[:, None]
    plgpu.store(ref, value, mask=mask)


def tables(
  used: Bool[Array, 'B S'] | None, batch: int, keys: int, size: int
) -> Int[Array, 'B _']:
  """Which blocks of `size` keys to visit, for `each_block`.

  Returns:
    Of each sample, how many blocks have used keys only; how many have any; all
    blocks in the order of how full they are.
  """
  count = pl.cdiv(keys, size)
  if used is None:
    order = np.array([keys // size, count, *range(count)], np.int32)
    return jnp.broadcast_to(order, (batch, len(order)))
  used = jnp.pad(used, ((0, 0), (0, count * size - keys)))
  used = used.reshape(batch, count, size)
  whole, some = jnp.all(used, axis=2), jnp.any(used, axis=2)
  order = jnp.argsort(2 - whole.astype(jnp.int32) - some, axis=1, stable=True)
  ends = jnp.stack([jnp.sum(x, axis=1) for x in (whole, some)], axis=1)
  return jnp.concatenate([ends, order], axis=1).astype(jnp.int32)


def each_block(
  table: Any, used: Any, size: int, add: Callable[..., Any], carry: Any
) -> Any:
  """carry = add(keys' slice, keys to use or None for all, carry), each block.

  Args:
    table: A ref with a row of `tables`.
    used: A ref [S], 0 for keys that are not used.
    size: Keys of a block.
    add: The function.
    carry: What it starts with.
  """

  def whole(step, carry):
    return add(pl.ds(table[2 + step] * size, size), None, carry)

  def partly(step, carry):
    start = table[2 + step] * size
    part = pl.ds(start, size)
    keep = load(used, part, inside(start, size, used.shape[0])) != 0
    return add(part, keep, carry)

  if used.shape[0] >= size:  # Else no block is whole, nor could it be read.
    carry = lax.fori_loop(0, table[0], whole, carry)
  return lax.fori_loop(table[0], table[1], partly, carry)


def kernel(table, used, q, k, v, out, lse, *, rows, blocks, interpret):
  """One block of queries (grid axis 0), one head (1) and one sample (2).

  Refs: table [2+nk], used [S], q [bq D], k, v [S D]; outputs out [bq D] and the
  log2-sum-exp [bq]. `rows` queries exist.
  """
  dim, scale = q.shape[1], log2_scale(q.shape[1])
  product = functools.partial(dot, interpret=interpret)
  here = inside(pl.program_id(0) * blocks.q, blocks.q, rows)
  queries = load(q, pl.ds(0, blocks.q), here)

  def add(part, keep, carry):
    acc, total, top = carry
    s = product(queries, load(k, part, keep), (1, 1))
    if keep is not None:
      s = jnp.where(keep[None], s, MASKED)
    now = jnp.maximum(top, jnp.max(s, axis=1))
    # One multiplication and addition for each score.
    p = jnp.exp2(s * scale - (now * scale)[:, None])
    fade = jnp.exp2((top - now) * scale)
    values = load(v, part, keep)
    acc = acc * fade[:, None] + product(p.astype(v.dtype), values, (1, 0))
    return acc, total * fade + jnp.sum(p, axis=1), now

  # Every block that is visited has a key for all queries, so that a maximum is
  # one of real scores.
  acc, total, top = each_block(
    table,
    used,
    blocks.k,
    add,
    (
      jnp.zeros((blocks.q, dim), jnp.float32),
      jnp.zeros(blocks.q, jnp.float32),
      jnp.full(blocks.q, MASKED, jnp.float32),
    ),
  )
  some = total > 0
  total = jnp.where(some, total, 1.0)
  store(out, acc / total[:, None], here)
  log = top * scale + jnp.log2(total)
  store(lse, jnp.where(some, log, NO_KEYS), here)


def specs(size: int, dim: int, tokens: int) -> dict[str, Any]:
  """Blocks for a grid of (block of tokens, head, sample).

  Args:
    size: Tokens in the block of a program.
    dim: D.
    tokens: Those of the arrays that each program has whole.

  Returns:
    'block' and 'row' of arrays [B T H D] and [B H T]; 'all' and 'all_rows' of
    the whole; 'some' of an array [B _], and 'sample' for n of all of it.
  """
  return {
    'block': pl.BlockSpec(
      (None, size, None, dim), lambda i, h, b: (b, i, h, 0)
    ),
    'row': pl.BlockSpec((None, None, size), lambda i, h, b: (b, h, i)),
    'all': pl.BlockSpec(
      (None, tokens, None, dim), lambda i, h, b: (b, 0, h, 0)
    ),
    'all_rows': pl.BlockSpec((None, None, tokens), lambda i, h, b: (b, h, 0)),
    'some': pl.BlockSpec((None, size), lambda i, h, b: (b, i)),
    'sample': lambda n: pl.BlockSpec((None, n), lambda i, h, b: (b, 0)),
  }


def attention(
  q: Float[Array, 'B T H D'],
  k: Float[Array, 'B S H D'],
  v: Float[Array, 'B S H D'],
  used: Bool[Array, 'B S'] | None,
  *,
  blocks: Blocks,
  interpret: bool = False,
) -> tuple[Float[Array, 'B T H D'], Float[Array, 'B H T']]:
  """Runs the kernel.

  Args:
    q: Queries.
    k: Keys.
    v: Values.
    used: True for keys to use, None for all.
    blocks: Tokens of the blocks, powers of two.
    interpret: As of `pallas_call`.

  Returns:
    The output, and float32 log2 of the sums of weights.
  """
  (batch, rows, heads, dim), keys = q.shape, k.shape[1]
  table = tables(used, batch, keys, blocks.k)
  spec = specs(blocks.q, dim, keys)
  run = call(
    functools.partial(kernel, rows=rows),
    blocks,
    interpret,
    out_shape=(
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct((batch, heads, rows), jnp.float32),
    ),
    grid=(pl.cdiv(rows, blocks.q), heads, batch),
    in_specs=[
      spec['sample'](table.shape[1]),
      spec['sample'](keys),
      spec['block'],
      spec['all'],
      spec['all'],
    ],
    out_specs=(spec['block'], spec['row']),
    name='attention_forward',
  )
  return run(table, as_numbers(used, batch, keys), q, k, v)


def call(
  kernel: Callable[..., None], blocks: Blocks, interpret: bool, **options: Any
) -> Callable[..., Any]:
  """A `pallas_call` of a kernel that takes blocks and interpret by name."""
  return pl.pallas_call(
    functools.partial(kernel, blocks=blocks, interpret=interpret),
    compiler_params=plgpu.CompilerParams(
      num_warps=blocks.warps, num_stages=blocks.stages
    ),
    interpret=interpret,
    **options,
  )


def as_numbers(
  used: Bool[Array, 'B S'] | None, batch: int, keys: int
) -> Int[Array, 'B S']:
  """The mask for the kernels."""
  if used is None:
    return jnp.ones((batch, keys), jnp.int32)
  return used.astype(jnp.int32)
