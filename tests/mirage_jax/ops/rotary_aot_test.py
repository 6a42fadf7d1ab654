"""The kernel of norms and positions, compiled for TPUs that are not there."""

import pytest

from tests import tpu_target

PROGRAM = """
import json, sys
import jax
from jax import numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np
from mirage_jax import rope
from mirage_jax.ops import rotary

device = topologies.get_topology_desc(
  platform='tpu', topology_name=sys.argv[1]
).devices[0]
mesh = Mesh(np.array([device]), ('x',))
abstract = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(
  shape, dtype, sharding=NamedSharding(mesh, P())
)
qkv = abstract(2, 900, 3, 24, 128, dtype=jnp.bfloat16)
shapes = abstract(2, 128), abstract(3, 24, 64), abstract(1, 900, 3)

def loss(qkv, weights, frequencies, positions):
  tables = rope.rotary_tables(frequencies, positions)
  parts = rotary.turned(
    qkv, weights, tables.turns, tables.positions, frequencies, eps=1e-5
  )
  return sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in parts)

with jax.set_mesh(mesh):
  gradients = jax.jit(jax.grad(loss, (0, 1, 2)))
  text = gradients.lower(qkv, *shapes).compile().as_text()
print(json.dumps([text.count(f'rotary_{x}') for x in ('forward', 'backward')]))
"""


@pytest.mark.full
@pytest.mark.parametrize('topology', tpu_target.TOPOLOGIES)
def test_compiles(topology):
  out = tpu_target.run(PROGRAM, topology)
  assert all(out)
