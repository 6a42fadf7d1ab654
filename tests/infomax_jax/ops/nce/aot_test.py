"""The kernels inside a sharded program, compiled for TPUs not there."""

import json
import os
import subprocess
import sys

import pytest

# One device's scores are the largest array there could be.
PROGRAM = """
import json, sys
from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import numpy as np
from infomax_jax import nce

devices = topologies.get_topology_desc(
  platform='tpu', topology_name=sys.argv[1]
).devices
mesh = Mesh(np.array(devices), ('data',), axis_types=(AxisType.Auto,))
divided = NamedSharding(mesh, P('data'))
batch = 256 * len(devices)
args = [
  jax.ShapeDtypeStruct((batch, n, 128), jnp.bfloat16, sharding=divided)
  for n in (2, 5)
]

def loss(sources, targets):
  scores = nce.score(
    sources, targets, block=128, dtype='bfloat16', implementation='pallas'
  )
  return scores.mean_square.sum() - scores.log_softmax.mean()

with jax.set_mesh(mesh), nn.logical_axis_rules((('batch', 'data'),)):
  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*args).compile()
text = compiled.as_text()
print(json.dumps({
  'temp': compiled.memory_analysis().temp_size_in_bytes,
  'scores': batch * 2 * 256 * 5 * 4,
  'forward': text.count('nce_forward'),
  'backward': text.count('nce_backward'),
  # Some compilers of libtpu make all-reduces of reduce-scatters.
  'reduced': 'reduce-scatter' in text or 'all-reduce' in text,
}))
"""


@pytest.mark.full
@pytest.mark.parametrize(
  'topology', ['v5e:2x2', 'v5p:2x2x1', 'v6e:2x2', 'tpu7x:2x2x1']
)
def test_compiles_and_keeps_no_scores(topology):
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
  out = json.loads(run.stdout.splitlines()[-1])
  assert out['forward'] and out['backward'] and out['reduced']
  assert out['temp'] < out['scores']
