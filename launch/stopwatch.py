"""Where the time goes: seconds of each stage, and of JAX's compiler."""

from collections.abc import Iterator
import contextlib
import time

import jax

# Tracing is left out: JAX counts nested functions twice.
COMPILER = (
  '/jax/core/compile/jaxpr_to_mlir_module_duration',
  '/jax/core/compile/backend_compile_duration',
)


class Stopwatch:
  """`with Stopwatch() as watch`, and inside, `with watch('read')`.

  A stage inside another one stops the clock of the outer. What the compiler
  takes is no stage's: it is a stage of its own, 'compile'.

  Attributes:
    seconds: of each stage so far, in the order in which they ended first.
  """

  def __init__(self):
    self.seconds: dict[str, float] = {}
    self._stages, self._mark, self._compiling = [], 0.0, 0.0

  def __enter__(self) -> 'Stopwatch':
    jax.monitoring.register_event_duration_secs_listener(self._listen)
    return self

  def __exit__(self, *_) -> None:
    jax.monitoring.unregister_event_duration_listener(self._listen)

  @contextlib.contextmanager
  def __call__(self, stage: str) -> Iterator[None]:
    self._lap()
    self._stages.append(stage)
    try:
      yield
    finally:
      self._lap()
      self._stages.pop()

  def _listen(self, event, seconds, **_):
    if event in COMPILER:
      self._compiling += seconds

  def _lap(self):
    now, compiling = time.monotonic(), self._compiling
    if self._stages:
      if compiling:
        self._add('compile', compiling)
      self._add(self._stages[-1], max(now - self._mark - compiling, 0.0))
    self._mark, self._compiling = now, 0.0

  def _add(self, stage, seconds):
    self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
