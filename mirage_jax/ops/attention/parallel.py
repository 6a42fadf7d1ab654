"""Attention whose samples, heads and tokens lie on many devices.

Two ways for the queries of one device to meet the keys of all, and their
product. Ulysses (Jacobs et al. 2023, arXiv 2309.14509) trades by an all-to-all:
each device gets all tokens of some heads. In a `ring` keys and values go round.
In the product, neighbours trade and these groups form rings: the place on the
axis of tokens is (group, place in it).

The first stream of a joint sequence is split over that axis. The others are
short: every device has them whole, and takes its heads, and in a ring its
tokens, of them.
"""

from collections.abc import Sequence
import functools

import jax
from jax import lax, numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from mirage_jax.ops.attention import api, ring as ring_lib
from mirage_jax.ops.attention.layout import Layout


def attention(
  q: Sequence[Float[Array, 'B _ H D']],
  k: Sequence[Float[Array, 'B _ H D']],
  v: Sequence[Float[Array, 'B _ H D']],
  mask: Bool[Array, 'B S'] | None = None,
  *,
  implementation: str = 'reference',
  layout: Layout | None = None,
  split_keys: bool = True,
) -> list[Float[Array, 'B _ H D']]:
  """Attention of the streams in `q` to those in `k`, joined; see `api`.

  Args:
    q: Queries of each stream; only the first has its tokens split.
    k: Keys of each stream.
    v: Values of each stream.
    mask: True for keys that may be attended to, in the order of `k`.
    implementation: As of `api.attention`, of a device's part.
    layout: On the mesh of the context; None for no mesh.
    split_keys: Whether the first of `k` has its tokens split, too. If not,
      queries meet all keys where they are.

  Returns:
    Weighted values of each stream in `q`, laid out as these.

  Raises:
    ValueError: The mesh does not divide samples, tokens or heads, or the
      implementation does not support it; says what would fit.
  """
  lengths = [x.shape[1] for x in q]
  if layout is None:
    out = api.attention(
      _join(q), _join(k), _join(v), mask, implementation=implementation
    )
    return _split(out, lengths)
  layout.check(q[0].shape, k[0].shape[1] if split_keys else None)
  specs = _specs(layout, len(q), True)
  keyed = _specs(layout, len(k), split_keys)
  local = functools.partial(
    _local, layout, implementation, split_keys and layout.size > 1
  )
  return jax.shard_map(
    local,
    in_specs=(specs, keyed, keyed, P(layout.batch)),
    out_specs=specs,
    check_vma=False,
  )(list(q), list(k), list(v), mask)


def _specs(layout, count, split):
  whole = P(layout.batch, None, layout.heads)
  first = P(layout.batch, layout.tokens or None, layout.heads)
  return [first if split else whole, *[whole] * (count - 1)]


def _join(parts):
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _split(x, lengths):
  return jnp.split(x, [sum(lengths[:i]) for i in range(1, len(lengths))], 1)


def _local(layout, implementation, meet, q, k, v, mask):
  """What a device does with its part."""
  lengths = [x.shape[1] for x in q]
  run = functools.partial(api.attention, implementation=implementation)
  if not meet:
    return _split(run(_join(q), _join(k), _join(v), mask), lengths)
  if layout.ring > 1:
    ring = ring_lib.Ring(layout.tokens, layout.ring, layout.ulysses)
    run = functools.partial(
      ring_lib.attention, ring=ring, implementation=implementation
    )
  mask = _shared_mask(layout, k, mask)
  out = run(*(_gather(layout, x) for x in (q, k, v)), mask)
  first = layout.ulysses * lengths[0]
  result = [_trade(layout, out[:, :first], give=1, get=2)]
  if lengths[1:]:
    whole = _give(layout, out[:, first:])[:, : sum(lengths[1:])]
    result += _split(whole, lengths[1:])
  return result


def _trade(layout, x, give, get):
  """All of axis `get` for a part of axis `give`, among neighbours."""
  count, size = layout.ulysses, layout.size
  if count == 1:
    return x
  groups = [list(range(i, i + count)) for i in range(0, size, count)]
  groups = groups if len(groups) > 1 else None
  return lax.all_to_all(
    x, layout.tokens, give, get, axis_index_groups=groups, tiled=True
  )


def _gather(layout, parts):
  """A group's tokens of the first stream and its share of the others."""
  first = _trade(layout, parts[0], give=2, get=1)
  if not parts[1:]:
    return first
  whole = _share(layout, _pad(layout, _join(parts[1:])))
  heads = first.shape[2]
  start = lax.axis_index(layout.tokens) % layout.ulysses * heads
  whole = lax.dynamic_slice_in_dim(whole, start, heads, axis=2)
  return jnp.concatenate([first, whole], axis=1)


def _pad(layout, x):
  """Tokens (axis 1) that divide among the groups."""
  widths = [(0, 0)] * x.ndim
  widths[1] = (0, -x.shape[1] % layout.ring)
  return jnp.pad(x, widths)


def _share(layout, x):
  """The tokens (axis 1) of this device's group."""
  if layout.ring == 1:
    return x
  count = x.shape[1] // layout.ring
  start = lax.axis_index(layout.tokens) // layout.ulysses * count
  return lax.dynamic_slice_in_dim(x, start, count, axis=1)


def _shared_mask(layout, k, mask):
  """The mask of what `_gather` makes of the keys."""
  first = k[0].shape[1] * layout.size
  rest = sum(x.shape[1] for x in k[1:])
  if layout.ring == 1 or (mask is None and rest % layout.ring == 0):
    return mask
  if mask is None:
    mask = jnp.ones((len(k[0]), first + rest), bool)
  parts = mask[:, :first], _pad(layout, mask[:, first:])
  return jnp.concatenate([_share(layout, x) for x in parts], axis=1)


def _give(layout, x):
  """All tokens and heads of streams of which each device has a share."""
  batch, tokens, heads, dim = x.shape
  x = lax.all_gather(x, layout.tokens)
  x = x.reshape(layout.ring, layout.ulysses, *x.shape[1:])
  x = x.transpose(2, 0, 3, 1, 4, 5)
  return x.reshape(batch, layout.ring * tokens, layout.ulysses * heads, dim)
