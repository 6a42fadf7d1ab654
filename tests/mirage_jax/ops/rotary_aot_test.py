"""The kernel of norms and positions, compiled for TPUs that are not there."""

import json
import os
import subprocess
import sys

import pytest

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
@pytest.mark.parametrize(
  'topology', ['v5e:2x2', 'v5p:2x2x1', 'v6e:2x2', 'tpu7x:2x2x1']
)
def test_compiles(topology):
  pytest.importorskip('libtpu', reason="needs pip install 'jax[tpu]'")
  environment = os.environ | {
    'TPU_SKIP_MDS_QUERY': '1',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'JAX_PLATFORMS': 'cpu',
  }
  run = subprocess.run(
    [sys.executable, '-c', PROGRAM, topology],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr[-3000:]
  assert all(json.loads(run.stdout.splitlines()[-1]))
