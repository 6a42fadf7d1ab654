"""The mesh takes every device, and constraints really land on it."""

from flax import linen as nn
import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from launch import mesh as mesh_lib
from launch.errors import UserError
from tests.launch import toy_config, toy_experiment

SIZES = {'data': 2, 'fsdp': 2, 'tensor': 2}


@pytest.mark.parametrize(
  ('sizes', 'devices', 'want'),
  [
    ({}, 1, (1, 1, 1, 1)),
    ({'data': -1}, 1, (1, 1, 1, 1)),
    ({'data': -1}, 8, (8, 1, 1, 1)),
    ({'data': 2, 'fsdp': -1, 'tensor': 2}, 16, (2, 4, 1, 2)),
    ({'data': 1, 'context': 4}, 4, (1, 1, 4, 1)),
  ],
)
def test_one_size_is_filled(sizes, devices, want):
  assert mesh_lib.mesh_shape(sizes, devices) == want


@pytest.mark.parametrize(
  ('sizes', 'said'),
  [
    ({'data': -1, 'fsdp': 3}, 'does not divide the 8 devices'),
    ({'data': 2}, 'does not divide the 8 devices'),
    ({'data': -1, 'fsdp': 16}, 'does not divide the 8 devices'),
    ({'data': -1, 'fsdp': -1}, 'one may be -1'),
    ({'data': 0}, 'must be positive'),
    ({'pipeline': 2}, "has \\['pipeline'\\]; its axes are"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, said):
  with pytest.raises(UserError, match=said):
    mesh_lib.mesh_shape(sizes, 8)


def test_only_data_crosses_slices(monkeypatch):
  # Devices of two slices by turns.
  monkeypatch.setattr(mesh_lib, '_slice', lambda device: device.id % 2)
  mesh = mesh_lib.make_mesh({'data': 4, 'fsdp': 2})
  assert mesh.devices.shape == (4, 2, 1, 1)
  numbers = np.vectorize(lambda device: device.id)(mesh.devices)
  assert (numbers[:2] % 2 == 0).all() and (numbers[2:] % 2 == 1).all()
  with pytest.raises(UserError, match='data=1 must be a multiple of the 2'):
    mesh_lib.make_mesh({'fsdp': 8})


def test_parameters_moments_and_average_are_laid_out_alike():
  exp = toy_experiment.make(toy_config.plain())
  state = mesh_lib.abstract_state(exp, mesh_lib.make_mesh(SIZES))
  for tree in (state.params, state.opt_state[0].mu, state.ema):
    assert tree['up']['kernel'].sharding.spec == P('fsdp', 'tensor')
    assert tree['down']['kernel'].sharding.spec == P('tensor', 'fsdp')
  assert state.step.sharding.spec == P()


def test_a_logical_constraint_lands():
  """Flax drops one silently unless a mesh and rules are in scope."""
  mesh = mesh_lib.make_mesh(SIZES)

  @jax.jit
  def constrained(x):
    return nn.with_logical_constraint(x, ('batch', 'seq', 'mlp'))

  with (
    jax.set_mesh(mesh),
    nn.logical_axis_rules(toy_experiment.AXIS_RULES),
  ):
    y = constrained(np.ones((8, 4, 8)))
  assert y.sharding.shard_shape(y.shape) == (2, 4, 4)


def test_a_batch_is_split_over_the_data_axes():
  mesh = mesh_lib.make_mesh(SIZES)
  rows = np.arange(8)[:, None]
  batch = mesh_lib.put_batch({'x': rows}, mesh_lib.batch_sharding(mesh))
  np.testing.assert_array_equal(batch['x'], rows)
  assert {s.data.shape for s in batch['x'].addressable_shards} == {(2, 1)}


def test_a_batch_must_divide():
  mesh = mesh_lib.make_mesh(SIZES)
  mesh_lib.check_batch_size(8, mesh)
  with pytest.raises(UserError, match='6 is not a multiple of the 4 shards'):
    mesh_lib.check_batch_size(6, mesh)


def test_a_process_must_hold_as_many_rows_as_it_loads(monkeypatch):
  # As if two processes saw all of this mesh: each would hold the whole batch.
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  mesh = mesh_lib.make_mesh({'tensor': 8})
  with pytest.raises(UserError, match='keep context'):
    mesh_lib.check_batch_size(8, mesh)
