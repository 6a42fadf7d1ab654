"""Ring attention: queries stay where they are, keys and values go round.

Liu et al. 2023, arXiv 2310.01889. A device attends to the block of keys that it
holds while the next one arrives; results are joined by their log-sum-exp, as
FlashAttention joins tiles. In the backward pass a block's gradients follow it
one step behind and are home after the last: only the output and one number per
query are kept. Every transfer starts before the arithmetic that it hides in and
is needed after it; a scan keeps XLA from pulling these together.
"""

from collections.abc import Callable
import dataclasses
import functools
import math

import jax
from jax import lax, numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from mirage_jax.ops.attention import recompute
from mirage_jax.ops.attention.reference import MASKED


@dataclasses.dataclass(frozen=True)
class Ring:
  """Who passes keys to whom.

  Attributes:
    axis: The mesh axis.
    count: Devices of a ring.
    stride: How far apart neighbours lie on the axis; there are as many rings.
  """

  axis: str
  count: int
  stride: int = 1

  def pass_on(self, tree):
    """What the device before this one has."""
    size = self.count * self.stride
    pairs = [(i, (i + self.stride) % size) for i in range(size)]
    return jax.tree.map(lambda x: lax.ppermute(x, self.axis, pairs), tree)


@dataclasses.dataclass(frozen=True)
class Backend:
  """Attention to one block of keys; arrays are [B H T D], as kernels want them.

  Attributes:
    forward: (q, k, v, mask [B S] or None) -> (output, natural log-sum-exp of
      the scores [B H T] in float32, MASKED for a query without keys).
    backward: (q, k, v, mask, log-sum-exp over all keys, sums of output *
      gradient over D [B H T], gradient) -> (dq, dk, dv) of this block.
  """

  forward: Callable
  backward: Callable


def attention(
  q: Float[Array, 'B T H D'],
  k: Float[Array, 'B S H D'],
  v: Float[Array, 'B S H D'],
  mask: Bool[Array, 'B S'] | None = None,
  *,
  ring: Ring,
  implementation: str = 'reference',
) -> Float[Array, 'B T H D']:
  """See `api.attention`; for the inside of `jax.shard_map`.

  Args:
    q: This device's queries.
    k: This device's keys.
    v: Their values.
    mask: True for keys that may be attended to.
    ring: Over which devices the keys lie.
    implementation: As there. 'reference' and 'recompute' are the same here:
      neither keeps weights.

  Raises:
    ValueError: The implementation cannot attend to a part of the keys.
  """
  if implementation not in _BACKENDS:
    raise ValueError(
      f"model.context='ring' and 'both' work with attention "
      f'{sorted(_BACKENDS)}, not {implementation!r}, which keeps its sums to '
      "itself; 'ulysses' works with all."
    )
  if mask is not None:
    keep = mask[:, :, None, None]
    k, v = (jnp.where(keep, x, jnp.zeros_like(x)) for x in (k, v))
  heads = lambda x: jnp.swapaxes(x, 1, 2)
  backend = _BACKENDS[implementation]()
  return heads(_attention(heads(q), heads(k), heads(v), mask, ring, backend))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q, k, v, mask, ring, backend):
  return _forward(q, k, v, mask, ring, backend)[0]


def _forward(q, k, v, mask, ring, backend):
  def turn(carry, _):
    block, out, lse = carry
    coming = ring.pass_on(block)
    part, part_lse = backend.forward(q, *block)
    # Weights of what was and what is new; two empty halves give zeros.
    top = jnp.maximum(lse, part_lse)
    old, new = jnp.exp(lse - top), jnp.exp(part_lse - top)
    total = old + new
    out = out * (old / total)[..., None] + part * (new / total)[..., None]
    return (coming, out, top + jnp.log(total)), None

  out = jnp.zeros(q.shape, jnp.float32)
  lse = jnp.full(q.shape[:3], MASKED, jnp.float32)
  start = (k, v, mask), out, lse
  (_, out, lse), _ = lax.scan(turn, start, length=ring.count)
  out = checkpoint_name(out.astype(q.dtype), 'attention')
  lse = checkpoint_name(lse, 'attention')
  return out, (q, k, v, mask, out, lse)


def _backward(ring, backend, saved, do):
  q, k, v, mask, out, lse = saved
  do = jnp.where((lse > MASKED / 2)[..., None], do, jnp.zeros_like(do))
  delta = jnp.sum(do.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
  do = do.astype(q.dtype)

  def turn(carry, _):
    block, dq, sums = carry
    coming, arrived = ring.pass_on(block), ring.pass_on(sums)
    parts = backend.backward(q, *block, lse, delta, do)
    parts = [x.astype(jnp.float32) for x in parts]
    sums = jax.tree.map(jnp.add, arrived, tuple(parts[1:]))
    return (coming, dq + parts[0], sums), None

  zeros = lambda x: jnp.zeros(x.shape, jnp.float32)
  start = (k, v, mask), zeros(q), (zeros(k), zeros(v))
  (_, dq, sums), _ = lax.scan(turn, start, length=ring.count)
  grads = (dq, *ring.pass_on(sums))
  dq, dk, dv = (
    g.astype(x.dtype) for g, x in zip(grads, (q, k, v), strict=True)
  )
  return dq, dk, dv, None


_attention.defvjp(_forward, _backward)


@functools.cache
def _xla():
  """`recompute`'s arithmetic."""
  turned = lambda *arrays: [jnp.swapaxes(x, 1, 2) for x in arrays]

  def used(k, mask):
    return jnp.ones((len(k), k.shape[2]), bool) if mask is None else mask

  def forward(q, k, v, mask):
    out, lse = recompute.forward(*turned(q, k, v), used(k, mask))
    return jnp.swapaxes(out, 1, 2), lse[..., 0]

  def backward(q, k, v, mask, lse, delta, do):
    args = (*turned(q, k, v), used(k, mask), lse[..., None], delta[..., None])
    return turned(*recompute.backward(*args, *turned(do)))

  return Backend(forward, backward)


@functools.cache
def _tpu(chip=None, interpret=False):
  """The kernels, whose sums are powers of 2."""
  from mirage_jax.ops.attention import tpu, tpu_forward  # As in `api`.

  none = tpu_forward.NO_KEYS

  def forward(q, k, v, mask):
    plan = tpu.plan_of(q, k, v, chip=chip)
    used = tpu.used_keys(k, mask, plan)
    out, lse = tpu.forward(tpu.scaled(q), k, v, used, plan, interpret)
    lse = lse[:, :, 0, : q.shape[2]]
    return out, jnp.where(lse == none, MASKED, lse * math.log(2))

  def backward(q, k, v, mask, lse, delta, do):
    plan = tpu.plan_of(q, k, v, chip=chip)
    used = tpu.used_keys(k, mask, plan)
    lse = jnp.where(lse > MASKED / 2, lse * math.log2(math.e), none)
    rows = [x[:, :, None] for x in (lse, delta)]
    return tpu.backward(tpu.scaled(q), k, v, used, do, *rows, plan, interpret)

  return Backend(forward, backward)


@functools.cache
def _gpu(interpret=False):
  from mirage_jax.ops.attention import gpu  # As in `api`.

  return Backend(
    functools.partial(gpu.forward, interpret=interpret),
    functools.partial(gpu.backward, interpret=interpret),
  )


_BACKENDS = {
  'reference': _xla,
  'recompute': _xla,
  'gpu': _gpu,
  'gpu_interpret': functools.partial(_gpu, interpret=True),
  'tpu': _tpu,
  'tpu_interpret': functools.partial(_tpu, chip='v5p', interpret=True),
}
