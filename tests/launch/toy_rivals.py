"""Makers for `launch.side_by_side` that import next to nothing."""

import os
import time

from launch.side_by_side import Workload


def sleeper(first, later, log, name):
  """A maker: its first step takes longer than the others."""
  seconds = iter([first])
  print('what a library prints')

  def step():
    with open(log, 'a') as file:
      file.write(name)
    time.sleep(next(seconds, later))

  return Workload(step, 7)


def hoarder(megabytes):
  """A maker whose first step alone needs memory, and the processor."""
  sizes = iter([megabytes])
  return Workload(lambda: bytes([1]) * (next(sizes, 1) * 10**6), 0)


def spinner():
  def step():
    end = time.process_time() + 0.05
    while time.process_time() < end:
      pass

  return Workload(step, 0)


def compiler(marker, megabytes):
  """A maker whose first step leaves what spares all later ones the memory."""

  def step():
    if not os.path.exists(marker):
      bytes([1]) * (megabytes * 10**6)
      open(marker, 'w').close()

  return Workload(step, 0)


def broken():
  raise RuntimeError('no such model')
