"""Counted FLOPs against closed forms, and against XLA's own count."""

import math

import jax
import jax.numpy as jnp
import pytest

from launch import aot_flops, mesh as mesh_lib

X, W = jnp.zeros((6, 16, 32)), jnp.zeros((32, 48))


def test_a_layer_forward_and_backward():
  def loss(w, x):
    return jnp.square(jnp.tanh(x @ w)).sum()

  forward = 2 * 6 * 16 * 32 * 48
  assert aot_flops.count(loss, W, X) == forward
  assert aot_flops.count(jax.grad(loss), W, X) == 2 * forward
  assert aot_flops.count(jax.grad(loss, (0, 1)), W, X) == 3 * forward


@pytest.mark.parametrize(
  ('stride', 'groups'), [(1, 1), (2, 1), (1, 4)], ids=str
)
def test_a_convolution_as_xla_counts_it(stride, groups):
  x, kernel = jnp.zeros((2, 9, 9, 8)), jnp.zeros((3, 3, 8 // groups, 12))

  def conv(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=groups,
    )

  want = jax.jit(conv).lower(x, kernel).cost_analysis()['flops']
  assert aot_flops.count(conv, x, kernel) == want


def test_loops_branches_and_functions_inside():
  square = jnp.zeros((32, 32))
  once = 2 * 32**3

  def scanned(x):
    body = lambda x, _: (jax.checkpoint(jnp.tanh)(x @ square), None)
    return jax.lax.scan(body, x, None, length=7)[0]

  def either(x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

  assert aot_flops.count(jax.jit(scanned), square) == 7 * once
  assert aot_flops.count(either, square) == 2 * once


def test_shards_are_counted_for_all_devices():
  mesh = mesh_lib.make_mesh({'data': 4, 'tensor': 2})
  P = jax.sharding.PartitionSpec

  @jax.shard_map(
    mesh=mesh, in_specs=(P('data'), P()), out_specs=P('data'), check_vma=False
  )
  def local(x, w):
    return x @ w

  # Both devices of a `tensor` pair do the same; each counts.
  got = aot_flops.count(local, jnp.zeros((8, 32)), W)
  assert got == 2 * (2 * 8 * 32 * 48)


def test_a_kernel_without_an_estimate_is_not_counted_as_nothing():
  from jax.experimental import pallas as pl

  def copy(told):
    return pl.pallas_call(
      lambda x, o: o.__setitem__(..., x[...]),
      out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
      cost_estimate=told,
    )

  told = pl.CostEstimate(flops=5, transcendentals=0, bytes_accessed=0)
  x = jnp.zeros((8, 128))
  assert aot_flops.count(copy(told), x) == 5
  assert math.isnan(aot_flops.count(copy(None), x))


def test_the_plain_config_is_a_copy():
  config = {'model': {'remat': 'full', 'depth': 2}, 'seed': 0}
  assert aot_flops.plain(config)['model'] == {'remat': 'none', 'depth': 2}
  assert config['model']['remat'] == 'full'
  assert aot_flops.plain({'encoder': {}}) == {'encoder': {}}
