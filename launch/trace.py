"""A recording of some steps for xprof, TensorBoard's profiler."""

import os
import pathlib
from typing import Any

import jax

from launch.errors import UserError


def parse_steps(text: str | None) -> tuple[int, int] | None:
  """'START:STOP' as numbers, the last step included; UserError if it is not."""
  if not text:
    return None
  start, _, stop = text.partition(':')
  if not (
    start.isdecimal() and stop.isdecimal() and 0 < int(start) <= int(stop)
  ):
    raise UserError(
      f'--profile={text}: give the first and the last step, such as 10:12'
    )
  return int(start), int(stop)


class Trace:
  """Records steps `first` to `last` under `workdir`/profile, as a context."""

  def __init__(self, steps: tuple[int, int] | None, workdir: str | os.PathLike):
    """`steps` are the first and the last one; None records nothing."""
    self._first, self._last = steps or (0, 0)
    self._path = pathlib.Path(workdir) / 'profile'
    self._on = False

  def before(self, step: int) -> None:
    """Starts, if it is time."""
    if step == self._first:
      jax.profiler.start_trace(self._path)
      self._on = True

  def after(self, step: int, metrics: Any) -> str:
    """Ends, if it is time, once the step is done; says where the record is."""
    if not self._on or step != self._last:
      return ''
    jax.block_until_ready(metrics)
    self._stop()
    return f'profile of steps {self._first} to {step}: {self._path}'

  def _stop(self):
    jax.profiler.stop_trace()
    self._on = False

  def __enter__(self) -> 'Trace':
    return self

  def __exit__(self, *_) -> None:
    if self._on:
      self._stop()
