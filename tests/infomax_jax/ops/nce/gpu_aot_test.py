"""The GPU kernels, compiled for GPUs that are not there."""

import pytest

from tests import gpu_target

PROGRAM = """
from infomax_jax.ops.nce import against_all

batch, positions, dim = 512, 49, int(sys.argv[2])
args = [abstract((batch, n, dim), jnp.bfloat16) for n in (1, positions)]

def loss(sources, targets):
  log, squares = against_all(
    sources, targets, clip=20.0, block=batch, implementation='pallas_gpu'
  )
  return log.sum() + squares.sum()

compiled = compile(jax.grad(loss, (0, 1)), *args)
text = compiled.as_text()
names = 'nce_forward', 'nce_sources', 'nce_targets'
print(json.dumps({
  'temp': compiled.memory_analysis().temp_size_in_bytes,
  'kernels': [name for name in names if name in text],
}))
"""


@pytest.mark.full
@pytest.mark.parametrize('target', list(gpu_target.TARGETS))
@pytest.mark.parametrize('dim', [128, 2560])
def test_compiles_without_spills(target, dim):
  out = gpu_target.run(target, PROGRAM, dim)
  assert len(out['kernels']) == 3
