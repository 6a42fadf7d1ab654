"""The binary: what a user gets wrong takes one line and a non-zero exit."""

import sys

from absl import flags
import pytest

from launch import train
from launch.errors import UserError

CONFIG = 'tests/launch/toy_config.py'


@pytest.fixture
def parse(monkeypatch):
  """Parses a command line as `python -m launch.train` would."""

  def parse(*arguments):
    argv = ['train', *arguments]
    monkeypatch.setattr(sys, 'argv', argv)
    flags.FLAGS.unparse_flags()
    return train.parse_flags(argv)

  known = set(flags.FLAGS)
  yield parse
  for name in set(flags.FLAGS) - known:  # The overrides of the config.
    delattr(flags.FLAGS, name)
  flags.FLAGS.unparse_flags()
  flags.FLAGS.mark_as_parsed()


def test_a_run_from_the_command_line(parse, tmp_path, capsys):
  workdir = tmp_path / 'run'
  parse(
    f'--config={CONFIG}:batch_size=16',
    '--config.num_steps=2',
    f'--workdir={workdir}',
  )
  train.main([])
  assert (workdir / 'checkpoints/2').is_dir()
  out = capsys.readouterr().out
  assert '8 x cpu' in out and 'step 2/2 loss' in out
  assert '"batch_size": 16' in (workdir / 'config.json').read_text()


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (
      [f'--config={CONFIG}', '--config.num_stps=3'],
      'no key num_stps; did you mean "num_steps"',
    ),
    ([f'--config={CONFIG}', '--config.toy.delayy=3'], 'no key delayy'),
    ([f'--config={CONFIG}', '--config.seed=1.5'], '--config.seed=1.5'),
    ([f'--config={CONFIG}:tiny'], "variant 'tiny' is unknown; there are: toy"),
    ([f'--config={CONFIG}:delay=x'], 'delay=x is no literal'),
    (['--config=configs/nowhere.py'], 'configs/nowhere.py'),
    (['--confg=x'], "Unknown command line flag 'confg'"),
  ],
)
def test_mistakes_in_the_command_line(parse, arguments, said, capsys):
  with pytest.raises(SystemExit) as error:
    parse('--workdir=/nowhere', *arguments)
  assert error.value.code == 1
  err = capsys.readouterr().err
  assert said in err and err.startswith('error: ') and err.count('\n') == 1


def test_mistakes_in_the_run(parse, tmp_path, capsys):
  parse(f'--config={CONFIG}', f'--workdir={tmp_path}', '--config.mesh.fsdp=5')
  with pytest.raises(SystemExit) as error:
    train.main([])
  assert error.value.code == 1
  err = capsys.readouterr().err
  assert 'does not divide the 8 devices' in err and err.count('\n') == 1


@pytest.mark.parametrize('steps', ['5', '0:3', '4:2', 'a:b'])
def test_steps_to_profile_are_two_numbers(steps, parse, tmp_path, capsys):
  parse(f'--config={CONFIG}', f'--workdir={tmp_path}', f'--profile={steps}')
  with pytest.raises(SystemExit):
    train.main([])
  assert 'give the first and the last step' in capsys.readouterr().err


def test_the_workdir_is_asked_for(parse, capsys):
  parse(f'--config={CONFIG}')
  with pytest.raises(SystemExit):
    train.main([])
  assert '--config and --workdir are needed' in capsys.readouterr().err


@pytest.mark.parametrize(
  'arguments', [(None, 2, None), (None, None, 0), ('host:1', 2, None)]
)
def test_half_told_coordinates_are_refused(arguments):
  with pytest.raises(UserError, match='--coordinator'):
    train.connect(*arguments)
