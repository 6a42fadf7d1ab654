"""Where metrics go: a JSONL file, TensorBoard, and the terminal."""

from collections.abc import Iterator, Mapping
import contextlib
import json
import math
import os
import pathlib
import resource
import sys
import time

import jax
from rich import console as rich_console, progress as rich_progress
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer import event_file_writer

from launch import atomic


class Writer:
  """Writes scalars to `workdir`/metrics.jsonl and to TensorBoard events.

  Used by process 0 only. Lines of steps after `first_step`, left by a run that
  was killed, are dropped: they are about to be written again.
  """

  def __init__(self, workdir: str | os.PathLike, first_step: int = 0):
    path = pathlib.Path(workdir) / 'metrics.jsonl'
    path.parent.mkdir(parents=True, exist_ok=True)
    _drop_lines_after(path, first_step)
    self._file = open(path, 'a', encoding='utf-8')
    self._events = event_file_writer.EventFileWriter(str(workdir))

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """One JSON object with `step`, `time` (seconds since 1970) and metrics."""
    now = time.time()
    numbers = {k: float(v) for k, v in metrics.items()}
    # JSON has no NaN: null is what a reader of another language can take.
    safe = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
    line = {'step': step, 'time': round(now, 3), **safe}
    self._file.write(json.dumps(line, allow_nan=False) + '\n')
    self._file.flush()
    summary = summary_pb2.Summary(
      value=[
        summary_pb2.Summary.Value(tag=k, simple_value=v)
        for k, v in numbers.items()
      ]
    )
    self._events.add_event(
      event_pb2.Event(wall_time=now, step=step, summary=summary)
    )
    self._events.flush()

  def close(self) -> None:
    self._file.close()
    self._events.close()


def _drop_lines_after(path: pathlib.Path, step: int) -> None:
  if not path.exists():
    return
  kept = []
  for line in path.read_text(encoding='utf-8').splitlines(keepends=True):
    if not line.endswith('\n'):
      break  # The run was killed in the middle of this line.
    if json.loads(line)['step'] <= step:
      kept.append(line)
  with atomic.replacing(path) as half:
    half.write_text(''.join(kept), encoding='utf-8')


class Progress:
  """A progress bar on a terminal, plain lines anywhere else.

  Shows the loss, steps/s, tokens/s, peak memory and the time left.
  """

  def __init__(
    self,
    first_step: int,
    num_steps: int,
    tokens_per_step: int | None = None,
    console: rich_console.Console | None = None,
  ):
    self._console = console or rich_console.Console()
    self._num_steps = num_steps
    self._tokens = tokens_per_step
    self._started = None  # The first step compiles: the clock starts after it.
    self._bar = None
    if self._console.is_terminal:
      self._bar = rich_progress.Progress(
        rich_progress.TextColumn('{task.completed}/{task.total}'),
        rich_progress.BarColumn(bar_width=None),
        rich_progress.TextColumn('{task.fields[text]}'),
        console=self._console,
      )
      self._task = self._bar.add_task(
        '', total=num_steps, completed=first_step, text='compiling'
      )
      self._bar.start()

  def step(self, step: int, loss: float) -> dict[str, float]:
    """Marks `step` as done; returns the speed, to be logged with the rest."""
    now = time.monotonic()
    if self._started is None:
      self._started, self._from_step = now, step
    speed = (step - self._from_step) / max(now - self._started, 1e-9)
    self._text = _status(speed, self._tokens, self._num_steps - step, loss)
    if self._bar:
      self._bar.update(self._task, completed=step, text=self._text)
    if not speed:
      return {}
    tokens = {'tokens_per_sec': speed * self._tokens} if self._tokens else {}
    return {'steps_per_sec': speed} | tokens

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """What happens inside is not counted in the speed of the steps."""
    begin = time.monotonic()
    yield
    if self._started is not None:
      self._started += time.monotonic() - begin

  def line(self, step: int) -> None:
    """A plain line about `step` where there is no bar to show it."""
    if not self._bar:
      print(f'step {step}/{self._num_steps} {self._text}', flush=True)

  def say(self, text: str) -> None:
    """A line above the bar."""
    self._console.print(text, highlight=False, markup=False, soft_wrap=True)

  def close(self) -> None:
    if self._bar:
      self._bar.stop()


def _status(
  speed: float, tokens_per_step: int | None, steps_left: int, loss: float
) -> str:
  parts = [f'loss {loss:.4g}']
  if speed:
    parts.append(f'{speed:.3g} steps/s')
    if tokens_per_step:
      parts.append(f'{_short(speed * tokens_per_step)} tokens/s')
  parts.append(f'{_short(peak_memory())}B')
  if speed:
    minutes, seconds = divmod(round(steps_left / speed), 60)
    parts.append(f'{minutes // 60}:{minutes % 60:02}:{seconds:02} left')
  return ' '.join(parts)


def _short(number: float) -> str:
  for unit in ('', 'k', 'M', 'G'):
    if number < 1000:
      return f'{number:.3g}{unit}'
    number /= 1000
  return f'{number:.3g}T'


def peak_memory() -> int:
  """Peak bytes on this process's first device; the process's own on a CPU."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and 'peak_bytes_in_use' in stats:
    return stats['peak_bytes_in_use']
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 1024
