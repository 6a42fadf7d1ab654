"""Checkpoints are whole or absent, and what is wrong is said in one line."""

import errno
import os
import shutil
import subprocess

import grain
import jax
import numpy as np
import pytest

from launch import checkpoint as checkpoint_lib, loop
from launch.checkpoint import (
  Checkpoints,
  claim_workdir,
  claimed,
  restore_params,
  restore_trees,
)
from launch.errors import UserError
from tests.launch import toy_config


def numbers():
  return iter(grain.MapDataset.range(100).to_iter_dataset())


def steps(workdir):
  return sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir())


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('trained')
  return workdir, loop.train(toy_config.plain(num_steps=6), workdir)


@pytest.fixture
def run(trained, tmp_path):
  """A copy of a trained workdir, to be damaged."""
  return shutil.copytree(trained[0], tmp_path / 'run')


def test_state_and_data_come_back_together(tmp_path):
  data = numbers()
  assert [next(data) for _ in range(3)] == [0, 1, 2]
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(3, {'x': jax.numpy.arange(4)}, data)
    next(data)
  target = {'x': jax.ShapeDtypeStruct((4,), 'int32')}
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_step() == 3
    state, data = checkpoints.restore(3, target, numbers())
  np.testing.assert_array_equal(state['x'], np.arange(4))
  assert next(data) == 3


def test_what_is_saved_does_not_change_while_training_goes_on(tmp_path):
  """The save goes on in the background, the buffers are donated."""
  advance = jax.jit(lambda x: x + 1, donate_argnums=0)
  x = jax.numpy.zeros((1 << 20,))
  with Checkpoints(tmp_path, keep=9) as checkpoints:
    for step in range(1, 4):
      x = advance(x)
      checkpoints.save(step, {'x': x}, numbers())
    for _ in range(9):
      x = advance(x)
  target = {'x': jax.ShapeDtypeStruct(x.shape, x.dtype)}
  with Checkpoints(tmp_path, keep=9) as checkpoints:
    for step in range(1, 4):
      state, _ = checkpoints.restore(step, target, numbers())
      np.testing.assert_array_equal(state['x'], np.float32(step))


def test_the_latest_are_kept_and_some_for_good(tmp_path):
  with Checkpoints(tmp_path, keep=2, keep_every=3) as checkpoints:
    for step in range(1, 9):
      checkpoints.save(step, {'x': jax.numpy.zeros(())}, numbers())
  assert steps(tmp_path) == [3, 6, 7, 8]


def test_params_are_restored_without_the_experiment(trained):
  workdir, state = trained
  config, ema = restore_params(workdir)
  assert config == toy_config.plain(num_steps=6)
  jax.tree.map(np.testing.assert_array_equal, ema, state.ema)
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(ema))
  _, params = restore_params(workdir, ema=False)
  jax.tree.map(np.testing.assert_array_equal, params, state.params)
  _, early = restore_params(workdir, step=3)
  assert not np.array_equal(early['up']['kernel'], ema['up']['kernel'])


def test_parts_of_the_state_are_restored_together(trained):
  workdir, state = trained
  _, trees = restore_trees(workdir, ('params', 'opt_state'))
  assert set(trees) == {'params', 'opt_state'}
  jax.tree.map(np.testing.assert_array_equal, trees['params'], state.params)
  held, want = (jax.tree.leaves(x) for x in (trees, state.opt_state))
  assert {x.shape for x in want} <= {x.shape for x in held}
  said = 'holds no batch_stats, only ema, opt_state, params, step'
  with pytest.raises(UserError, match=said):
    restore_trees(workdir, ('params', 'batch_stats'))


def test_a_missing_run_is_said(tmp_path, run):
  with pytest.raises(UserError, match=r'nowhere/config.json not found'):
    restore_params(tmp_path / 'nowhere')
  with pytest.raises(UserError, match=r'has no step 4; it has \[3, 6\]'):
    restore_params(run, step=4)
  shutil.rmtree(run / 'checkpoints')
  with pytest.raises(UserError, match='holds no checkpoint'):
    restore_params(run)
  (run / 'config.json').write_text('{')
  with pytest.raises(UserError, match='config.json is not JSON'):
    restore_params(run)


def test_a_checkpoint_cut_short_is_said(run):
  for path in (run / 'checkpoints/6/state').rglob('*'):
    if path.is_file() and path.stat().st_size > 1000:
      os.truncate(path, path.stat().st_size // 2)
  with pytest.raises(UserError, match='checkpoints/6 cannot be restored') as e:
    restore_params(run)
  assert 'fall back' in str(e.value) and '\n' not in str(e.value)
  with pytest.raises(UserError, match='checkpoints/6 cannot be restored'):
    loop.train(toy_config.plain(num_steps=9), run)
  shutil.rmtree(run / 'checkpoints/6')  # As the message says.
  loop.train(toy_config.plain(num_steps=9), run)
  assert steps(run) == [6, 9]


def test_a_half_written_checkpoint_is_passed_over(run):
  half = run / 'checkpoints/9.orbax-checkpoint-tmp'
  shutil.copytree(run / 'checkpoints/6', half)
  (half / 'commit_success.txt').unlink(missing_ok=True)
  loop.train(toy_config.plain(num_steps=7), run)
  assert steps(run) == [6, 7]


def test_another_number_of_processes_is_said(run):
  data = run / 'checkpoints/6/data'
  shutil.copy(data / 'process_0-of-1.json', data / 'process_1-of-2.json')
  with pytest.raises(UserError, match='saved by 2 processes, this run has 1'):
    loop.train(toy_config.plain(num_steps=9), run)


def test_a_workdir_of_another_config_is_refused(run):
  other = toy_config.plain(seed=3, toy__learning_rate=0.5)
  other['new'] = 1
  before = (run / 'config.json').read_text()
  with pytest.raises(UserError) as error:
    claim_workdir(run, other)
  for part in (
    'config.json is of another run',
    'seed (0 there, 3 now)',
    'toy.learning_rate (0.01 there, 0.5 now)',
    'new (absent there, 1 now)',
  ):
    assert part in str(error.value)
  assert (run / 'config.json').read_text() == before


def test_a_workdir_without_a_checkpoint_is_taken_over(tmp_path):
  claim_workdir(tmp_path, toy_config.plain())
  claim_workdir(tmp_path, toy_config.plain(seed=3))
  assert checkpoint_lib.read_config(tmp_path)['seed'] == 3


def test_two_runs_at_once_do_not_share_a_workdir(run):
  config, before = toy_config.plain(num_steps=9), steps(run)
  with (
    claimed(run, config),
    pytest.raises(UserError, match='another run is at work there'),
  ):
    loop.train(config, run)
  assert steps(run) == before
  loop.train(config, run)
  assert 9 in steps(run)


def test_a_workdir_below_a_file_is_told(tmp_path):
  (tmp_path / 'file').touch()
  with (
    pytest.raises(UserError, match='cannot be written'),
    claimed(tmp_path / 'file/run', toy_config.plain()),
  ):
    pass


def test_how_long_and_where_it_runs_may_change(run, capsys):
  claim_workdir(run, toy_config.plain(num_steps=50, mesh__data=1))
  out = capsys.readouterr().out
  assert 'num_steps (6 there, 50 now)' in out
  assert 'mesh.data (-1 there, 1 now)' in out
  assert checkpoint_lib.read_config(run)['num_steps'] == 50


def test_a_full_disk_is_said(run, monkeypatch):
  """As TensorStore says it, wrapped in its own error."""

  def save(self, step, **_):
    half = self.directory / f'{step}.orbax-checkpoint-tmp'
    (half / 'state').mkdir(parents=True)
    reason = OSError(errno.ENOSPC, 'No space left on device')
    raise ValueError('RESOURCE_EXHAUSTED: error writing') from reason

  monkeypatch.setattr(checkpoint_lib.ocp.CheckpointManager, 'save', save)
  with pytest.raises(UserError, match=r'disk is full.*step 6 is intact'):
    loop.train(toy_config.plain(num_steps=9), run)
  assert steps(run) == [3, 6]


@pytest.fixture
def small_disk(tmp_path):
  if shutil.which('mount') is None:
    pytest.skip('no mount command')
  disk = tmp_path / 'disk'
  disk.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', str(disk)]
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    pytest.skip(f'a small disk cannot be mounted here: {done.stderr.strip()}')
  yield disk
  subprocess.run(['umount', str(disk)], check=True)


# When one of Orbax's writers fails, others end after its event loop.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_disk_that_fills_up_loses_nothing(small_disk, tmp_path):
  config, run = toy_config.plain(num_steps=3), small_disk / 'run'
  loop.train(config, run)
  config['num_steps'] = 9
  with open(small_disk / 'filler', 'wb') as filler:
    filler.write(b'\0' * (shutil.disk_usage(small_disk).free - 8192))
  with pytest.raises(UserError, match=r'disk is full.*step 3 is intact'):
    loop.train(config, run)
  assert steps(run) == [3]
  os.remove(small_disk / 'filler')
  resumed = loop.train(config, run)
  straight = loop.train(config, tmp_path / 'straight')
  jax.tree.map(np.testing.assert_array_equal, resumed, straight)
