r"""Modelled time of attention on a TPU that is not there, ours against splash.

  python -m launch.bench_attention --pod v6e:2x2 --kernel tpu
  python -m launch.bench_attention --pod v6e:2x2 --kernel splash --blocks 1024,2048,512

Compiles attention and its gradients for one device of the topology and prints
one line of JSON: milliseconds by the model of `launch.aot` (modelled, not
measured) of the forward and the backward kernel and of what XLA fused around
them, and how much of the peak the products of the forward (4 T^2 D a head) and
of a backward in one pass (2.5 times that) make up in the kernels' time. The
defaults are Mirage's 4 s at 720p: 72,000 video, 3,600 reference, 256 text and
200 audio tokens; 24 heads over 4 context chips. Time is proportional to heads:
`--heads 1` (2 for v5p, which has two cores) takes a sixth of the minutes.
Needs `pip install 'jax[tpu]'` and no TPU.
"""

import dataclasses
import functools
import json
import math
import sys
import time

from absl import app, flags
import jax
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from launch import aot, aot_chips
from launch.aot_schedule import Walk
from launch.errors import UserError, one_line
from mirage_jax.ops.attention import splash, tpu, tpu_blocks

_POD = flags.DEFINE_string('pod', 'v5p:2x2x1', aot_chips.EXAMPLES)
_KERNEL = flags.DEFINE_enum('kernel', 'tpu', ['tpu', 'splash'], 'whose')
_BLOCKS = flags.DEFINE_list(
  'blocks',
  [],
  'queries, keys and keys at a time, of both passes, instead of the defaults; '
  'or six numbers, the last three of the backward pass',
)
_TOKENS = flags.DEFINE_integer('tokens', 76056, 'of the joint sequence', 1)
_HEADS = flags.DEFINE_integer('heads', 6, 'on this device', 1)
_DIM = flags.DEFINE_integer('dim', 128, 'of a head', 64)
_BACKWARD = flags.DEFINE_bool('backward', True, 'gradients too')


def main(_: list[str]) -> None:
  with one_line(), aot.dumped(True) as cycles:
    print(json.dumps(measure(cycles)))


def measure(cycles) -> dict:
  """Compiles, and what the program takes; times in milliseconds."""
  chip = aot_chips.chip(_POD.value)
  name = _POD.value.partition(':')[0]
  sizes = tuple(int(n) for n in _BLOCKS.value)
  if len(sizes) not in (0, 3, 6):
    raise UserError('--blocks takes three numbers, or six')
  sizes = sizes * 2 if len(sizes) == 3 else sizes
  make = ours if _KERNEL.value == 'tpu' else theirs
  start = time.perf_counter()
  program, blocks = compiled(functools.partial(make, name, sizes))
  seconds = time.perf_counter() - start
  walk = Walk(program.as_text(), chip, 1, functools.partial(cycles, chip=chip))
  line = walk.timeline
  if line.unknown:
    raise UserError(f'kernels without a time: {line.unknown}')
  forward = backward = 0.0
  for kernel, row in line.kernels.items():
    if 'bwd' in kernel or 'dkv' in kernel or 'backward' in kernel:
      backward += 1e3 * row.seconds
    else:
      forward += 1e3 * row.seconds
  peak = 4e3 * _TOKENS.value**2 * _DIM.value * _HEADS.value / chip.peak
  return {
    'pod': _POD.value,
    'kernel': _KERNEL.value,
    'blocks': blocks,
    'heads': _HEADS.value,
    'modelled_forward_ms': forward,
    'modelled_backward_ms': backward,
    'modelled_fusions_ms': 1e3 * sum(x.seconds for x in line.fusions.values()),
    'forward_of_peak': peak / forward if forward else None,
    'backward_of_peak': 2.5 * peak / backward if backward else None,
    'kernels': sorted(line.kernels),
    'compile_seconds': seconds,
  }


def compiled(make) -> tuple[jax.stages.Compiled, str]:
  """Attention, or its gradients, for one device; and its blocks."""
  device = aot_chips.devices(_POD.value)[0]
  mesh = Mesh(np.array([device]), ('x',))
  x = jax.ShapeDtypeStruct(
    (1, _TOKENS.value, _HEADS.value, _DIM.value),
    jnp.bfloat16,
    sharding=NamedSharding(mesh, PartitionSpec()),
  )
  with jax.set_mesh(mesh):
    run, blocks = make()

    def gradients(q, k, v, g):
      out, vjp = jax.vjp(run, q, k, v)
      return out, vjp(g)

    args = (gradients, x, x, x, x) if _BACKWARD.value else (run, x, x, x)
    return jax.jit(args[0]).lower(*args[1:]).compile(), blocks


def ours(name: str, sizes: tuple[int, ...]):
  """Our kernels, with other largest blocks if there are sizes."""
  chip = tpu_blocks.CHIPS[name]
  if sizes:
    named = lambda n: dict(zip(('q', 'k', 'sub'), n, strict=True))
    chip = dataclasses.replace(
      chip,
      forward=dataclasses.replace(chip.forward, **named(sizes[:3])),
      backward=dataclasses.replace(chip.backward, **named(sizes[3:])),
    )
    tpu_blocks.CHIPS[name] = chip
  plan = tpu_blocks.plan(name, _TOKENS.value, _TOKENS.value, _DIM.value, 2)
  return functools.partial(tpu.attention, chip=name), str(plan)


def theirs(_: str, sizes: tuple[int, ...]):
  """Splash attention on tokens padded to whole blocks, which no mask tells."""
  sizes = sizes or splash.BLOCKS
  unit = math.lcm(*sizes[:2], *sizes[3:5])
  widths = ((0, 0), (0, -_TOKENS.value % unit), (0, 0), (0, 0))

  def run(*args):
    args = (jnp.pad(x, widths) for x in args)
    return splash.attention(*args, blocks=sizes)[:, : _TOKENS.value]

  return run, str(sizes)


if __name__ == '__main__':
  sys.exit(app.run(main))
