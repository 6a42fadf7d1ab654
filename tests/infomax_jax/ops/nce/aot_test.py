"""The kernels inside a sharded program, compiled for TPUs not there."""

import pytest

from tests import tpu_target

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
@pytest.mark.parametrize('topology', tpu_target.TOPOLOGIES)
def test_compiles_and_keeps_no_scores(topology):
  out = tpu_target.run(PROGRAM, topology)
  assert out['forward'] and out['backward'] and out['reduced']
  assert out['temp'] < out['scores']
