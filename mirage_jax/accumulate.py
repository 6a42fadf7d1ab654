"""Gradients of a whole batch from parts of it, one after the other."""

from collections.abc import Callable
import math
from typing import Any

from flax import linen as nn
import jax
from jax import lax, numpy as jnp

from mirage_jax import sharding

LossFn = Callable[[Any, Any], tuple[jax.Array, Any]]


def mean(loss_fn: LossFn, rows: Any, count: int) -> Callable:
  """A function of the parameters alone, that holds activations of a part.

  Its gradient is summed in float32 while the parts go by, and is exactly that of
  the whole batch: what is random has to be among the rows. Each device gives
  every part as many of its rows.

  Args:
    loss_fn: (params, rows) -> (their mean loss, a tree of arrays [B ...] with
      something of each row, which has no gradient).
    rows: A tree of arrays [B ...], or [] for what all rows share.
    count: How many parts; 1 is no more than loss_fn.

  Returns:
    params -> (loss, tree), as loss_fn gives it for all rows at once.

  Raises:
    ValueError: `count` is none, or it and the mesh do not divide the batch.
  """
  if count == 1:
    return lambda params: loss_fn(params, rows)
  _check({len(x) for x in jax.tree.leaves(rows) if jnp.ndim(x)}.pop(), count)
  parts = jax.tree.map(lambda x: _cut(x, count), rows)
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

  @jax.custom_vjp
  def run(params, parts):
    return _joined(lax.map(lambda part: loss_fn(params, part), parts))

  def forward(params, parts):
    def add(total, part):
      found, grads = grad_fn(params, part)
      return jax.tree.map(jnp.add, total, grads), found

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
    total, found = lax.scan(add, zeros, parts)
    return _joined(found), jax.tree.map(lambda x: x / count, total)

  def backward(grads, cotangents):
    return jax.tree.map(lambda x: x * cotangents[0], grads), None

  run.defvjp(forward, backward)
  return lambda params: run(params, parts)


def _check(batch, count):
  if count < 1:
    raise ValueError(
      f'accumulate={count}: how many parts of a batch, 1 or more.'
    )
  (axes,) = sharding.mesh_axes('batch')
  mesh = jax.sharding.get_abstract_mesh()
  shards = math.prod(mesh.shape[axis] for axis in axes)
  if batch % (count * shards):
    raise ValueError(
      f'accumulate={count} cuts a batch of {batch} on {shards} shards of it '
      f'unevenly: make batch_size a multiple of {count * shards}.'
    )


def _cut(x, count):
  """[count B/count ...]; every count-th row, so that none changes its device."""
  if jnp.ndim(x) == 0:
    return jnp.broadcast_to(x, (count,))
  x = x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)
  axes = (None, 'batch') + (None,) * (x.ndim - 2)
  return nn.with_logical_constraint(x, axes)


def _joined(found):
  losses, tree = found
  join = lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
  return losses.mean(), jax.tree.map(join, tree)
