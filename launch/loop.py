"""The training loop: init or restore, step, log, evaluate, save.

A package hands over an Experiment, a few pure functions; everything with an
effect happens here. A run that is killed and started again with the same
command ends with the same bits as one that was not.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import importlib
import math
import os
from typing import Any, Protocol

from flax import linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from launch import mesh as mesh_lib, warm_start
from launch.checkpoint import Checkpoints, claimed
from launch.errors import UserError
from launch.signals import Termination
from launch.stopwatch import Stopwatch
from launch.trace import Trace
from launch.writer import Progress, Writer

# Other metrics may be: the mean over an empty bin, the PSNR of equal images.
_MUST_BE_FINITE = ('loss', 'grad_norm')


class Experiment(Protocol):
  """What `config.experiment`.make(config) returns; matched by shape.

  It may also have `tokens_per_step`, an int, to show tokens/s, and `adopt`, what
  to take from the weights in config.init_from, see `warm_start.load`.
  """

  init: Callable[[jax.Array], Any]  # key -> boxed state with a .step
  train_step: Callable[[Any, Any, jax.Array], Any]  # -> (state, metrics)
  dataset: Callable[[], Iterable]  # grain; this process's rows of each batch
  axis_rules: tuple  # (logical axis name, mesh axes)
  eval_step: Callable[[Any, Any, jax.Array], Mapping] | None
  eval_dataset: Callable[[], Iterable] | None


@dataclasses.dataclass(frozen=True)
class Schedule:
  """The keys of a config that the loop reads, with `experiment` and `mesh`."""

  seed: int
  num_steps: int
  batch_size: int  # over all processes
  log_every: int
  save_every: int
  eval_every: int  # 0: never
  eval_batches: int
  keep: int  # the latest checkpoints kept
  keep_every: int  # and every so many steps one for good; 0: none

  @classmethod
  def of(cls, config: Mapping[str, Any]) -> 'Schedule':
    """Reads the keys; UserError names a missing one, or one out of range."""
    names = [field.name for field in dataclasses.fields(cls)]
    if missing := [name for name in names if name not in config]:
      raise UserError(f'the config lacks {missing}: launch.loop reads them')
    schedule = cls(**{name: config[name] for name in names})
    for name in ('num_steps', 'batch_size', 'log_every', 'save_every', 'keep'):
      if getattr(schedule, name) < 1:
        raise UserError(f'config.{name} must be at least 1')
    return schedule


def build(config: Mapping[str, Any]) -> Experiment:
  """Imports `config.experiment` and calls its `make` on the plain config.

  Raises:
    UserError: no such module, or a config that it rejects.
  """
  name = config.get('experiment')
  if not name:
    raise UserError('the config lacks `experiment`: the module with `make`')
  try:
    module = importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name is None or not name.startswith(error.name):
      raise
    raise UserError(
      f'config.experiment names the module {name}, which is not there; '
      'run from the root of the repo'
    ) from error
  try:
    return module.make(config)
  except (ValueError, KeyError, FileNotFoundError) as error:
    raise UserError(f'{name} rejects the config: {error}') from error


@dataclasses.dataclass(frozen=True)
class Program:
  """The jitted functions of an experiment and the layout they agree on."""

  target: Any  # abstract state, with shardings
  batch: NamedSharding
  init: Callable
  step: Callable
  evaluate: Callable | None
  keys: Callable

  @classmethod
  def of(
    cls,
    exp: Experiment,
    mesh: Mesh,
    compiler_options: Mapping[str, Any] | None = None,
  ) -> 'Program':
    target = mesh_lib.abstract_state(exp, mesh)
    state = jax.tree.map(lambda x: x.sharding, target)
    batch = mesh_lib.batch_sharding(mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    eval_step = getattr(exp, 'eval_step', None)
    return cls(
      target=target,
      batch=batch,
      init=jax.jit(lambda key: nn.unbox(exp.init(key)), out_shardings=state),
      step=jax.jit(
        exp.train_step,
        donate_argnums=0,
        in_shardings=(state, batch, everywhere),
        out_shardings=(state, everywhere),
        compiler_options=dict(compiler_options or {}) or None,
      ),
      evaluate=eval_step
      and jax.jit(
        eval_step,
        in_shardings=(state, batch, everywhere),
        out_shardings=everywhere,
      ),
      keys=jax.jit(
        jax.random.split, static_argnums=1, out_shardings=everywhere
      ),
    )


def train(
  config: Mapping[str, Any],
  workdir: str | os.PathLike,
  devices: Sequence[jax.Device] | None = None,
  profile: tuple[int, int] | None = None,
  step: Callable | None = None,
) -> Any:
  """Trains to `num_steps`, or until SIGTERM; returns the last state.

  Args:
    config: a plain nested dict, as read back from JSON.
    workdir: gets config.json, checkpoints/, metrics.jsonl and TensorBoard
      events; one that holds a run of the same config is continued.
    devices: what to lay the mesh on; all devices by default.
    profile: the first and the last step to record for xprof, under
      `workdir`/profile.
    step: the compiled step of this config, see `saved_step`.

  Raises:
    UserError: what the user can mend, in one line.
  """
  schedule = Schedule.of(config)
  exp = build(config)
  mesh = mesh_lib.make_mesh(config.get('mesh', {}), devices)
  mesh_lib.check_batch_size(schedule.batch_size, mesh)
  program = Program.of(exp, mesh, config.get('compiler_options'))
  advance = step or program.step
  data = _open(exp.dataset)
  with (
    claimed(workdir, config),
    Stopwatch() as watch,
    watch('other'),
    Checkpoints(workdir, schedule.keep, schedule.keep_every) as checkpoints,
    jax.set_mesh(mesh),
    nn.logical_axis_rules(exp.axis_rules),
  ):
    root = jax.random.key(schedule.seed)
    init_key, loop_key, eval_key = program.keys(root, 3)
    # What a run starts from, first match wins:
    # 1. the latest complete checkpoint in the workdir: the state and the place
    #    in the data, saved together;
    # 2. the weights in config.init_from, with a fresh optimizer;
    # 3. `exp.init`, drawn from config.seed.
    first = checkpoints.latest_step()
    if first is None:
      first, state = 0, program.init(init_key)
      if config.get('init_from'):
        adopt = getattr(exp, 'adopt', None) or warm_start.same_model
        state = warm_start.load(state, config['init_from'], adopt)
    else:
      state, data = checkpoints.restore(first, program.target, data)
    if first >= schedule.num_steps:
      print(f'{workdir} is already at step {first} of {schedule.num_steps}')
      return state
    with (
      MetricLog(workdir, first, schedule, exp, watch) as log,
      Trace(profile, workdir) as trace,
      Termination() as termination,
    ):
      for step in range(first + 1, schedule.num_steps + 1):
        trace.before(step)
        with (
          jax.profiler.StepTraceAnnotation('train', step_num=step),
          jax.transfer_guard('disallow'),
        ):
          with watch('data'):
            batch = mesh_lib.put_batch(
              _next(data, f'step {step}'), program.batch
            )
          with watch('step'), mesh_lib.laid_out():
            state, metrics = advance(state, batch, loop_key)
        # The device works on this step while the one before is logged.
        with watch('step'):
          log.add(step, metrics)
        if recorded := trace.after(step, metrics):
          log.say(recorded)
        stop = termination.asked(step)
        last = step == schedule.num_steps
        if last or stop or step % schedule.save_every == 0:
          # And looks: what is not finite is not saved.
          with log.pause(), watch('save'):
            checkpoints.save(step, state, data)
        if program.evaluate and _due(step, schedule.eval_every, last):
          with log.pause(), watch('evaluate'):
            means = _evaluate(program, exp, schedule, state, eval_key)
          log.write(step, means)
        if stop:
          log.say(f'SIGTERM: saving step {step}; the same command goes on')
          break
  return state


def _due(step: int, every: int, last: bool) -> bool:
  return every > 0 and (last or step % every == 0)


def _open(dataset: Callable[[], Iterable]) -> Iterator:
  try:
    return iter(dataset())
  except ValueError as error:
    raise UserError(f'the dataset cannot be read: {error}') from error


def _next(data: Iterator, when: str, *default: Any) -> Any:
  try:
    return next(data, *default)
  except ValueError as error:  # Of an example: the text names it.
    raise UserError(f'the dataset fails at {when}: {error}') from error
  except StopIteration:
    raise UserError(
      f'the dataset ended before {when}: it must hold at least one batch '
      'and repeat for ever'
    ) from None


def _evaluate(
  program: Program,
  exp: Experiment,
  schedule: Schedule,
  state: Any,
  key: jax.Array,
) -> dict[str, float]:
  """Means over the same batches and the same noise each time."""
  keys = program.keys(key, schedule.eval_batches)
  rows, data = [], _open(exp.eval_dataset)
  for key in keys:
    batch = _next(data, 'evaluation', None)
    if batch is None:
      break
    batch = mesh_lib.put_batch(batch, program.batch)
    rows.append(program.evaluate(state, batch, key))
  if not rows:
    raise UserError('the evaluation dataset has no batch: is it too small?')
  rows = jax.device_get(rows)
  return {
    f'eval/{name}': float(np.mean([row[name] for row in rows]))
    for name in rows[0]
  }


class MetricLog:
  """Fetches each step's metrics one step late; averages and writes them."""

  def __init__(
    self,
    workdir: str | os.PathLike,
    first_step: int,
    schedule: Schedule,
    exp: Experiment,
    watch: Stopwatch,
  ):
    """`watch` knows what has taken how long, which goes into the log."""
    self._schedule, self._watch = schedule, watch
    self._pending = None
    self._rows = []
    self._speed = {}
    self._lead = jax.process_index() == 0
    if self._lead:
      tokens = getattr(exp, 'tokens_per_step', None)
      self._writer = Writer(workdir, first_step)
      self._progress = Progress(first_step, schedule.num_steps, tokens)

  def add(self, step: int, metrics: Any) -> None:
    """Takes this step's metrics, still on the device, and logs the last."""
    self.flush()
    self._pending = step, metrics

  def flush(self) -> None:
    """Logs what is pending; UserError if the loss is no longer finite."""
    if self._pending is None:
      return
    step, metrics = self._pending
    self._pending = None
    row = {name: float(x) for name, x in jax.device_get(metrics).items()}
    self._rows.append(row)
    every = self._schedule.log_every
    broken = [k for k in _MUST_BE_FINITE if not math.isfinite(row.get(k, 0))]
    due = step % every == 0 or step == self._schedule.num_steps
    if self._lead:
      self._speed = self._progress.step(step, row.get('loss', math.nan))
      if due or broken:
        means = {k: np.mean([r[k] for r in self._rows]) for k in row}
        self._writer.write(step, means | self._speed | self._times())
        self._progress.line(step)
    if due:
      self._rows.clear()
    if broken:
      raise UserError(
        f'{", ".join(broken)} is not finite at step {step}: the last '
        'checkpoint is from before it; lower the learning rate, or look at '
        'the data of that step'
      )

  def _times(self) -> dict[str, float]:
    """Seconds of each stage in this process, and the steps' share of all.

    Steps in flight while the next batch is made, or written out, count as that.
    """
    seconds = self._watch.seconds
    times = {f'seconds/{stage}': x for stage, x in seconds.items()}
    return times | {'goodput': seconds.get('step', 0) / sum(seconds.values())}

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes and shows the result of an evaluation."""
    if self._lead:
      self._writer.write(step, metrics)
      shown = ' '.join(f'{k} {v:.4g}' for k, v in metrics.items())
      self.say(f'step {step} {shown}')

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Logs what is pending, then stops the clock of the steps."""
    self.flush()
    with self._progress.pause() if self._lead else contextlib.nullcontext():
      yield

  def say(self, text: str) -> None:
    if self._lead:
      self._progress.say(text)

  def __enter__(self) -> 'MetricLog':
    return self

  def __exit__(self, *_) -> None:
    if self._lead:
      self._progress.close()
      self._writer.close()
