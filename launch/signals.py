"""SIGTERM: save and leave. Twice: leave at once."""

import os
import signal
import socket
import threading

import jax
from jax.experimental import multihost_utils


class Termination:
  """Watches for SIGTERM while it is entered.

  One process: the first SIGTERM is remembered, the second exits with 143, even
  in the middle of a compile. Several processes: they have to stop at the same
  step, so JAX's own handler spreads the notice and agrees on the step.
  """

  def __init__(self):
    self._asked = False
    self._old_handler = None

  def __enter__(self) -> 'Termination':
    if jax.process_count() > 1:
      return self
    # A Python handler waits for the interpreter, which a compile can hold for
    # minutes; the wake-up socket is written at once and read by a thread.
    self._read, self._write = socket.socketpair()
    self._write.setblocking(False)
    self._old_handler = signal.signal(signal.SIGTERM, lambda *_: None)
    self._old_fd = signal.set_wakeup_fd(
      self._write.fileno(), warn_on_full_buffer=False
    )
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    if self._old_handler is None:
      return
    signal.set_wakeup_fd(self._old_fd)
    signal.signal(signal.SIGTERM, self._old_handler)
    self._write.close()  # Ends the thread: it reads the end of the stream.
    self._thread.join()
    self._read.close()

  def asked(self, step: int) -> bool:
    """Whether to stop now, after `step`; the same answer on every process."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked

  def _watch(self) -> None:
    while received := self._read.recv(1):
      if received[0] != signal.SIGTERM:
        continue
      if self._asked:
        os._exit(128 + signal.SIGTERM)
      self._asked = True
