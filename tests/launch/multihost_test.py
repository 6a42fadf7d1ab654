"""Two processes train like one, and stop together."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np

from launch import loop
from launch.checkpoint import restore_params
from tests.launch import toy_config

ROOT = pathlib.Path(__file__).parents[2]


def losses(workdir, name='loss'):
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return []
  text = path.read_text().splitlines(keepends=True)
  rows = [json.loads(line) for line in text if line.endswith('\n')]
  return [row[name] for row in rows if name in row]


def start(workdir, port, index):
  command = [sys.executable, '-m', 'launch.train', f'--workdir={workdir}']
  command += ['--config=tests/launch/toy_config.py:delay=0.1']
  command += ['--config.mesh.fsdp=2', '--config.num_steps=1000']
  command += ['--config.eval_every=4']
  command += [f'--coordinator=localhost:{port}', '--num_processes=2']
  return subprocess.Popen(
    [*command, f'--process_id={index}'],
    cwd=ROOT,
    env=os.environ | {'JAX_NUM_CPU_DEVICES': '2'},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def test_two_processes_give_the_loss_of_one_and_stop_together(tmp_path):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  processes = [start(tmp_path / 'two', port, index) for index in (0, 1)]
  deadline = time.monotonic() + 300
  while len(losses(tmp_path / 'two')) < 5 and time.monotonic() < deadline:
    if any(process.poll() is not None for process in processes):
      break
    time.sleep(0.05)
  processes[1].send_signal(signal.SIGTERM)  # One is told, both have to stop.
  outs = [process.communicate(timeout=180)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outs
  assert '4 x cpu in 2 process' in outs[0] and 'SIGTERM' in outs[0]
  assert 'loss' not in outs[1]  # One process speaks.

  got = losses(tmp_path / 'two')
  config = toy_config.plain(num_steps=len(got), mesh__fsdp=2, eval_every=4)
  state = loop.train(config, tmp_path / 'one', jax.devices()[:4])
  np.testing.assert_allclose(got, losses(tmp_path / 'one'), rtol=1e-5)
  evals = losses(tmp_path / 'two', 'eval/loss')
  want = losses(tmp_path / 'one', 'eval/loss')[: len(evals)]
  np.testing.assert_allclose(evals, want, rtol=1e-5)
  _, ema = restore_params(tmp_path / 'two', step=len(got))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    ema,
    jax.device_get(state.ema),
  )
