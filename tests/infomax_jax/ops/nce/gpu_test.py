"""The GPU kernels, interpreted, against float64; and lowered for a GPU."""

import functools

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.sharding import (
  AbstractDevice,
  AbstractMesh,
  AxisType,
  NamedSharding,
  PartitionSpec as P,
)
import pytest

from infomax_jax.ops.nce import against_all
from tests.infomax_jax.ops.nce.pallas_test import (
  assert_close,
  draw,
  exact,
  sums,
)

NAME = 'pallas_gpu_interpret'


@pytest.mark.parametrize(
  ('batch', 'kinds', 'positions', 'dim', 'dtype', 'clip'),
  [
    (6, 2, 49, 256, 'float32', 20.0),  # Both with filling, targets in blocks.
    pytest.param(5, 1, 49, 640, 'bfloat16', 3.0, marks=pytest.mark.full),
    pytest.param(90, 3, 2, 512, 'bfloat16', 20.0, marks=pytest.mark.full),
    pytest.param(2, 1, 1, 128, 'float32', 40.0, marks=pytest.mark.full),
  ],
)
def test_any_shape_against_float64(batch, kinds, positions, dim, dtype, clip):
  args = draw(batch, kinds, positions, dim, jnp.dtype(dtype))
  got, want = sums(args, clip, name=NAME), exact(*args, clip)
  assert [x.dtype for x in got] == ['float32'] * 2 + [dtype] * 2
  assert_close(got[:2], want[:2], 2e-6)
  # bfloat16 rounds gradients of scores, and results: 2 ** -8.
  assert_close(got[2:], want[2:], 2e-6 if dtype == 'float32' else 0.01)


@pytest.mark.full
def test_the_mesh_does_not_change_sums_and_gradients():
  args = draw(96, 2, 3, 128)
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  divided = NamedSharding(mesh, P('data'))
  shardings = (divided, divided, divided, NamedSharding(mesh, P()))
  placed = jax.device_put(args, shardings)
  run = functools.partial(sums.__wrapped__, block=32, name=NAME)
  with jax.set_mesh(mesh), nn.logical_axis_rules((('batch', 'data'),)):
    got = jax.jit(run)(placed)
  assert_close(got, exact(*args), 2e-6)


def test_lowers_for_a_gpu_without_one():
  args = [jax.ShapeDtypeStruct((64, n, 128), jnp.bfloat16) for n in (2, 9)]

  def loss(sources, targets):
    log, squares = against_all(
      sources, targets, clip=20.0, block=64, implementation='pallas_gpu'
    )
    return log.sum() + squares.sum()

  # With its multiprocessors, as JAX has them.
  device = AbstractDevice('NVIDIA H100 80GB HBM3', 132, 'gpu')
  custom_call = jax.export.DisabledSafetyCheck.custom_call
  with jax.sharding.use_abstract_mesh(
    AbstractMesh((1,), ('x',), abstract_device=device)
  ):
    exported = jax.export.export(
      jax.jit(jax.grad(loss, (0, 1))),
      platforms=('cuda',),
      disabled_checks=[custom_call('__gpu$xla.gpu.triton')],
    )(*args)
  text = exported.mlir_module()
  for name in ('nce_forward', 'nce_sources', 'nce_targets'):
    assert f'name = "{name}"' in text, name
  assert 'tensor<132x' not in text  # No part of a sum for each of them.


def test_what_the_kernels_do_not_take_is_told():
  run = functools.partial(
    against_all, clip=20.0, block=4, implementation='pallas_gpu'
  )
  with pytest.raises(ValueError, match="'cpu'; use nce 'xla'"):
    jax.eval_shape(run, *draw(4, 1, 3, 128)[:2])
  with pytest.raises(ValueError, match="100 channels.*128; use nce 'xla'"):
    jax.eval_shape(run, *draw(4, 1, 3, 100)[:2])
  with pytest.raises(ValueError, match="float16, only.*use nce 'xla'"):
    jax.eval_shape(run, *draw(4, 1, 3, 128, 'float16')[:2])
