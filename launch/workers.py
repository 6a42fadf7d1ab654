"""Shards made in several processes, with a progress bar."""

from collections.abc import Callable, Sequence
import concurrent.futures as futures
import multiprocessing
import os
import threading
import time

from rich import console as rich_console, progress as rich_progress

_counter = None  # In a worker: clips done by all workers.


def run(
  task: Callable[[int], None],
  jobs: Sequence[int],
  workers: int,
  total: int,
  done: int,
  label: str,
) -> None:
  """Calls `task` once for each job; the first exception ends the run.

  Args:
    task: picklable; calls `advance()` after each clip.
    jobs: indices of shards.
    workers: processes; 0 works in this one.
    total: clips in all, for the bar.
    done: of these, the clips that an earlier run has finished.
    label: name of the work in the bar.
  """
  global _counter
  # Not fork: JAX and the decoders have threads.
  context = multiprocessing.get_context('spawn')
  counter = context.Value('q', done)
  with _Bar(counter, total, label):
    if not workers:
      _counter = counter
      for job in jobs:
        task(job)
      return
    with futures.ProcessPoolExecutor(
      workers, context, _start, (counter, os.getpid())
    ) as pool:
      try:
        for result in futures.as_completed(
          [pool.submit(task, j) for j in jobs]
        ):
          result.result()
      except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def advance() -> None:
  """Tells the bar that a clip is done."""
  if _counter is not None:
    with _counter.get_lock():
      _counter.value += 1


def _start(counter, parent):
  global _counter
  _counter = counter

  def leave_with_parent():
    # A killed parent cannot tell its workers; without this they stay for ever.
    while os.getppid() == parent:
      time.sleep(0.5)
    os._exit(1)

  threading.Thread(target=leave_with_parent, daemon=True).start()


class _Bar:
  """A bar with the time left on a terminal; a line every 10 s elsewhere."""

  def __init__(self, counter, total, label):
    self._counter, self._total, self._label = counter, total, label
    self._over = threading.Event()

  def __enter__(self):
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()

  def __exit__(self, *error):
    self._over.set()
    self._thread.join()

  def _watch(self):
    console = rich_console.Console(stderr=True)
    first, began = self._counter.value, time.monotonic()
    columns = (
      rich_progress.TextColumn('{task.description}'),
      rich_progress.BarColumn(),
      rich_progress.MofNCompleteColumn(),
      rich_progress.TimeRemainingColumn(),
    )
    live = console.is_terminal
    with rich_progress.Progress(
      *columns, console=console, disable=not live
    ) as p:
      task = p.add_task(self._label, total=self._total, completed=first)
      while not self._over.wait(0.2 if live else 10):
        value = self._counter.value
        p.update(task, completed=value)
        if not live:
          speed = (value - first) / (time.monotonic() - began)
          left = (
            f', {(self._total - value) / speed:.0f} s left' if speed else ''
          )
          console.print(f'{self._label}: {value}/{self._total} clips{left}')
      p.update(task, completed=self._counter.value)
