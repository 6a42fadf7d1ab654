r"""Memory and modelled time of AMDIM's NCE on a TPU pod that is not there.

  python -m launch.bench_nce --pod v5p:8x8x4 --nce pallas --block 2048
  python -m launch.bench_nce --pod v5p:8x8x4 --nce xla --block 256

Compiles the loss of one pair of maps and its gradients for every device of the
pod, the batch divided among them, and prints one line of JSON: bytes that a
device holds at most and of these temporary ones (from the compiler),
milliseconds by the model of `launch.aot` (modelled, not measured), of these in
Pallas kernels, in what XLA fused and in collectives, none of which libtpu
overlaps unless its options say so. The defaults are 1->7 of the largest model
for ImageNet at batch 4,096 on 256 chips; `--kinds 2 --positions 25` is 1->5 and
5->5 in one pass. Needs `pip install 'jax[tpu]'` and no TPU.
"""

import functools
import json
import sys
import time

from absl import app, flags
from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import numpy as np

from infomax_jax import nce
from launch import aot, aot_chips
from launch.aot_schedule import Walk
from launch.errors import UserError, one_line

_POD = flags.DEFINE_string('pod', 'v5p:8x8x4', aot_chips.EXAMPLES)
_NCE = flags.DEFINE_enum('nce', 'pallas', ['xla', 'pallas'], 'implementation')
_BLOCK = flags.DEFINE_integer('block', 2048, 'images gathered at once', 1)
_IMAGES = flags.DEFINE_integer('images', 16, 'images of one device', 1)
_KINDS = flags.DEFINE_integer('kinds', 1, 'sources of one image', 1)
_POSITIONS = flags.DEFINE_integer('positions', 49, 'targets of one image', 1)
_DIM = flags.DEFINE_integer('dim', 2560, 'n_rkhs', 1)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'bfloat16', ['float32', 'bfloat16'], 'of sources and targets'
)


def main(_: list[str]) -> None:
  with one_line(), aot.dumped(True) as cycles:
    print(json.dumps(measure(cycles)))


def measure(cycles) -> dict:
  """Compiles, and what the program takes; times in milliseconds."""
  chip = aot_chips.chip(_POD.value)
  devices = aot_chips.devices(_POD.value)
  start = time.perf_counter()
  program = compiled(devices)
  seconds = time.perf_counter() - start
  walk = Walk(
    program.as_text(),
    chip,
    len(devices),
    functools.partial(cycles, chip=chip),
  )
  line, memory = walk.timeline, program.memory_analysis()
  given = memory.argument_size_in_bytes + memory.output_size_in_bytes
  if line.unknown:
    raise UserError(f'kernels without a time: {line.unknown}')
  batch = _IMAGES.value * len(devices)
  scores = batch * _KINDS.value * _IMAGES.value * _POSITIONS.value
  return {
    'pod': _POD.value,
    'nce': _NCE.value,
    'block': _BLOCK.value,
    'peak_bytes': memory.peak_memory_in_bytes,
    # Not its temp_size: that was 0 on a v6e with 56 MB alive.
    'temp_bytes': memory.peak_memory_in_bytes - given,
    'scores_bytes': 4 * scores,
    'modelled_ms': 1e3 * line.seconds,
    'kernels_ms': 1e3 * sum(row.seconds for row in line.kernels.values()),
    'fusions_ms': 1e3 * sum(row.seconds for row in line.fusions.values()),
    'collectives_ms': 1e3 * line.exposed,
    # At peak: scores, scores once more, and the gradients of both inputs.
    'bound_ms': 1e3 * 8 * scores * _DIM.value / chip.peak,
    'compile_seconds': seconds,
  }


def compiled(devices) -> jax.stages.Compiled:
  """The loss and the gradients of sources and targets, for these devices."""
  mesh = Mesh(np.array(devices), ('data',), axis_types=(AxisType.Auto,))
  divided = NamedSharding(mesh, P('data'))
  args = [
    jax.ShapeDtypeStruct(
      (_IMAGES.value * len(devices), n, _DIM.value),
      _DTYPE.value,
      sharding=divided,
    )
    for n in (_KINDS.value, _POSITIONS.value)
  ]

  def loss(sources, targets):
    scores = nce.score(
      sources,
      targets,
      block=_BLOCK.value,
      dtype=_DTYPE.value,
      implementation=_NCE.value,
    )
    return 5e-2 * jnp.sum(scores.mean_square) - jnp.mean(scores.log_softmax)

  with jax.set_mesh(mesh), nn.logical_axis_rules((('batch', 'data'),)):
    lowered = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*args)
    return lowered.compile()


if __name__ == '__main__':
  sys.exit(app.run(main))
