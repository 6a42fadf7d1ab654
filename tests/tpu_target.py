"""TPUs that are not here, to compile for in a process apart."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from launch.aot_chips import ENVIRONMENT

TOPOLOGIES = ('v5e:2x2', 'v5p:2x2x1', 'v6e:2x2', 'tpu7x:2x2x1')


def run(program: str, *args: str) -> Any:
  """The last line of JSON that the program prints; skips without libtpu."""
  pytest.importorskip('libtpu', reason="needs pip install 'jax[tpu]'")
  done = subprocess.run(
    [sys.executable, '-c', program, *args],
    env=os.environ | ENVIRONMENT | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])
