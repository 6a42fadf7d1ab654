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

from mirage_jax.ops.attention.layout import Layout

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


def mesh_axes(*names: str) -> list[tuple[str, ...]]:
  """The axes that each logical name has on the mesh of the context.

  Raises:
    ValueError: There is a mesh, but no rules tell what lies where on it.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return [()] * len(names)
  if not nn.get_logical_axis_rules():
    raise ValueError(
      f'a mesh {dict(mesh.shape)} is set, but no logical axis rules: use '
      'flax.linen.logical_axis_rules(sharding.AXIS_RULES), as launch.loop does.'
    )
  found = []
  for axes in nn.logical_to_mesh_axes(names):
    axes = (axes,) if isinstance(axes, str) else axes or ()
    found.append(tuple(axis for axis in axes if axis in mesh.axis_names))
  return found


def attention_layout(
  implementation: str, context: str, ring: int
) -> Layout | None:
  """Where a joint sequence lies; None if XLA, or one device, has all of it.

  Args as in `config.MirageConfig`.

  Raises:
    ValueError: XLA cannot do it, or the mesh is not cut so.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return None
  if context == 'xla':
    if implementation.startswith(('tpu', 'gpu', 'splash')):
      raise ValueError(
        f'attention {implementation!r} runs on one device, but the mesh is '
        f"{dict(mesh.shape)}: set model.context to 'ulysses' or 'ring'."
      )
    return None
  axes = mesh_axes('batch', 'seq', 'heads')
  return Layout.of(mesh.shape, axes, context, ring)
