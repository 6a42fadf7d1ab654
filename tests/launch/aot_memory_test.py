"""What fits: sizes off the shardings, and layouts in order of nearness."""

import dataclasses
import math

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import pytest

from launch import aot_memory, mesh as mesh_lib

GIB = aot_memory.GIB


@flax.struct.dataclass
class State:
  params: jax.Array
  step: jax.Array


@dataclasses.dataclass(frozen=True)
class Toy:
  """A matrix, its columns split over fsdp."""

  axis_rules = (('embed', 'fsdp'), ('mlp', 'tensor'))

  def init(self, key):
    names = nn.with_logical_partitioning(
      nn.initializers.zeros_init(), ('mlp', 'embed')
    )
    return State(names(key, (24, 2**24)), jnp.zeros((), jnp.int32))


SIZE = 24 * 2**24 * 4
MESH = {'data': 4, 'fsdp': 2, 'context': 1, 'tensor': 1}


@pytest.fixture(scope='module')
def state():
  return mesh_lib.abstract_state(Toy(), mesh_lib.make_mesh(MESH))


def test_bytes_of_a_device(state):
  got = aot_memory.arguments(state, {'x': state.step})
  assert got == {'params': SIZE // 2, 'step': 4, 'batch': 4}


@pytest.mark.parametrize(
  ('message', 'used', 'limit'),
  [
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
      'for HLO temporaries (241.53G) exceeds available HBM (31.25G).',
      241.53 + 2,
      31.25,
    ),
    (
      'XLA:TPU compile permanent error. Ran out of memory in memory space hbm. '
      'Used 17.30G of 15.75G hbm. Exceeds hbm capacity by 1.55G.',
      17.30,
      15.75,
    ),
    ('CompileTimeHbmOom: 247.94G exceeds 31.24G', 247.94, 31.24),
  ],
)
def test_libtpus_words_are_read(message, used, limit):
  over = aot_memory.Overflow.read(message, 2 * GIB)
  assert over.used / GIB == pytest.approx(used)
  assert over.limit / GIB == pytest.approx(limit)


def test_another_error_is_no_overflow():
  assert aot_memory.Overflow.read('INVALID_ARGUMENT: 3 of 4 flags') is None


def test_the_nearest_layout_comes_first(state):
  used = SIZE / 2 + 8 * GIB
  found = list(aot_memory.layouts(state, MESH, 64, used))
  assert found[0].mesh == MESH and found[0].bytes == pytest.approx(used, 1e-6)
  assert all(math.prod(x.mesh.values()) == 8 for x in found)
  # Half the batch: the same state and half of the rest.
  half = next(x for x in found if x.batch_size == 32 and x.mesh == MESH)
  assert half.bytes == pytest.approx(SIZE / 2 + 4 * GIB, 1e-6)
  # Tokens over two devices do not change what all of them hold together.
  mesh = {'data': 2, 'fsdp': 2, 'context': 2, 'tensor': 1}
  split = next(x for x in found if x.mesh == mesh and x.batch_size == 64)
  assert split.bytes == pytest.approx(used, 1e-6)


def test_state_that_is_too_large_is_split_further(state):
  over = aot_memory.Overflow(SIZE / 2 + 100, SIZE / 3)
  assert '--config.mesh.data=2 --config.mesh.fsdp=4 would fit' in (
    aot_memory.advice(state, MESH, 64, over)
  )
  # Unless tokens or heads forbid it.
  said = aot_memory.advice(
    state, MESH, 64, over, lambda layout: layout.mesh['data'] != 2
  )
  assert 'data=1' in said


def test_activations_that_are_too_large_need_a_smaller_batch(state):
  over = aot_memory.Overflow(SIZE / 2 + 8 * GIB, SIZE / 2 + 5 * GIB)
  said = aot_memory.advice(state, MESH, 64, over)
  assert '--config.batch_size=32' in said and 'mesh' not in said


def test_nothing_fits(state):
  over = aot_memory.Overflow(1000 * GIB, GIB)
  said = aot_memory.advice(state, MESH, 8, over)
  assert 'no mesh of these devices fits' in said and '8247 of them' in said
