"""SIGTERM reaches a process that is deep in a compiled call."""

import os
import signal
import subprocess
import sys
import time

import jax

from launch.signals import Termination

# ctypes holds the interpreter in one call, as a compile does.
BUSY = """
import ctypes
from launch.signals import Termination
with Termination():
  print('ready', flush=True)
  ctypes.CDLL(None).sleep(60)
  ctypes.CDLL(None).sleep(60)
"""


def test_the_first_is_remembered_and_handlers_are_put_back():
  before = signal.getsignal(signal.SIGTERM)
  with Termination() as termination:
    assert not termination.asked(1)
    os.kill(os.getpid(), signal.SIGTERM)
    deadline = time.monotonic() + 10
    while not termination.asked(1) and time.monotonic() < deadline:
      time.sleep(0.01)
    assert termination.asked(1)
  assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_exits_at_once():
  assert jax.process_count() == 1
  process = subprocess.Popen(
    [sys.executable, '-c', BUSY], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(signal.SIGTERM)
  time.sleep(0.2)
  assert process.poll() is None
  begin = time.monotonic()
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=30)
  assert process.returncode == 143
  assert time.monotonic() - begin < 5
