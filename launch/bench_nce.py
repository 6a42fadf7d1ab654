r"""Memory and modelled time of AMDIM's NCE on a TPU pod that is not there.

  python -m launch.bench_nce --pod v6e:16x16 --fsdp 16 --offload
  python -m launch.bench_nce --pod v6e:16x16 --nce xla --block 256
  python -m launch.bench_nce --pod v6e:16x16 --nce plain

Compiles the loss of one pair of maps and its gradients for every device of the
pod, the batch divided among them, and prints one line of JSON: bytes that a
device holds at most and of these temporary ones (from the compiler),
milliseconds by the model of `launch.aot` (modelled, not measured), of these in
Pallas kernels, in what XLA fused and in collectives that nothing hides. Needs
`pip install 'jax[tpu]'` and no TPU.

'pallas' and 'xla' are those of `infomax_jax.ops.nce`, both in chunks of --block
images and with no scores kept. 'plain' is what one would write first: all
scores at once in jax.numpy, differentiated by JAX and so kept, the batch of both
inputs divided among devices and the rest left to XLA, which gathers sources.

The batch is divided over a mesh of --fsdp devices along its second axis. With
--offload the SparseCores do collectives beside the TensorCores; without, libtpu
stops all work for each. The defaults are 1->7 of the largest model for ImageNet
at batch 4,096 on 256 chips; `--kinds 2 --positions 25` is 1->5 and 5->5 in one
pass, and --whole all tasks of two views in both directions, from the float32
features that encoders give.
"""

import functools
import json
import math
import sys
import time

from absl import app, flags
from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxtyping import Array, Float

from configs.mirage import mirage_10b
from infomax_jax import config, nce, objective
from infomax_jax.encoder import Features
from launch import aot, aot_chips, aot_compile, mesh as mesh_lib
from launch.aot_schedule import Walk
from launch.errors import UserError, one_line

_POD = flags.DEFINE_string('pod', 'v5p:8x8x4', aot_chips.EXAMPLES)
_NCE = flags.DEFINE_enum(
  'nce', 'pallas', ['plain', 'xla', 'pallas'], 'see above'
)
_BLOCK = flags.DEFINE_integer('block', 2048, 'images gathered at once', 1)
_IMAGES = flags.DEFINE_integer('images', 16, 'images of one device', 1)
_KINDS = flags.DEFINE_integer('kinds', 1, 'sources of one image', 1)
_POSITIONS = flags.DEFINE_integer('positions', 49, 'targets of one image', 1)
_DIM = flags.DEFINE_integer('dim', 2560, 'n_rkhs', 1)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'bfloat16', ['float32', 'bfloat16'], 'of sources and targets'
)
_FSDP = flags.DEFINE_integer(
  'fsdp', 16, 'devices along the second axis of the mesh', 1
)
_WHOLE = flags.DEFINE_bool(
  'whole', False, 'the objective, not one pair of maps'
)
_OFFLOAD = flags.DEFINE_bool('offload', False, 'collectives by SparseCores')
CLIP, REG_WEIGHT = 20.0, 5e-2


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
  pairs, travels = _KINDS.value * _POSITIONS.value, 2 * _KINDS.value
  if _WHOLE.value:  # r1 serves two tasks and is gathered once.
    pairs, travels = 2 * (49 + 2 * 25), 2 * (2 + 3)
  scores = batch * _IMAGES.value * pairs
  sources = batch * _DIM.value * jnp.dtype(_DTYPE.value).itemsize
  links = chip.link * chip.links / chip.devices
  return {
    'pod': _POD.value,
    'nce': _NCE.value,
    'block': _BLOCK.value,
    'fsdp': _FSDP.value,
    'offload': _OFFLOAD.value,
    'whole': _WHOLE.value,
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
    # Of sources to every device and their gradients back, over all links.
    'links_ms': 1e3 * travels * sources / links,
    'compile_seconds': seconds,
  }


def compiled(devices) -> jax.stages.Compiled:
  """The loss and the gradients of its inputs, for these devices."""
  mesh = aot_compile.make_mesh({'data': -1, 'fsdp': _FSDP.value}, devices)
  divided = NamedSharding(mesh, P(mesh_lib.BATCH_AXES))
  batch, dim = _IMAGES.value * len(devices), _DIM.value
  if _WHOLE.value:
    loss, dtype = whole, 'float32'
    shapes = [(batch, *side, dim) for side in ((), (5, 5), (7, 7))] * 2
  else:
    loss = plain if _NCE.value == 'plain' else by_chunks
    dtype = _DTYPE.value
    shapes = [(batch, n, dim) for n in (_KINDS.value, _POSITIONS.value)]
  args = [jax.ShapeDtypeStruct(x, dtype, sharding=divided) for x in shapes]
  rules = (('batch', mesh_lib.BATCH_AXES),)
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    step = jax.jit(
      jax.value_and_grad(loss, tuple(range(len(args)))),
      out_shardings=(NamedSharding(mesh, P()), (divided,) * len(args)),
    )
    options = mirage_10b.COMPILER_OPTIONS['v6e_256']
    return step.lower(*args).compile(
      compiler_options=options if _OFFLOAD.value else None
    )


def whole(*maps: Float[Array, 'B ...']) -> Float[Array, '']:
  """The objective of r1, r5 and r7 of one view and of the other."""
  cfg = config.ObjectiveConfig(
    clip=CLIP,
    reg_weight=REG_WEIGHT,
    block=_BLOCK.value,
    dtype=_DTYPE.value,
    nce=_NCE.value,
  )
  views = Features(*maps[:3]), Features(*maps[3:])
  places = objective.draw_locations(jax.random.key(0), *views, cfg)
  return objective.infomax(*views, places, cfg)[0]


def by_chunks(
  sources: Float[Array, 'B K C'], targets: Float[Array, 'B L C']
) -> Float[Array, '']:
  """The NCE and its regulariser as `infomax_jax.objective` has them."""
  scores = nce.score(
    sources,
    targets,
    clip=CLIP,
    block=_BLOCK.value,
    dtype=_DTYPE.value,
    implementation=_NCE.value,
  )
  reg = REG_WEIGHT * jnp.sum(scores.mean_square)
  return reg - jnp.mean(scores.log_softmax)


def plain(
  sources: Float[Array, 'B K C'], targets: Float[Array, 'B L C']
) -> Float[Array, '']:
  """The same, from all scores at once."""
  raw = jnp.einsum(
    'ikc,jlc->ikjl', sources, targets, preferred_element_type=jnp.float32
  ) / math.sqrt(sources.shape[-1])
  scores = CLIP * jnp.tanh(raw / CLIP)
  own = jnp.eye(len(sources), dtype=bool)[:, None, :, None]
  negative = jax.nn.logsumexp(scores, (2, 3), where=~own)
  positive = jnp.sum(jnp.where(own, scores, 0.0), 2)
  log_softmax = positive - jnp.logaddexp(positive, negative[:, :, None])
  reg = REG_WEIGHT * jnp.sum(jnp.mean(jnp.square(raw), (0, 2, 3)))
  return reg - jnp.mean(log_softmax)


if __name__ == '__main__':
  sys.exit(app.run(main))
