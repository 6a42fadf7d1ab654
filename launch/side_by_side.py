"""Rival workloads measured in turns on one machine, each in its own process.

A maker, `module:function`, returns a Workload. Its process imports what the
maker imports and nothing else, so that peak memory is the rival's own; the
others wait meanwhile. Turns A B A B let a load from outside, or a warm
processor, slow all alike.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from launch.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
STATUS = pathlib.Path('/proc/self/status')
# Read when JAX starts: all that it compiles goes to the cache. Every side may
# have huge pages: fresh small ones cost either up to a quarter of a step.
ENVIRONMENT = {
  'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',
  'JAX_PLATFORMS': 'cpu',
  'JAX_ENABLE_COMPILATION_CACHE': 'true',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '0',
}


@dataclasses.dataclass(frozen=True)
class Workload:
  """What a maker returns.

  Attributes:
    step: Does the work once and waits for its result.
    num_params: Scalars in the model.
  """

  step: Callable[[], None]
  num_params: int


@dataclasses.dataclass(frozen=True)
class Rival:
  """What is measured: `maker(**arguments)`, arguments as in JSON."""

  maker: str
  arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Result:
  """What was measured of one rival.

  Attributes:
    num_params: Scalars in the model.
    first: Wall seconds of the first step where nothing is compiled yet.
    first_peak_bytes: Peak memory of that step's process, which ends with it.
    wall: Median of the wall seconds of a later step.
    cpu: Median of its processor seconds, summed over threads.
    start_bytes: Peak memory of the process before the maker ran.
    peak_bytes: Peak memory of the process over its life; the compiler is not
      part of it.
    walls: Wall seconds of each round.
  """

  num_params: int
  first: float
  first_peak_bytes: int
  wall: float
  cpu: float
  start_bytes: int
  peak_bytes: int
  walls: tuple[float, ...]


def measure(
  rivals: Mapping[str, Rival],
  rounds: int,
  on_round: Callable[[int], None] = lambda number: None,
  environment: Mapping[str, str] | None = None,
) -> dict[str, Result]:
  """Starts all rivals, then lets each make one step in turn, `rounds` times.

  Each is started twice: a process makes the first step, with a compilation
  cache that is empty, and ends; the one that is measured finds it full.

  Args:
    rivals: by name, in the order of their turns.
    rounds: steps of each that count, after the first one.
    on_round: called before each round with its number from 1.
    environment: variables of all rivals beside ENVIRONMENT.

  Raises:
    UserError: a rival's process has ended; its own words are on stderr.
  """
  turns = {name: [] for name in rivals}
  firsts, processes = {}, {}
  with contextlib.ExitStack() as stack:
    cache = stack.enter_context(tempfile.TemporaryDirectory())
    variables = {
      **ENVIRONMENT,
      **(environment or {}),
      'JAX_COMPILATION_CACHE_DIR': cache,
    }
    for name, rival in rivals.items():
      with _Process(name, rival, variables) as process:
        firsts[name] = process.start
    for name, rival in rivals.items():
      process = _Process(name, rival, variables)
      processes[name] = stack.enter_context(process)
    for number in range(1, rounds + 1):
      on_round(number)
      for name, process in processes.items():
        turns[name].append(process.turn())
  return {name: _result(firsts[name], turns[name]) for name in rivals}


def _result(first: Mapping[str, Any], turns: Sequence[Mapping[str, Any]]):
  return Result(
    num_params=first['num_params'],
    first=first['wall'],
    first_peak_bytes=first['peak_bytes'],
    wall=statistics.median(turn['wall'] for turn in turns),
    cpu=statistics.median(turn['cpu'] for turn in turns),
    start_bytes=first['start_bytes'],
    peak_bytes=turns[-1]['peak_bytes'],
    walls=tuple(turn['wall'] for turn in turns),
  )


class _Process:
  """A rival's process: a line to stdin is a turn, its answer a line of JSON."""

  def __init__(self, name: str, rival: Rival, variables: Mapping[str, str]):
    self._name = name
    self._process = subprocess.Popen(
      [
        sys.executable,
        '-m',
        'launch.side_by_side',
        rival.maker,
        json.dumps(dict(rival.arguments)),
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env={**os.environ, **variables},
    )

  def __enter__(self) -> '_Process':
    try:
      self.start = self._answer()
    except BaseException:
      self.__exit__()
      raise
    return self

  def __exit__(self, *_) -> None:
    self._process.kill()
    self._process.communicate()

  def turn(self) -> dict[str, Any]:
    try:
      self._process.stdin.write('turn\n')
      self._process.stdin.flush()
    except BrokenPipeError as error:
      raise self._ended() from error
    return self._answer()

  def _answer(self):
    line = self._process.stdout.readline()
    if not line:
      raise self._ended()
    return json.loads(line)

  def _ended(self):
    code = self._process.wait()
    return UserError(
      f'{self._name}: the process ended with {code}; see its last words above'
    )


def serve(maker: str, arguments: Mapping[str, Any]) -> None:
  """A rival's side: makes the workload, then a step for each line of stdin."""
  # What libraries print must not pass for an answer.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)

  def answer(**values):
    print(json.dumps(values), file=answers, flush=True)

  module, _, function = maker.partition(':')
  make = getattr(importlib.import_module(module), function)
  start_bytes = _peak_bytes()
  workload = make(**arguments)
  answer(
    **_timed(workload.step),
    num_params=workload.num_params,
    start_bytes=start_bytes,
  )
  for _ in sys.stdin:
    answer(**_timed(workload.step))


def _timed(step: Callable[[], None]) -> dict[str, float]:
  cpu, wall = time.process_time(), time.perf_counter()
  step()
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  return {'wall': wall, 'cpu': cpu, 'peak_bytes': _peak_bytes()}


def _peak_bytes() -> int:
  """Largest resident set of this program so far."""
  if not STATUS.exists():
    # In kilobytes, but in bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == 'darwin' else 1024)
  # Linux's ru_maxrss is at least what the parent had when it forked.
  (line,) = re.findall(r'^VmHWM:\s+(\d+) kB$', STATUS.read_text(), re.M)
  return int(line) * 1024


def num_threads() -> int:
  """Processors this process may use, which are every rival's threads."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


if __name__ == '__main__':
  serve(sys.argv[1], json.loads(sys.argv[2]))
