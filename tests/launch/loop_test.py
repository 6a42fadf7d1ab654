"""The loop keeps its promises: exact resume, one loss on every mesh."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from launch import loop, mesh as mesh_lib
from launch.errors import UserError
from tests.launch import toy_config, toy_experiment

ROOT = pathlib.Path(__file__).parents[2]
MESH = {'mesh__data': 2, 'mesh__fsdp': 2, 'mesh__tensor': 2}


def lines(workdir, name='loss'):
  """[(step, value)] of one metric."""
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return []
  text = path.read_text().splitlines(keepends=True)
  rows = [json.loads(line) for line in text if line.endswith('\n')]
  return [(row['step'], row[name]) for row in rows if name in row]


def start(workdir, *arguments, variant='delay=0.1'):
  """launch.train on the toy in a process of its own, with eight devices."""
  command = [sys.executable, '-m', 'launch.train', f'--workdir={workdir}']
  command += [f'--config=tests/launch/toy_config.py:{variant}', *arguments]
  env = os.environ | {'JAX_NUM_CPU_DEVICES': '8'}
  return subprocess.Popen(
    command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
  )


def wait_for_step(process, workdir, step):
  deadline = time.monotonic() + 300
  while not any(s >= step for s, _ in lines(workdir)):
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline, 'no such step in five minutes'
    time.sleep(0.02)


def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(tmp_path):
  config = toy_config.plain(**MESH, toy__delay=0.1)
  flags = [f'--config.mesh.{axis}=2' for axis in ('data', 'fsdp', 'tensor')]
  process = start(tmp_path / 'killed', *flags)
  wait_for_step(process, tmp_path / 'killed', 7)
  process.kill()
  process.communicate()
  before = lines(tmp_path / 'killed')
  assert 7 <= before[-1][0] < 12
  killed = loop.train(config, tmp_path / 'killed')
  straight = loop.train(config, tmp_path / 'straight')
  jax.tree.map(np.testing.assert_array_equal, killed, straight)
  assert lines(tmp_path / 'killed') == lines(tmp_path / 'straight')
  assert lines(tmp_path / 'straight')[: len(before)] == before


def test_sigterm_saves_and_exits_with_0(tmp_path):
  process = start(tmp_path)
  wait_for_step(process, tmp_path, 4)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=180)
  assert process.returncode == 0, err.decode()
  assert b'SIGTERM' in out
  last = lines(tmp_path)[-1][0]
  assert (tmp_path / 'checkpoints' / str(last)).is_dir()
  assert 4 <= last < 12


@pytest.mark.parametrize(
  'shape', [(8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 1, 2), (1, 2, 2, 2)]
)
def test_the_mesh_does_not_change_the_loss(shape, tmp_path, one_device):
  sizes = dict(zip(mesh_lib.AXES, shape, strict=True))
  loop.train(toy_config.plain(num_steps=3, mesh=sizes), tmp_path)
  np.testing.assert_allclose(lines(tmp_path), one_device[:3], rtol=1e-5)


@pytest.fixture(scope='module')
def one_device(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('one')
  config = toy_config.plain(num_steps=3)
  loop.train(config, workdir, jax.devices()[:1])
  return lines(workdir)


def test_evaluation_is_the_mean_of_the_same_batches_each_time(tmp_path):
  config = toy_config.plain(
    num_steps=4, eval_every=2, eval_batches=2, toy__learning_rate=0.0
  )
  state = loop.train(config, tmp_path)
  (step, first), (last, second) = lines(tmp_path, 'eval/loss')
  assert (step, last) == (2, 4)
  assert first == second  # The learning rate is 0: nothing else may move.
  exp = toy_experiment.make(config)
  key = jax.random.split(jax.random.key(0), 3)[2]
  batches = zip(exp.eval_dataset(), jax.random.split(key, 2), strict=False)
  want = [exp.eval_step(state, batch, key)['loss'] for batch, key in batches]
  np.testing.assert_allclose(first, np.mean(want), rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_unsaved(tmp_path):
  config = toy_config.plain(toy__break_at=5)  # The 6th step, which saves.
  with pytest.raises(UserError, match='loss is not finite at step 6'):
    loop.train(config, tmp_path)
  saved = [path.name for path in (tmp_path / 'checkpoints').iterdir()]
  assert saved == ['3']
  assert lines(tmp_path)[-1] == (6, None)


def test_logged_metrics_are_means_since_the_last_line(tmp_path):
  for every in (1, 4):
    loop.train(
      toy_config.plain(num_steps=10, log_every=every), tmp_path / str(every)
    )
  loss = [value for _, value in lines(tmp_path / '1')]
  want = [(4, np.mean(loss[:4])), (8, np.mean(loss[4:8]))]
  want += [(10, np.mean(loss[8:]))]
  np.testing.assert_allclose(lines(tmp_path / '4'), want, rtol=1e-6)


def test_an_example_that_cannot_be_read_is_told(tmp_path):
  config = toy_config.plain(num_steps=9, toy__bad_at=7)
  said = 'dataset fails at step [1-8]: example 7 is broken'
  with pytest.raises(UserError, match=said):
    loop.train(config, tmp_path)


def test_the_log_says_where_the_time_went(tmp_path):
  config = toy_config.plain(num_steps=8, eval_every=4, toy__delay=0.05)
  loop.train(config, tmp_path, profile=(5, 6))
  stages = ('data', 'step', 'save', 'evaluate', 'compile', 'other')
  parts = {name: lines(tmp_path, f'seconds/{name}') for name in stages}
  for rows in parts.values():
    values = [value for _, value in rows]
    assert values == sorted(values) and values[-1] > 0
  # Of eight batches, each of 0.05 s, less what was read ahead of the steps.
  assert parts['data'][-1][1] > 0.05
  last = {name: rows[-1][1] for name, rows in parts.items()}
  want = last['step'] / sum(last.values())
  assert lines(tmp_path, 'goodput')[-1] == (8, pytest.approx(want))
  (record,) = (tmp_path / 'profile').rglob('*.xplane.pb')
  assert record.stat().st_size > 1000


def test_a_step_is_dispatched_before_the_last_one_is_fetched(
  tmp_path, monkeypatch
):
  events, of = [], loop.Program.of

  def watched(exp, mesh, options):
    program = of(exp, mesh, options)

    def step(state, *rest):
      events.append('step')
      return program.step(state, *rest)

    return loop.dataclasses.replace(program, step=step)

  fetch = jax.device_get
  monkeypatch.setattr(loop.Program, 'of', watched)
  monkeypatch.setattr(
    jax, 'device_get', lambda x: events.append('fetch') or fetch(x)
  )
  loop.train(toy_config.plain(num_steps=3, save_every=9), tmp_path)
  assert events == ['step', 'step', 'fetch', 'step', 'fetch', 'fetch']


def test_a_hidden_copy_to_the_device_raises(tmp_path, monkeypatch):
  monkeypatch.setattr(mesh_lib, 'put_batch', lambda batch, _: batch)
  with pytest.raises(Exception, match='Disallowed host-to-device'):
    loop.train(toy_config.plain(num_steps=1), tmp_path)


@pytest.mark.parametrize(
  ('overrides', 'said'),
  [
    (dict(toy__repeats=1), 'dataset ended before step 9'),
    (dict(experiment='no.such.module'), 'names the module no.such.module'),
    (dict(toy__learning_rate=-1.0), 'rejects the config: learning_rate'),
    (dict(batch_size=12), 'batch_size 12 is not a multiple of the 8'),
    (dict(save_every=0), 'config.save_every must be at least 1'),
  ],
)
def test_what_the_user_can_mend_is_said_in_one_line(overrides, said, tmp_path):
  with pytest.raises(UserError, match=said):
    loop.train(toy_config.plain(**overrides), tmp_path)


def test_a_step_that_the_mesh_does_not_divide_is_told(tmp_path, monkeypatch):
  def step(self, state, batch, key):
    raise ValueError('3 heads on 2 devices')

  monkeypatch.setattr(toy_experiment.Toy, 'train_step', step)
  with pytest.raises(UserError, match='laid out so: 3 heads on 2 devices'):
    loop.train(toy_config.plain(), tmp_path)


def test_a_missing_key_is_named(tmp_path):
  config = toy_config.plain()
  del config['keep'], config['seed']
  with pytest.raises(UserError, match=r"lacks \['seed', 'keep'\]"):
    loop.train(config, tmp_path)


def test_a_finished_run_is_left_alone(tmp_path, capsys):
  state = loop.train(toy_config.plain(num_steps=2), tmp_path)
  again = loop.train(toy_config.plain(num_steps=2), tmp_path)
  assert 'already at step 2' in capsys.readouterr().out
  jax.tree.map(np.testing.assert_array_equal, again, state)
  assert [step for step, _ in lines(tmp_path)] == [1, 2]
