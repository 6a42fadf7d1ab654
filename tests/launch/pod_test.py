"""The scripts of pods and clusters, with stand-ins for gcloud, xpk and srun."""

import os
import pathlib
import shutil
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = 'configs/mirage/mirage_10b.py:v5p_256'
SETTINGS = dict(NAME='m10', TYPE='v5p-512', BUCKET='data', CONFIG=CONFIG)
# Records its words; `describe` gets the next line of a file.
STAND_IN = """#!/usr/bin/env bash
printf '%s\\0' "${0##*/}" "$@" >> "$RECORD"
printf '\\n\\0' >> "$RECORD"
if [[ $* == *describe* ]]; then head -n 1 "$STATE"; sed -i 1d "$STATE"; fi
"""


class Shell:
  """bash with stand-ins for what talks to clusters."""

  def __init__(self, folder):
    self._record, self.state = folder / 'record', folder / 'state'
    self.state.write_text('ACTIVE')
    for name in ('gcloud', 'xpk', 'srun', 'scontrol', 'git', 'sleep'):
      file = folder / name
      file.write_text(STAND_IN)
      file.chmod(0o755)
    self._environ = {
      'PATH': f'{folder}:{os.environ["PATH"]}',
      'TMPDIR': str(folder),
      'RECORD': str(self._record),
      'STATE': str(self.state),
    }

  def __call__(self, *arguments, **settings):
    return subprocess.run(
      ['bash', *arguments],
      env=self._environ | settings,
      cwd=ROOT,
      capture_output=True,
      text=True,
      timeout=60,
    )

  def commands(self, *arguments, **settings):
    """What the script really called, in words."""
    self._record.write_text('')
    ran = self(*arguments, **settings)
    assert ran.returncode == 0, ran.stderr
    calls = self._record.read_text().split('\0\n\0')
    return [call.split('\0') for call in calls if call]


@pytest.fixture
def shell(tmp_path):
  return Shell(tmp_path)


def pod(shell, *arguments, **settings):
  return shell.commands('launch/pod.sh', *arguments, **SETTINGS | settings)


@pytest.mark.parametrize(
  'command', ['create', 'install', 'run', 'logs', 'delete']
)
def test_the_dry_run_prints_what_is_run(shell, command):
  """A shell that reads it calls the same things with the same words."""
  printed = shell('launch/pod.sh', command, '--dry-run', **SETTINGS)
  assert printed.returncode == 0 and printed.stderr == ''
  from_print = shell.commands('-c', printed.stdout)
  assert pod(shell, command) == from_print
  assert len(from_print) == (3 if command == 'install' else 1)


def test_create_asks_for_the_pod(shell):
  (words,) = pod(shell, 'create', ZONE='us-east5-a')
  assert words[:6] == [
    *('gcloud', 'compute', 'tpus', 'queued-resources', 'create', 'm10')
  ]
  assert {
    '--zone=us-east5-a',
    '--accelerator-type=v5p-512',
    '--runtime-version=v2-alpha-tpuv5',
    '--node-id=m10',
  } == set(words[6:])
  (words,) = pod(shell, 'create', TYPE='v6e-256', SLICES='2', SPOT='1')
  assert '--runtime-version=v2-alpha-tpuv6e' in words
  assert {'--node-prefix=m10', '--node-count=2', '--spot'} < set(words)
  assert '--node-id=m10' not in words


def test_every_worker_runs_the_training(shell):
  (words,) = pod(shell, 'run', FLAGS='--config.seed=1')
  assert {'--worker=all', '--node=all'} < set(words)
  remote = words[-1].removeprefix('--command=')
  assert (
    f"python -m launch.train --config '{CONFIG}' --workdir 'bucket/m10' "
    '--coordinator=auto --config.seed=1 >> train.log' in remote
  )
  assert subprocess.run(['bash', '-n', '-c', remote]).returncode == 0


def test_install_ships_the_checkout(shell):
  archive, copy, setup = pod(shell, 'install')
  assert archive[:2] == ['git', 'archive'] and archive[-1] == 'HEAD'
  assert copy[4] == 'scp' and copy[-2:] == ['--worker=all', '--node=all']
  remote = setup[-1].removeprefix('--command=')
  assert "-e '.[tpu]'" in remote and "gcsfuse --implicit-dirs 'data'" in remote
  assert subprocess.run(['bash', '-n', '-c', remote]).returncode == 0


def verbs(calls):
  return [c[1] if c[0] == 'git' else c[4] for c in calls if c[0] != 'sleep']


def test_resume_takes_a_new_pod_only_if_the_old_one_is_gone(shell):
  assert verbs(pod(shell, 'resume')) == ['describe', 'ssh']
  shell.state.write_text('SUSPENDED\nPROVISIONING\nPROVISIONING\nACTIVE\n')
  new = ['delete', 'create', 'describe', 'describe', 'describe']
  new += ['archive', 'scp', 'ssh', 'ssh']
  assert verbs(pod(shell, 'resume')) == ['describe', *new]
  shell.state.write_text('\nACTIVE\n')  # It has been deleted.
  again = ['create', 'describe', 'archive', 'scp', 'ssh', 'ssh']
  assert verbs(pod(shell, 'resume')) == ['describe', *again]


@pytest.mark.parametrize('script', ['pod.sh', 'gke_xpk.sh'])
def test_help_is_what_stands_on_top(shell, script):
  ran = shell(f'launch/{script}', '--help')
  assert ran.returncode == 0 and ran.stderr == ''
  lines = ran.stdout.splitlines()
  assert lines[0].startswith('Trains a config') and 'CONFIG' in ran.stdout
  assert not any(line.startswith(('#', 'set -')) for line in lines)


@pytest.mark.parametrize(
  ('arguments', 'settings', 'said'),
  [
    ([], {}, 'one of create, install'),
    (['creat'], {}, 'creat: create, install'),
    (['create'], {'TYPE': 'tpu7x-256'}, 'tpu7x by gke_xpk.sh'),
    (['run'], {'CONFIG': ''}, 'CONFIG: what to train'),
    (['install'], {'BUCKET': ''}, 'BUCKET: where the data'),
  ],
)
def test_mistakes_take_one_line(shell, arguments, settings, said):
  ran = shell('launch/pod.sh', *arguments, **SETTINGS | settings)
  assert ran.returncode == 1 and ran.stderr.count('\n') == 1
  assert ran.stderr.startswith('error: ') and said in ran.stderr


def test_xpk_gets_the_workload(shell):
  settings = dict(CLUSTER='c', IMAGE='r/i', SLICES='2')
  (words,) = shell.commands('launch/gke_xpk.sh', **settings)
  assert words[:3] == ['xpk', 'workload', 'create']
  assert {'--cluster=c', '--tpu-type=tpu7x-4x4x8', '--num-slices=2'} < set(
    words
  )
  assert 'mirage_10b.py:tpu7x_128 --workdir /bucket/mirage' in words[-1]
  printed = shell('launch/gke_xpk.sh', '--dry-run', **settings)
  assert shell.commands('-c', printed.stdout) == [words]
  assert shell('launch/gke_xpk.sh').returncode != 0
  settings |= dict(TYPE='h100-mega-80gb-8', NODES='4')
  (words,) = shell.commands('launch/gke_xpk.sh', **settings)
  assert {'--device-type=h100-mega-80gb-8', '--num-nodes=4'} < set(words)
  assert '$JAX_COORDINATOR_PORT --num_processes=$NNODES --pro' in words[-1]


@pytest.mark.parametrize(('left', 'again'), [(100, True), (5000, False)])
def test_slurm_queues_again_what_ran_out_of_time(shell, left, again):
  calls = shell.commands(
    'launch/slurm.sbatch',
    '--config=C',
    SLURM_JOB_END_TIME=str(int(time.time()) + left),
    SLURM_JOB_ID='7',
  )
  assert calls[0][-3:] == ['launch.train', '--config=C', '--coordinator=auto']
  assert calls[1:] == [['scontrol', 'requeue', '7']] * again


@pytest.mark.skipif(not shutil.which('shellcheck'), reason='no shellcheck')
def test_shellcheck_has_nothing_to_say():
  scripts = sorted((ROOT / 'launch').glob('*.sh'))
  scripts += [ROOT / 'launch/slurm.sbatch']
  ran = subprocess.run(
    ['shellcheck', *map(str, scripts)], capture_output=True, text=True
  )
  assert ran.returncode == 0, ran.stdout
