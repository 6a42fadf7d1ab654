"""Mochi's checkpoint, as converted, on a pod of 256 devices; no array is made."""

import dataclasses
import functools
import math
import types

from flax import linen as nn, traverse_util
import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
import numpy as np
import pytest

from launch import convert_foreign, convert_mochi, mesh as mesh_lib
from mirage_jax import config, dit, mochi_weights, sharding
from mirage_jax.encoders import names

MIRAGE = dataclasses.replace(
  convert_mochi.MOCHI, audio=config.StreamConfig(512, 1536, 1024)
)
# Sizes of the mesh's axes, and into how many parts, at least, parameters are
# split: modulations have no tensor axis, and nothing has the context's.
MESHES = {
  'fsdp': ((1, 256, 1, 1), 256),
  'tensor': ((1, 64, 1, 4), 128),
  'long_videos': ((1, 64, 4, 1), 64),
}


@pytest.fixture(scope='module')
def boxed():
  """The 10B Mirage's parameters with their logical axes."""
  like = jax.ShapeDtypeStruct
  cond = {'text': like((1, 2, 4096), np.float32)}
  cond |= {'audio': like((1, 5, 1024), np.float32)}
  init = dit.Mirage(MIRAGE).init
  video, sigma = like((1, 1, 2, 2, 12), np.float32), like((1,), np.float32)
  return jax.eval_shape(init, jax.random.key(0), video, sigma, cond)['params']


@pytest.fixture(scope='module')
def converted():
  """Path to the spec that a conversion of Mochi's real names would write."""
  ours = convert_mochi.abstract_dit(convert_mochi.MOCHI)
  layout = mochi_weights.diffusers(convert_mochi.MOCHI)
  shapes = names.their_shapes(layout, ours)

  like = functools.partial(jax.ShapeDtypeStruct, dtype=jax.numpy.bfloat16)
  tensors = {name: like(shape) for name, shape in shapes.items()}
  source = types.SimpleNamespace(tensors=tensors)
  kind = convert_mochi.mochi(tensors, {})
  assert kind.config['model'] == dataclasses.asdict(convert_mochi.MOCHI)
  spelled = convert_foreign.check(source, kind)
  return convert_foreign.specs(source, kind, spelled, 'keep', '')


def test_all_of_mochi_has_its_place_in_the_talking_model(boxed, converted):
  full = traverse_util.flatten_dict(nn.unbox(boxed), sep='/')
  for path, spec in converted.items():
    assert full[path].shape == spec.shape, path
  fresh = set(full) - set(converted)
  assert fresh and all('audio' in path for path in fresh)
  count = sum(math.prod(spec.shape) for spec in converted.values())
  assert 10.0e9 < count < 10.03e9  # The last block's text queries are left.
  assert dit.count_params(nn.unbox(boxed)) > 10.5e9


@pytest.mark.parametrize('name', MESHES)
def test_no_device_of_256_holds_more_than_its_share(boxed, name):
  sizes, parts = MESHES[name]
  mesh = AbstractMesh(sizes, mesh_lib.AXES, axis_types=(AxisType.Auto,) * 4)
  placed = nn.logical_to_mesh_sharding(
    nn.get_partition_spec(boxed), mesh, sharding.AXIS_RULES
  )
  flat = traverse_util.flatten_dict(nn.unbox(boxed), sep='/')
  held = total = 0
  for path, where in traverse_util.flatten_dict(placed, sep='/').items():
    shape = flat[path].shape
    part = math.prod(where.shard_shape(shape))  # Raises if it does not divide.
    total += math.prod(shape)
    held += part
    if math.prod(shape) > 1e6:
      assert where.spec != PartitionSpec(), path
  assert mesh.size == 256
  assert held < 1.05 * total / parts
