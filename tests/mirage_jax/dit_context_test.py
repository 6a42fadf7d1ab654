"""The transformer with its tokens on several devices, and what it keeps."""

import dataclasses
import functools

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mirage_jax import config, dit, sharding
from mirage_jax.ops.attention import attention

STREAM = config.StreamConfig
CFG = config.MirageConfig(
  depth=2,
  num_heads=2,
  head_dim=64,
  video=STREAM(16, 32),
  text=STREAM(8, 16, in_dim=8),
  audio=STREAM(8, 16, in_dim=5),
  latent_channels=3,
  text_pool_heads=2,
  rope_area=4.0,
  attention='recompute',
)
AXES = ('data', 'fsdp', 'context', 'tensor')


@functools.cache
def batch():
  keys = jax.random.split(jax.random.key(1), 4)
  video = jax.random.normal(keys[3], (2, 2, 4, 4, 3))
  return (
    video,
    jnp.array([0.9, 0.4]),
    {
      'reference': jax.random.normal(keys[0], (2, 2, 4, 4, 3)),
      'reference_time': jnp.array([[-5.0, 12.0], [20.0, -2.0]]),
      'text': jax.random.normal(keys[1], (2, 3, 8)),
      'text_mask': jnp.array([[True, True, False], [True, True, True]]),
      'audio': jax.random.normal(keys[2], (2, 5, 5)),
    },
  )


@functools.cache
def params():
  """Nowhere zero."""
  shapes = jax.eval_shape(dit.Mirage(CFG).init, jax.random.key(0), *batch())
  rng = np.random.default_rng(0)
  draw = lambda x: 0.3 * rng.standard_normal(x.shape, np.float32)
  return jax.tree.map(draw, nn.unbox(shapes)['params'])


def loss(params, video, sigma, cond, **changes):
  model = dit.Mirage(dataclasses.replace(CFG, **changes))
  velocity = model.apply({'params': params}, video, sigma, cond)
  return jnp.mean(jnp.square(velocity))


def gradients(**changes):
  return jax.jit(jax.value_and_grad(functools.partial(loss, **changes)))


@functools.cache
def on_one():
  return gradients()(params(), *batch())


def compare(sizes, **changes):
  auto = (jax.sharding.AxisType.Auto,) * 4
  mesh = jax.make_mesh(sizes, AXES, axis_types=auto)
  boxed = jax.eval_shape(dit.Mirage(CFG).init, jax.random.key(0), *batch())
  shardings = nn.logical_to_mesh_sharding(
    nn.get_partition_spec(boxed), mesh, sharding.AXIS_RULES
  )['params']
  whole, want = params(), on_one()
  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.AXIS_RULES):
    placed = jax.device_put(whole, shardings)
    got = gradients(**changes)(placed, *batch())
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  pairs = zip(
    jax.tree.leaves_with_path(got[1]), jax.tree.leaves(want[1]), strict=True
  )
  for (path, a), b in pairs:
    at, largest = jax.tree_util.keystr(path), np.abs(b).max()
    # Sums over eight devices round in another order.
    np.testing.assert_allclose(a, b, atol=5e-5 * largest, err_msg=at)


@pytest.mark.full
@pytest.mark.parametrize(
  ('sizes', 'changes'),
  [
    ((1, 2, 4, 1), dict(context='both', ring=2, remat='attention')),
    ((2, 1, 2, 2), dict(context='ring', remat='dots')),
    ((1, 2, 2, 2), dict(context='ring', attention='reference')),
    ((1, 2, 2, 1), dict(context='ulysses', remat='attention')),
    ((1, 1, 8, 1), dict(context='ring', remat='full')),
    ((1, 1, 4, 2), dict()),
    ((1, 2, 4, 1), dict(context='both', attention='tpu_interpret')),
  ],
)
def test_every_mesh_has_the_same_loss(sizes, changes):
  compare(sizes, **changes)


def exponentials(remat):
  """How often a compiled gradient takes them, forward and backward."""

  def block(x, _):
    return jnp.sin(attention(x, x, x, implementation='recompute')), None

  if remat != 'none':
    block = jax.checkpoint(block, policy=dit.REMAT[remat], prevent_cse=False)
  # In a loop, as the blocks are: else XLA sees that it computes something twice.
  loss = lambda x: jax.lax.scan(block, x, length=3)[0].sum()
  text = jax.jit(jax.grad(loss)).lower(jnp.ones((1, 5, 2, 4))).compile()
  return text.as_text().count('exponential(')


def test_what_attention_gave_is_kept():
  kept = exponentials('none')
  assert exponentials('attention') == exponentials('dots') == kept
  assert exponentials('full') > kept


def test_a_kernel_is_not_left_to_xla():
  mesh = jax.make_mesh((8,), ('data',))
  with (
    jax.set_mesh(mesh),
    pytest.raises(ValueError, match="'ulysses' or 'ring'"),
  ):
    sharding.attention_layout('tpu', 'xla', 2)
  with jax.set_mesh(mesh), pytest.raises(ValueError, match='no logical axis'):
    sharding.attention_layout('tpu', 'ring', 2)
