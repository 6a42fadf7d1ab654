"""Progress of a sampling: a bar, or plain lines where there is no terminal."""

from collections.abc import Callable
import pathlib
import time

from rich import console as rich_console, progress, table

LINES = 8  # About as many where there is no terminal,
QUIET = 60.0  # but one after so many seconds.


class StepsBar:
  """`with StepsBar(name, total) as advance`; call `advance()` after each step.

  Goes to stderr and fits 80 columns.
  """

  def __init__(self, name: str, total: int):
    self._name, self._total, self._done = pathlib.Path(name).name, total, 0
    short = table.Column(max_width=20, no_wrap=True, overflow='ellipsis')
    self._bar = progress.Progress(
      progress.TextColumn('{task.description}', table_column=short),
      progress.BarColumn(bar_width=20),
      progress.MofNCompleteColumn(),
      progress.TimeElapsedColumn(),
      progress.TimeRemainingColumn(),
      console=rich_console.Console(stderr=True),
    )
    self._task = self._bar.add_task(self._name, total=total)

  def __enter__(self) -> Callable[[], None]:
    self._start = self._told = time.monotonic()
    if self._bar.console.is_terminal:
      self._bar.start()
    return self._advance

  def __exit__(self, *_) -> None:
    if self._bar.console.is_terminal:
      self._bar.stop()

  def _advance(self):
    self._done += 1
    self._bar.advance(self._task)
    console, now = self._bar.console, time.monotonic()
    if console.is_terminal:
      return
    due = self._done % -(-self._total // LINES) == 0
    if due or now - self._told > QUIET:
      self._told = now
      left = (now - self._start) / self._done * (self._total - self._done)
      line = f'step {self._done}/{self._total}, {left:.0f} s left'
      console.print(f'{self._name}: {line}', highlight=False, soft_wrap=True)
