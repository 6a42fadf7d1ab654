"""Logical axis names of parameters and activations, and where they go.

Parameters:
  layers  the stacked blocks of `nn.scan`
  embed   the width of a residual stream; sharded by FSDP
  heads   attention heads; tensor parallel
  kv      the size of one head
  mlp     the hidden size of an MLP; tensor parallel
  vocab   text ids
  cond    the outputs of a modulation
Activations:
  batch   samples
  seq     tokens of the video stream; context parallel, and so its length must
          be a multiple of the mesh's context axis
"""

from collections.abc import Sequence

from flax import linen as nn
import jax

AXIS_RULES = (
  ('batch', ('data', 'fsdp')),
  ('seq', 'context'),
  ('embed', 'fsdp'),
  ('heads', 'tensor'),
  ('mlp', 'tensor'),
  ('kv', None),
  ('layers', None),
  ('vocab', None),
  ('cond', None),
)


def constrain(
  module: nn.Module, x: jax.Array, axes: Sequence[str | None]
) -> jax.Array:
  """Constrains an activation by logical names, except while initialising.

  Parameters are initialised from a batch of any size, which need not divide
  among the devices.
  """
  if module.is_initializing():
    return x
  return nn.with_logical_constraint(x, tuple(axes))
