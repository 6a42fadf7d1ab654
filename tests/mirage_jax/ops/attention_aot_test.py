"""The TPU kernels, compiled for TPUs that are not there."""

import pytest

from tests import tpu_target

PROGRAM = """
import json, sys
import jax
from jax import numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np
from mirage_jax.ops.attention import attention

device = topologies.get_topology_desc(
  platform='tpu', topology_name=sys.argv[1]
).devices[0]
mesh = Mesh(np.array([device]), ('x',))
abstract = lambda shape, dtype: jax.ShapeDtypeStruct(
  shape, dtype, sharding=NamedSharding(mesh, P())
)
x = abstract((2, 900, 3, int(sys.argv[2])), jnp.bfloat16)
mask = abstract((2, 900), jnp.bool_)

def loss(q, k, v, mask):
  out = attention(q, k, v, mask, implementation='tpu')
  return jnp.sum(out.astype(jnp.float32) ** 2)

with jax.set_mesh(mesh):
  gradients = jax.jit(jax.grad(loss, (0, 1, 2)))
  compiled = gradients.lower(x, x, x, mask).compile()
text = compiled.as_text()
print(json.dumps({
  'temp': compiled.memory_analysis().temp_size_in_bytes,
  'forward': text.count('attention_forward'),
  'backward': text.count('attention_backward'),
}))
"""


@pytest.mark.full
@pytest.mark.parametrize(
  ('topology', 'dim'),
  [('v5e:2x2', 64), ('v5p:2x2x1', 128), ('v6e:2x2', 128), ('tpu7x:2x2x1', 256)],
)
def test_compiles_and_keeps_no_weights(topology, dim):
  out = tpu_target.run(PROGRAM, topology, str(dim))
  assert out['forward'] and out['backward']
  # The weights alone would be 2 x 3 heads x 900 x 900 in bfloat16.
  padded = 2 * 3 * 1024 * dim
  assert out['temp'] < 16 * 4 * padded
