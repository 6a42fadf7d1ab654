"""From a projection to queries, keys and values, on one device or a mesh."""

import functools

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from mirage_jax.ops.attention.layout import Layout

DIM = 128


def supports(implementation: str, dim: int) -> bool:
  """Whether there is a kernel beside that implementation of attention."""
  return implementation in ('tpu', 'tpu_interpret') and dim == DIM


def turned(
  qkv: Float[Array, 'B T 3 H D'],
  weights: Float[Array, '2 D'],
  turns: Float[Array, '_ H T D'],
  positions: Float[Array, '_ T 3'],
  frequencies: Float[Array, '3 H P'],
  *,
  eps: float,
  layout: Layout | None = None,
  interpret=False,
) -> list[Float[Array, 'B T H D']]:
  """Queries, keys and values: the first two over their root mean square, times
  weights, and turned.

  Same as `heads.HeadNorm` and `rope.apply_rotary`, but read and written once.

  Args:
    qkv: A projection.
    weights: Of queries and of keys, float32.
    turns: As of `rope.Tables`; has no gradient, and so for positions.
    positions: As of `rope.Tables`.
    frequencies: As of `rope.Tables`; what `turns` are of.
    eps: Added to the mean square.
    layout: On the mesh of the context; None for no mesh.
    interpret: As of `pallas_call`, to run without a TPU.
  """
  from mirage_jax.ops.rotary import tpu  # Pallas takes a second to import.

  run = functools.partial(tpu.turned, eps=eps, interpret=interpret)
  if layout is not None:
    batch, tokens, heads = layout.batch, layout.tokens or None, layout.heads
    # One sample's may stand for all.
    shared = batch if turns.shape[0] == qkv.shape[0] else None
    run = jax.shard_map(
      run,
      in_specs=(
        P(batch, tokens, None, heads),
        P(),
        P(shared, heads, tokens),
        P(shared, tokens),
        P(None, heads),
      ),
      out_specs=[P(batch, tokens, heads)] * 3,
      check_vma=False,
    )
  return run(qkv, weights, turns, positions, frequencies)
