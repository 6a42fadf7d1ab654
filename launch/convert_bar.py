"""Progress in bytes: a bar, or plain lines where there is no terminal."""

from collections.abc import Callable
import time

from rich import console as rich_console, progress

EVERY = 10.0  # Seconds from one plain line to the next.


class BytesBar:
  """`with BytesBar(name, total) as advance`; call `advance(bytes)`.

  Goes to stderr, with MB/s and the time left.
  """

  def __init__(self, name: str, total: int, done: int = 0):
    """`done` bytes were there before; they count in no speed."""
    self._name, self._total, self._done, self._before = name, total, done, done
    self._bar = progress.Progress(
      progress.TextColumn('{task.description}'),
      progress.BarColumn(bar_width=20),
      progress.DownloadColumn(),
      progress.TransferSpeedColumn(),
      progress.TimeRemainingColumn(),
      console=rich_console.Console(stderr=True),
    )
    self._task = self._bar.add_task(name, total=total, completed=done)

  def __enter__(self) -> Callable[[int], None]:
    self._start = self._said = time.monotonic()
    if self._bar.console.is_terminal:
      self._bar.start()
    return self._advance

  def __exit__(self, kind, *_) -> None:
    if self._bar.console.is_terminal:
      self._bar.stop()
    elif kind is None:
      self._say(time.monotonic())

  def _advance(self, count):
    self._done += count
    self._bar.advance(self._task, count)
    now = time.monotonic()
    if not self._bar.console.is_terminal and now - self._said > EVERY:
      self._say(now)

  def _say(self, now):
    self._said = now
    speed = (self._done - self._before) / max(now - self._start, 1e-9)
    left = (self._total - self._done) / speed if speed else float('inf')
    line = (
      f'{self._name}: {self._done / 1e6:.0f} of {self._total / 1e6:.0f} MB, '
      f'{speed / 1e6:.0f} MB/s, {left:.0f} s left'
    )
    self._bar.console.print(line, highlight=False, soft_wrap=True)
