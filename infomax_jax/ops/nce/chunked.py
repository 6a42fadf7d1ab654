"""Sums over all negatives by a kernel, chunk by chunk over all devices.

Targets stay where they are. Sources come from all devices in chunks; the next
chunk depends on nothing that the kernel does with this one, nor do the gradients
of the one before on their way back, so that both may travel meanwhile. libtpu
lets them only with collectives offloaded to SparseCores, which is an option of
the compiler. Scores are never in memory.
"""

import functools
import math

import jax
from jax import lax, numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from infomax_jax.ops.nce import plan as plan_lib
from infomax_jax.ops.nce.plan import Kernels


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
  run = _on_each(plan, _forward_local, 2, (P(plan.axes), P()))
  out = run(sources, targets)
  return out, (sources, targets, out[0])


def _backward(plan, saved, cotangents):
  specs = (P(plan.axes), P(plan.axes))
  run = _on_each(plan, _backward_local, 4, specs, whole=1)
  return run(*saved, *cotangents)


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
  owners = _owners(plan, images, kinds)

  def work(none, chunk, i):
    def tile(sums, xs):
      new = plan.kernels.forward(
        chunk, xs[0], owners[i], xs[1], clip=plan.clip, cores=plan.cores
      )
      return jnp.stack(new) + (0 if sums is None else sums), None

    zeros = jnp.zeros((2, len(chunk)), jnp.float32)
    return none, _each_tile(tile, zeros, (tiles, image))[0]

  _, sums = _pipelined(
    _fetch(plan, sources), work, lambda sums: sums, None, len(owners)
  )
  # [count, 2, sources of all devices] -> each device's own, over all targets.
  sums = _own_sums(plan, sums.swapaxes(0, 1), images * kinds)
  terms, squares = sums.reshape(2, images, kinds)
  squares = squares.sum(0)
  if plan.axes:
    squares = lax.psum(squares, plan.axes)
  return jnp.log(terms) + plan.clip, squares


def _backward_local(plan, sources, targets, negative, g_negative, g_squares):
  images, kinds, dim = sources.shape
  tiles, image = _tiles(plan, targets)
  owners = _owners(plan, images, kinds)
  each = jnp.broadcast_to(g_squares, negative.shape)
  stats = jnp.stack([negative, g_negative, each])
  stats = _gathered_stats(plan, stats.reshape(3, len(owners), -1))

  def work(total, chunk, i):
    def tile(g_chunk, xs):
      part, total = plan.kernels.backward(
        chunk, xs[0], owners[i], xs[1], stats[i], xs[2], clip=plan.clip
      )
      return part if g_chunk is None else g_chunk + part, total

    zeros = jnp.zeros(chunk.shape, jnp.float32)
    g_chunk, total = _each_tile(tile, zeros, (tiles, image, total))
    return total, g_chunk.astype(chunk.dtype)

  count, rows = len(tiles), tiles.shape[1]
  total = jnp.zeros((count, plan.cores, rows, dim), jnp.float32)
  total, g_sources = _pipelined(
    _fetch(plan, sources), work, _send(plan, kinds), total, len(owners)
  )
  g_targets = total.sum(1).reshape(count * rows, dim)
  g_targets = g_targets[: images * targets.shape[1]]
  return (
    g_sources.reshape(sources.shape),
    g_targets.reshape(targets.shape).astype(targets.dtype),
  )


def _each_tile(work, zeros, xs):
  """A scan from zeros; of one tile no loop, and no start to add to."""
  if len(xs[0]) > 1:
    return lax.scan(work, zeros, xs)
  carry, out = work(None, jax.tree.map(lambda x: x[0], xs))
  return carry, jax.tree.map(lambda x: x[None], out)


def _pipelined(fetch, work, send, carry, count):
  """`work` on each chunk while the next comes and the last result leaves.

  fetch(i) -> chunk, work(carry, chunk, i) -> (carry, result), send(result).
  """
  chunk = fetch(0)
  if count == 1:
    carry, result = work(carry, chunk, 0)
    return carry, send(result)[None]
  coming = fetch(1)
  carry, result = work(carry, chunk, 0)

  def turn(state, i):
    carry, chunk, result = state
    coming, sent = fetch(i + 1), send(result)
    carry, result = work(carry, chunk, i)
    return (carry, coming, result), sent

  state = carry, coming, result
  state, sent = lax.scan(turn, state, jnp.arange(1, count - 1))
  carry, chunk, result = state
  before = send(result)
  carry, result = work(carry, chunk, count - 1)
  return carry, jnp.concatenate([sent, before[None], send(result)[None]])


def _fetch(plan, sources):
  """i -> the i-th chunk: a few images' sources of every device, filled up."""

  def fetch(i):
    chunk = lax.dynamic_slice_in_dim(sources, i * plan.images, plan.images)
    if plan.axes:  # Still B K C: of two axes XLA makes a sum with zeros.
      chunk = lax.all_gather(chunk, plan.axes, tiled=True)
    chunk = chunk.reshape(-1, sources.shape[-1])
    return _fill(chunk, plan.kernels.lanes * plan.cores, 0)

  return fetch


def _send(plan, kinds):
  """Gradient of a chunk -> that of this device's own sources in it."""

  def send(g_chunk):
    images = plan.images * plan.devices
    g_chunk = g_chunk[: images * kinds].reshape(images, kinds, -1)
    if plan.axes:
      g_chunk = lax.psum_scatter(g_chunk, plan.axes, tiled=True)
    return g_chunk

  return send


def _owners(plan, images, kinds):
  """[count, R]: the local image of each source of a chunk, else -1."""
  index = jnp.arange(images, dtype=jnp.int32)
  index = jnp.repeat(index, kinds).reshape(-1, plan.images * kinds)
  own = lax.axis_index(plan.axes) if plan.axes else 0
  mine = jnp.arange(plan.devices)[:, None] == own
  owners = jnp.where(mine[None], index[:, None], -1)
  owners = owners.reshape(len(index), -1)
  return _fill(owners, plan.kernels.lanes * plan.cores, 1, -1)


def _tiles(plan, targets):
  """Targets as [count, M, C] and the local image of each, -1 for filling."""
  images, positions, dim = targets.shape
  total = images * positions
  rows = plan.kernels.rows
  count = math.ceil(total / plan.kernels.tile_limit(dim, str(targets.dtype)))
  size = math.ceil(total / count / rows) * rows
  image = jnp.repeat(jnp.arange(images, dtype=jnp.int32), positions)
  image = _fill(image, count * size, 0, -1).reshape(count, size)
  flat = _fill(targets.reshape(total, dim), count * size, 0)
  return flat.reshape(count, size, dim), image


def _gathered_stats(plan, stats):
  """[3, count, own] of this device -> [count, 3, R] of all."""
  if plan.axes:
    stats = lax.all_gather(stats, plan.axes, axis=2, tiled=True)
  stats = _fill(stats, plan.kernels.lanes * plan.cores, 2)
  return stats.swapaxes(0, 1)


def _own_sums(plan, sums, own):
  """[2, count, R] of this device's targets -> [2, own sources] of all."""
  sums = sums[..., : own // sums.shape[1] * plan.devices]
  if plan.axes:
    sums = lax.psum_scatter(sums, plan.axes, scatter_dimension=2, tiled=True)
  return sums.reshape(2, own)


def _fill(x, multiple, axis, value=0):
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, -x.shape[axis] % multiple)
  return jnp.pad(x, widths, constant_values=value)
