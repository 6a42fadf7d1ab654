"""RMSNorm and rotary positions of queries and keys in one Pallas kernel.

XLA takes three passes and copies around them: it sums over lanes apart from
scaling, and cuts halves of 64 lanes into arrays that fill half of their memory.
Here heads lie on the outside, as the projection gives them and attention takes
them, a half is moved by turning lanes around, and the backward kernel reduces the
angles' gradient to that of the frequencies before it leaves the chip.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
from jax import lax, numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

# Tokens of a block.
BLOCK = 256
SUBLANES, ROWS = 8, 16
VMEM = 56 << 20


def turned(
  qkv: Float[Array, 'B T 3 H D'],
  weights: Float[Array, '2 D'],
  turns: Float[Array, '_ H T D'],
  positions: Float[Array, '_ T 3'],
  frequencies: Float[Array, '3 H P'],
  *,
  eps: float,
  interpret=False,
) -> list[Float[Array, 'B T H D']]:
  """See `api.turned`; of one device."""
  batch, length, _, heads, dim = qkv.shape
  x = qkv.transpose(0, 2, 3, 1, 4).reshape(batch, 3 * heads, length, dim)
  parts = _turned(x, weights, turns, positions, frequencies, eps, interpret)
  return [jnp.swapaxes(part, 1, 2) for part in parts]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _turned(x, weights, turns, positions, frequencies, eps, interpret):
  return _forward(x, weights, turns, positions, frequencies, eps, interpret)[0]


def _forward(x, weights, turns, positions, frequencies, eps, interpret):
  del frequencies  # They are in the turns.
  shape = (x.shape[0], x.shape[1] // 3, *x.shape[2:])
  out = [jax.ShapeDtypeStruct(shape, x.dtype)] * 3
  parts = _call(forward, [x, weights, turns], out, eps, interpret)
  return parts, (x, weights, turns, positions)


def _backward(eps, interpret, saved, gradients):
  x, weights, turns, positions = saved
  heads, dim = turns.shape[1], x.shape[3]
  halves = _grid(x)[1]
  out = [
    jax.ShapeDtypeStruct(x.shape, x.dtype),
    jax.ShapeDtypeStruct(
      (x.shape[0], halves, heads, SUBLANES, dim), jnp.float32
    ),
  ]
  arrays = [x, weights, turns, positions, *gradients]
  dx, sums = _call(backward, arrays, out, eps, interpret)
  sums = jnp.sum(sums, axis=(0, 1))
  dweights = jnp.sum(sums[:, 3:5], axis=0)
  first, second = jnp.split(jnp.swapaxes(sums[:, :3], 0, 1), 2, axis=-1)
  return dx, dweights, None, None, first - second


_turned.defvjp(_forward, _backward)


def _grid(x):
  """Tokens of a block, and a grid of samples, parts for two cores, blocks."""
  length = x.shape[2]
  block = min(BLOCK, -(-length // ROWS) * ROWS)
  count = pl.cdiv(length, block)
  halves = 2 if count % 2 == 0 else 1
  return x.shape[0], halves, count // halves, block


def _call(
  kernel: Callable[..., None],
  arrays: Sequence[Array],
  out: Sequence[jax.ShapeDtypeStruct],
  eps: float,
  interpret: Any,
) -> list[Array]:
  """Runs a kernel; of each array a block of tokens, and all of the heads."""
  *grid, block = _grid(arrays[0])
  length = arrays[0].shape[2]

  def spec(x):
    place = lambda b, c, i: c * grid[2] + i
    alone = len(x.shape) > 2 and x.shape[0] == 1
    sample = lambda b: 0 if alone else b
    if len(x.shape) == 2:  # Weights.
      return pl.BlockSpec(x.shape, lambda b, c, i: (0, 0))
    if len(x.shape) == 3:  # Positions.
      shape = (None, block, x.shape[2])
      return pl.BlockSpec(shape, lambda b, c, i: (sample(b), place(b, c, i), 0))
    if len(x.shape) == 5:  # Sums.
      shape = (None, None, *x.shape[2:])
      return pl.BlockSpec(shape, lambda b, c, i: (b, c, 0, 0, 0))
    shape = (None, x.shape[1], block, x.shape[3])
    return pl.BlockSpec(
      shape, lambda b, c, i: (sample(b), 0, place(b, c, i), 0)
    )

  moved = sum(x.size * x.dtype.itemsize for x in (*arrays, *out))
  return pl.pallas_call(
    functools.partial(kernel, length=length, eps=eps),
    out_shape=list(out),
    grid=tuple(grid),
    in_specs=list(map(spec, arrays)),
    out_specs=list(map(spec, out)),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel', 'arbitrary'),
      vmem_limit_bytes=VMEM,
    ),
    cost_estimate=pl.CostEstimate(
      flops=0, transcendentals=0, bytes_accessed=moved
    ),
    interpret=interpret,
    name=f'rotary_{kernel.__name__}',
  )(*arrays)


def _cos_sin(turns):
  """Both for all of the lanes; the first half's sines are negative."""
  first = lax.broadcasted_iota(jnp.int32, turns.shape, 1) < turns.shape[1] // 2
  other = _swapped(turns)
  return jnp.where(first, turns, other), jnp.where(first, -other, turns)


def _swapped(x):
  """The halves of the lanes change places."""
  return pltpu.roll(x, x.shape[1] // 2, 1)


def _scale(x, eps):
  return lax.rsqrt(jnp.mean(x * x, axis=1, keepdims=True) + eps)


def forward(x, weights, turns, q, k, v, *, length, eps):
  """A block of tokens. Refs: x [3H T D], weights [2 D], others [H T D]."""
  del length
  heads = q.shape[0]

  def head(h, _):
    cos, sin = _cos_sin(turns[h])
    for part, out in enumerate((q, k)):
      y = x[part * heads + h].astype(jnp.float32)
      y = y * _scale(y, eps) * weights[part : part + 1]
      y = y.astype(x.dtype).astype(jnp.float32)
      out[h] = (y * cos + _swapped(y) * sin).astype(out.dtype)
    v[h] = x[2 * heads + h]

  lax.fori_loop(0, heads, head, None)


def backward(
  x, weights, turns, positions, dq, dk, dv, dx, sums, *, length, eps
):
  """A block of tokens. Refs: as `forward`'s, positions [T 3], sums [H 8 D].

  Of the sums rows 0 to 2 are the frequencies' on each axis, the first half of
  the lanes less the second, and 3 and 4 the weights'.
  """
  heads, block = dq.shape[:2]
  start = pl.program_id(1) * pl.num_programs(2) + pl.program_id(2)

  @pl.when(pl.program_id(2) == 0)
  def _():
    sums[...] = jnp.zeros_like(sums)

  # The last block may have rows that are none.
  place = lax.broadcasted_iota(jnp.int32, (block, 1), 0) + start * block
  exists = place < length
  there = lambda x: jnp.where(exists, x, jnp.zeros_like(x))
  where = [there(positions[:, axis : axis + 1]) for axis in range(3)]

  def head(h, _):
    cos, sin = _cos_sin(turns[h])
    angle = jnp.zeros_like(cos)
    for part, gradient in enumerate((dq, dk)):
      y = x[part * heads + h].astype(jnp.float32)
      scale, weight = _scale(y, eps), weights[part : part + 1]
      y = there(y * scale)
      g = there(gradient[h].astype(jnp.float32))
      other = _swapped(g)
      before = (y * weight).astype(x.dtype).astype(jnp.float32)
      angle += other * there(before * cos + _swapped(before) * sin)
      dy = there(g * cos - other * sin)
      sums[h, 3 + part : 4 + part] += jnp.sum(dy * y, axis=0, keepdims=True)
      dy = dy * weight
      mean = jnp.mean(dy * y, axis=1, keepdims=True)
      dx[part * heads + h] = (scale * (dy - y * mean)).astype(dx.dtype)
    for axis in range(3):
      part = jnp.sum(angle * where[axis], axis=0, keepdims=True)
      sums[h, axis : axis + 1] += part
    dx[2 * heads + h] = dv[h]

  lax.fori_loop(0, heads, head, None)
