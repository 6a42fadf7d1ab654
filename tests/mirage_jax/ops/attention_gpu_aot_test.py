"""The GPU kernels, compiled for GPUs that are not there."""

import pytest

from tests import gpu_target

PROGRAM = """
from mirage_jax.ops.attention import attention

x = abstract((2, 900, 3, int(sys.argv[2])), jnp.bfloat16)
mask = abstract((2, 900), jnp.bool_)

def loss(q, k, v, mask):
  out = attention(q, k, v, mask, implementation='gpu')
  return jnp.sum(out.astype(jnp.float32) ** 2)

compiled = compile(jax.grad(loss, (0, 1, 2)), x, x, x, mask)
text = compiled.as_text()
names = 'attention_forward', 'attention_queries', 'attention_keys'
print(json.dumps({
  'temp': compiled.memory_analysis().temp_size_in_bytes,
  'kernels': [name for name in names if name in text],
}))
"""


@pytest.mark.full
@pytest.mark.parametrize('target', list(gpu_target.TARGETS))
@pytest.mark.parametrize('dim', [64, 128, 256])
def test_compiles_without_spills_and_keeps_no_weights(target, dim):
  out = gpu_target.run(target, PROGRAM, dim)
  assert len(out['kernels']) == 3
  # The weights alone would be 2 x 3 heads x 900 x 900 in bfloat16.
  assert out['temp'] < 2 * 3 * 900 * (4 * dim * 2)
