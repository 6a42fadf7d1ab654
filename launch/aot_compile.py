"""Compiles the step that `launch.train` would run, for devices not there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import importlib
import math
import re
import time
from typing import Any

from flax import linen as nn
import jax
from jax.sharding import Mesh

from launch import aot_memory, loop, mesh as mesh_lib
from launch.errors import UserError


class TooBig(UserError):
  """The step does not fit into a device's memory; the text says what would."""


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A step for the devices of a topology.

  Attributes:
    program: What `jax.stages.Lowered.compile` gives.
    mesh: Over the topology's devices.
    memory: Of one device.
    seconds: Tracing and compiling.
    warnings: What would keep `launch.train` from running it there.
  """

  program: Any
  mesh: Mesh
  memory: aot_memory.Memory
  seconds: float
  warnings: Sequence[str]


def abstract_batch(config: Mapping[str, Any]) -> Any:
  """Shapes and dtypes of the experiment's batch.

  Raises:
    UserError: the experiment cannot tell them without data.
  """
  module = importlib.import_module(config['experiment'])
  if not hasattr(module, 'abstract_batch'):
    raise UserError(
      f'{config["experiment"]} has no abstract_batch(config, batch_size), '
      'which tells the shapes of a batch without data'
    )
  return module.abstract_batch(config, config['batch_size'])


def unboxed_state(exp: Any) -> Any:
  """Shapes and dtypes of the train state, laid out nowhere."""
  return nn.unbox(jax.eval_shape(exp.init, jax.random.key(0)))


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any]) -> Mesh:
  """As the loop makes it; UserError if the torus cannot be cut so."""
  try:
    return mesh_lib.make_mesh(sizes, devices)
  except NotImplementedError as error:
    said = re.search(r'assignable mesh (\[.*?\])', str(error))
    left = said[1] if said else 'nothing'
    near = next(
      other
      for other in mesh_lib.meshes(sizes, len(devices))
      if _cuts(other, devices)
    )
    raise UserError(
      f'config.mesh {dict(sizes)} cuts a side of the torus (left of it: '
      f'{left}): each axis must be a product of whole sides, as with '
      f'{mesh_lib.as_flags(near, sizes)}'
    ) from error


def _cuts(sizes, devices):
  """Whether the torus can be cut so."""
  try:
    mesh_lib.make_mesh(sizes, devices)
  except (NotImplementedError, UserError):
    return False
  return True


@dataclasses.dataclass(frozen=True)
class LaidOut:
  """The loop's program of a config on some devices; nothing is traced yet.

  Attributes:
    exp: The experiment.
    mesh: Over the devices.
    program: As the loop has it.
    batch: Abstract, with shardings.
  """

  exp: loop.Experiment
  mesh: Mesh
  program: loop.Program
  batch: Any

  @classmethod
  def of(
    cls,
    config: Mapping[str, Any],
    devices: Sequence[Any],
    build: Callable[[Mapping[str, Any]], loop.Experiment],
  ) -> 'LaidOut':
    """Raises UserError as `compile_step`, of heads if they are parameters'."""
    exp, size = build(config), config['batch_size']
    mesh = make_mesh(config.get('mesh', {}), devices)
    mesh_lib.batch_shards(size, mesh)
    check_tokens(exp, size, mesh)
    program = loop.Program.of(exp, mesh)
    check_divides(program.target, mesh)
    batch = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=program.batch),
      abstract_batch(config),
    )
    return cls(exp, mesh, program, batch)

  @contextlib.contextmanager
  def traced(self) -> Iterator[tuple]:
    """Where the step may be traced; its abstract arguments."""
    with (
      jax.set_mesh(self.mesh),
      nn.logical_axis_rules(self.exp.axis_rules),
      mesh_lib.laid_out(),
    ):
      key = jax.eval_shape(lambda: jax.random.key(0))
      yield self.program.target, self.batch, key


def divides(
  config: Mapping[str, Any],
  devices: Sequence[Any],
  build: Callable[[Mapping[str, Any]], loop.Experiment],
  layout: aot_memory.Layout,
) -> bool:
  """Whether the step of a config can be laid out otherwise."""
  changed = dict(mesh=dict(layout.mesh), batch_size=layout.batch_size)
  try:
    laid = LaidOut.of({**config, **changed}, devices, build)
    with laid.traced() as arguments:
      jax.eval_shape(laid.exp.train_step, *arguments)
  except UserError:
    return False
  return True


def compile_step(
  config: Mapping[str, Any],
  devices: Sequence[Any],
  build: Callable[[Mapping[str, Any]], loop.Experiment] = loop.build,
) -> Compiled:
  """The real step: the loop's program, the config's batch, the given devices.

  Args:
    config: a plain nested dict; XLA's options at `compiler_options`, if any.
    devices: of a topology.
    build: config -> whose step.

  Raises:
    UserError: a mesh that does not divide devices, parameters, tokens, heads
      or the batch.
    TooBig: it does not fit.
  """
  loop.Schedule.of(config)
  laid = LaidOut.of(config, devices, build)
  mesh, target, size = laid.mesh, laid.program.target, config['batch_size']
  start = time.perf_counter()
  with laid.traced() as arguments:
    lowered = laid.program.step.lower(*arguments)
  options = config.get('compiler_options')
  try:
    compiled = lowered.compile(compiler_options=dict(options or {}) or None)
  except jax.errors.JaxRuntimeError as error:
    can = functools.partial(divides, config, devices, build)
    raise _told(error, target, mesh, size, can) from error
  return Compiled(
    compiled,
    mesh,
    aot_memory.Memory.of(compiled, target, laid.batch),
    time.perf_counter() - start,
    # Of a sampler no rows are loaded.
    tuple(shared_rows(mesh, size)) if laid.exp.dataset else (),
  )


def check_divides(target: Any, mesh: Mesh) -> None:
  """Raises UserError if an axis of a parameter does not divide on the mesh."""
  for path, x in jax.tree_util.tree_leaves_with_path(target):
    for size, names in zip(x.shape, x.sharding.spec, strict=False):
      names = (names,) if isinstance(names, str) else names or ()
      parts = math.prod(mesh.shape[name] for name in names)
      if size % parts:
        where = jax.tree_util.keystr(path)
        both = math.gcd(size, mesh.size)
        near = [n for n in range(1, both + 1) if both % n == 0]
        raise UserError(
          f'config.mesh.{"*".join(names)}={parts} does not divide the {size} '
          f'of state{where}, shape {x.shape}; {", ".join(map(str, near))} do'
        )


def check_tokens(exp: Any, batch_size: int, mesh: Mesh) -> None:
  """Raises UserError if `context` does not divide a sample's tokens.

  XLA would pad them without a word.
  """
  tokens, context = _tokens(exp, batch_size), mesh.shape['context']
  if tokens % context:
    near = [n for n in range(1, 4 * context) if tokens % n == 0]
    raise UserError(
      f'config.mesh.context={context} does not divide the {tokens} tokens of a '
      f'sample; {", ".join(map(str, near))} do'
    )


def _tokens(exp, batch_size):
  """Of a sample; 0 if the experiment does not tell."""
  return getattr(exp, 'tokens_per_step', 0) // batch_size


def _told(error, target, mesh, size, can):
  """What to raise for an error of the compiler; `can` a layout be laid out."""
  held = sum(aot_memory.arguments(target, ()).values())
  over = aot_memory.Overflow.read(str(error), held)
  if over is None:
    return UserError(f'libtpu: {str(error).splitlines()[0]}')
  what = aot_memory.advice(target, mesh.shape, size, over, can)
  gib = aot_memory.GIB
  return TooBig(
    f'does not fit: {over.used / gib:.1f} of {over.limit / gib:.1f} GiB a '
    f'device; {what}'
  )


def shared_rows(mesh: Mesh, batch_size: int) -> list[str]:
  """A warning if processes would have to load rows that others load too.

  Each process of `launch.train` loads its own 1/processes of a batch, so that
  `context` and `tensor` have to stay inside a process.
  """
  rows = mesh_lib.batch_sharding(mesh).devices_indices_map((batch_size,))
  held = {}
  for device, (index,) in rows.items():
    held.setdefault(device.process_index, set()).add(index.start)
  shards = mesh_lib.batch_shards(batch_size, mesh)
  widest = max(map(len, held.values()))
  if widest * len(held) == shards:
    return []
  return [
    f'launch.train would refuse it: a process holds {widest} of {shards} '
    f'shards of the batch, but loads 1/{len(held)}; keep context * tensor '
    'within the devices of one process'
  ]
