"""Sums over all negatives by a kernel, chunk by chunk over all devices.

Targets stay where they are. Sources come from all devices in chunks; the next
chunk depends on nothing that the kernel does with this one, nor do the gradients
of the one before on their way back, so that both may travel meanwhile. libtpu
lets them only with collectives offloaded to SparseCores, which is an option of
the compiler. Scores are never in memory. A few chunks are kept for the backward
pass, more are gathered once more.

A batch is best divided over two axes of the mesh, each along sides of the torus:
over all devices at once libtpu makes a sum over all of each scatter, twice the
bytes. Sources are gathered along the second axis first, all of them, and chunks
of what that gives travel along the first.
"""

import functools
import math

import jax
from jax import lax, numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from infomax_jax.ops.nce import plan as plan_lib
from infomax_jax.ops.nce.plan import UNROLLED, Kernels


def against_all(
  sources: Float[Array, 'B K C'],
  targets: Float[Array, 'B L C'],
  clip: float | None,
  block: int,
  kernels: Kernels,
) -> tuple[Float[Array, 'B K'], Float[Array, ' K']]:
  """See `api.against_all`.

  Raises:
    ValueError: The kernels cannot do it; names what can.
  """
  dtype = str(sources.dtype)
  plan = plan_lib.make(sources.shape, dtype, clip, block, kernels)
  return _against_all(sources, targets, plan)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _against_all(sources, targets, plan):
  return _forward(sources, targets, plan)[0]


def _forward(sources, targets, plan):
  run = _on_each(plan, _forward_local, 2, (P(plan.axes), P(), P()))
  *out, chunks = run(sources, targets)
  return tuple(out), (sources, targets, out[0], chunks)


def _backward(plan, saved, cotangents):
  specs = (P(plan.axes), P(plan.axes))
  run = _on_each(plan, _backward_local, 4, specs, whole=2)
  *saved, chunks = saved
  return run(*saved, *cotangents, chunks)


_against_all.defvjp(_forward, _backward)


def _on_each(plan, fn, divided, out_specs, whole=0):
  """Runs on each device's share of so many arguments and all of the others."""
  fn = functools.partial(fn, plan)
  if not plan.axes:
    return fn
  specs = (P(plan.axes),) * divided + (P(),) * whole
  return jax.shard_map(fn, in_specs=specs, out_specs=out_specs, check_vma=False)


def _forward_local(plan, sources, targets):
  images, kinds, _ = sources.shape
  tiles, image = _tiles(plan, targets)
  owners = _owners(plan, images)

  def work(none, chunk, i):
    def tile(sums, xs):
      new = plan.kernels.forward(
        chunk, xs[0], owners(i), xs[1], clip=plan.clip, cores=plan.cores
      )
      return new if sums is None else jax.tree.map(jnp.add, sums, new), None

    zeros = jnp.zeros(len(chunk), jnp.float32)
    return none, _each_tile(tile, (zeros, zeros), (tiles, image))[0]

  fetch = _fetch(plan, sources)
  _, sums, chunks = _pipelined(fetch, work, lambda sums: sums, len(plan.sizes))
  terms, squares = zip(*sums, strict=True)
  terms = _own_sums(plan, terms, kinds)
  squares = _in_order(plan, squares).reshape(plan.around, kinds, -1).sum((0, 2))
  if plan.axes:
    squares = lax.psum(squares, plan.axes)
  return jnp.log(terms) + plan.clip, squares, chunks


def _backward_local(
  plan, sources, targets, negative, g_negative, g_squares, chunks
):
  images, kinds, _ = sources.shape
  tiles, image = _tiles(plan, targets)
  owners = _owners(plan, images)
  each = jnp.broadcast_to(g_squares, negative.shape)
  stats = _gathered_stats(plan, jnp.stack([negative, g_negative, each]))

  def work(total, chunk, i):
    def tile(g_chunk, xs):
      part, total = plan.kernels.backward(
        *(chunk, xs[0], owners(i), xs[1], stats(i), xs[2]),
        clip=plan.clip,
        cores=plan.cores,
      )
      return part if g_chunk is None else g_chunk + part, total

    zeros = jnp.zeros(chunk.shape, jnp.float32)
    g_chunk, total = _each_tile(tile, zeros, (tiles, image, total))
    rows = plan.around * plan.sizes[i if isinstance(i, int) else 0]
    return total, g_chunk[:rows].astype(chunk.dtype)

  total, sent, _ = _pipelined(
    _fetch(plan, sources, chunks),
    work,
    functools.partial(_scattered, plan.outer),
    len(plan.sizes),
  )
  g_sources = jnp.concatenate(sent).reshape(kinds, -1, sources.shape[-1])
  g_sources = [_scattered(plan.inner, kind) for kind in g_sources]
  # Not .sum(1), which XLA does apart from what follows.
  g_targets = sum(total[:, core] for core in range(plan.cores))
  return jnp.stack(g_sources, 1), _untiled(g_targets, targets)


def _each_tile(work, zeros, xs):
  """A scan from zeros; of one tile no loop, and no start to add to."""
  if len(xs[0]) > 1:
    return lax.scan(work, zeros, xs)
  carry, out = work(None, jax.tree.map(lambda x: x[0], xs))
  return carry, jax.tree.map(lambda x: x[None], out)


def _pipelined(fetch, work, send, count):
  """`work` on each chunk while the next comes and the last result leaves.

  fetch(i, last) -> chunk, after the last one; work(carry, chunk, i) -> (carry,
  result), from a carry of None; send(result). Barriers keep the order: XLA would
  do some of the last things first.

  Returns:
    The carry, all that was sent, and the chunks unless they are too many.
  """
  chunk = fetch(0, None)
  chunks, out = [chunk], []
  if count > 1:
    chunks.append(fetch(1, chunk))
  carry, result = work(None, chunk, 0)

  def turn(state, i):
    carry, chunk, result = state
    coming, sent = fetch(i + 1, chunk), send(result)
    chunk, _ = lax.optimization_barrier((chunk, result))
    carry, result = work(carry, chunk, i)
    result, sent = lax.optimization_barrier((result, sent))
    return (carry, coming, result), sent

  state = carry, chunks[-1], result
  if count > UNROLLED:
    state, sent = lax.scan(turn, state, jnp.arange(1, count - 1))
    leaves, tree = jax.tree.flatten(sent)
    out = [tree.unflatten(xs) for xs in zip(*leaves, strict=True)]
    chunks = []
  else:
    for i in range(1, count - 1):
      state, sent = turn(state, i)
      chunks.append(state[1])
      out.append(sent)
  carry, chunk, result = state
  if count > 1:
    sent = send(result)
    chunk, _ = lax.optimization_barrier((chunk, result))
    carry, result = work(carry, chunk, count - 1)
    result, sent = lax.optimization_barrier((result, sent))
    out.append(sent)
  return carry, [*out, send(result)], tuple(chunks)


def _span(plan, i):
  """Where the i-th chunk begins among the sources of one place, and ends."""
  if isinstance(i, int):
    return sum(plan.sizes[:i]), sum(plan.sizes[: i + 1])
  return i * plan.sizes[0], (i + 1) * plan.sizes[0]


def _part(plan, x, i, axis):
  """What belongs to the i-th chunk."""
  start, stop = _span(plan, i)
  if isinstance(i, int):  # XLA makes no gathering of a slice by number.
    return lax.slice_in_dim(x, start, stop, axis=axis)
  return lax.dynamic_slice_in_dim(x, start, plan.sizes[0], axis)


def _fetch(plan, sources, chunks=()):
  """What gives the i-th chunk: some sources of every device, filled up.

  Args:
    plan: As everywhere.
    sources: Of this device.
    chunks: All of them, if they have come before.
  """
  if chunks:
    return lambda i, last: chunks[i]
  # Kind by kind: what two calls have in common XLA then gathers once.
  kinds = [sources[:, kind] for kind in range(sources.shape[1])]
  flat = jnp.concatenate([_gathered(plan.inner, x) for x in kinds])

  def fetch(i, last):
    mine = _part(plan, flat, i, 0)
    if last is not None and plan.axes:
      mine, _ = lax.optimization_barrier((mine, last))
    chunk = _gathered(plan.outer, mine)
    return _fill(chunk, plan.kernels.lanes * plan.cores, 0)

  return fetch


def _gathered(axes, x, dim=0):
  return lax.all_gather(x, axes, axis=dim, tiled=True) if axes else x


def _scattered(axes, x, dim=0):
  if not axes:
    return x
  return lax.psum_scatter(x, axes, scatter_dimension=dim, tiled=True)


def _owners(plan, images):
  """i -> [R]: the local image of each source of the i-th chunk, else -1."""
  here = [
    lax.axis_index(axes) if axes else 0 for axes in (plan.outer, plan.inner)
  ]

  def owners(i):
    start, _ = _span(plan, i)
    size = plan.sizes[i if isinstance(i, int) else 0]
    row = jnp.arange(plan.around * size, dtype=jnp.int32)
    place, at = row // size, row % size + start
    own = (place == here[0]) & (at // images % plan.within == here[1])
    own = jnp.where(own, at % images, -1)
    return _fill(own, plan.kernels.lanes * plan.cores, 0, -1)

  return owners


def _tiles(plan, targets):
  """Targets as [count, M, C] and the local image of each, -1 for filling.

  Position by position, which is how TPUs hold them.
  """
  images, positions, dim = targets.shape
  total = images * positions
  rows = plan.kernels.rows
  count = math.ceil(total / plan.kernels.tile_limit(dim, str(targets.dtype)))
  size = math.ceil(total / count / rows) * rows
  image = jnp.tile(jnp.arange(images, dtype=jnp.int32), positions)
  image = _fill(image, count * size, 0, -1).reshape(count, size)
  flat = _fill(targets.swapaxes(0, 1).reshape(total, dim), count * size, 0)
  return flat.reshape(count, size, dim), image


def _untiled(tiles, targets):
  """Of the shape and dtype of targets, from what `_tiles` makes of them."""
  images, positions, dim = targets.shape
  flat = tiles.reshape(-1, dim)[: images * positions].astype(targets.dtype)
  return flat.reshape(positions, images, dim).swapaxes(0, 1)


def _gathered_stats(plan, stats):
  """[3 B K] of this device -> i -> [3, R] of the i-th chunk."""
  stats = _gathered(plan.inner, stats.swapaxes(1, 2), 2)
  stats = _gathered(plan.outer, stats.reshape(3, 1, -1), 1)

  def part(i):
    x = _part(plan, stats, i, 2).reshape(3, -1)
    return _fill(x, plan.kernels.lanes * plan.cores, 1)

  return part


def _own_sums(plan, sums, kinds):
  """[R] of each chunk over own targets -> [B K] of own sources over all."""
  sums = _scattered(plan.outer, _in_order(plan, sums))
  return _scattered(plan.inner, sums.reshape(kinds, -1), 1).T


def _in_order(plan, chunks):
  """[R] of each chunk -> [P N] of all N sources of each place."""
  parts = [
    x[: size * plan.around].reshape(plan.around, size)
    for x, size in zip(chunks, plan.sizes, strict=True)
  ]
  return jnp.concatenate(parts, 1)


def _fill(x, multiple, axis, value=0):
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, -x.shape[axis] % multiple)
  return jnp.pad(x, widths, constant_values=value)
