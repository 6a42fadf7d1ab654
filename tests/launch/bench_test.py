"""The bookkeeping on a fake rival, and one real tiny run."""

import json
import subprocess
import sys

import pytest

from launch import errors, side_by_side
from launch.side_by_side import Result, Rival
from tests.launch.binary import Binary

# Its flags are also those of other binaries.
with Binary('bench').loaded() as bench:
  pass

RIVALS = 'tests.launch.toy_rivals'
MEGABYTES = 200


def test_rivals_take_turns_and_the_first_step_is_apart(tmp_path):
  log = tmp_path / 'log'
  same = {'first': 0.2, 'log': str(log)}
  rivals = {
    'a': Rival(f'{RIVALS}:sleeper', same | {'later': 0.01, 'name': 'a'}),
    'b': Rival(f'{RIVALS}:sleeper', same | {'later': 0.05, 'name': 'b'}),
  }
  seen = []
  results = side_by_side.measure(rivals, 3, seen.append)
  assert log.read_text() == 'ab' + 'ab' + 'ababab'  # cold, warm, measured
  assert seen == [1, 2, 3]
  for result in results.values():
    assert result.first >= 0.2
    assert len(result.walls) == 3
    assert result.wall == sorted(result.walls)[1]
    assert result.cpu < 0.2  # of sleeping
    assert result.num_params == 7
  assert results['a'].wall < results['b'].wall


def test_peak_memory_is_of_the_rival_alone():
  rivals = {
    'big': Rival(f'{RIVALS}:hoarder', {'megabytes': MEGABYTES}),
    'small': Rival(f'{RIVALS}:spinner', {}),
  }
  results = side_by_side.measure(rivals, 1)
  grown = {k: r.peak_bytes - r.start_bytes for k, r in results.items()}
  assert grown['big'] > 0.9e6 * MEGABYTES
  assert grown['small'] < 0.1e6 * MEGABYTES
  assert results['small'].cpu >= 0.05


def test_what_only_a_first_step_needs_is_apart(tmp_path):
  rival = Rival(
    f'{RIVALS}:compiler',
    {'marker': str(tmp_path / 'compiled'), 'megabytes': MEGABYTES},
  )
  result = side_by_side.measure({'x': rival}, 1)['x']
  assert result.first_peak_bytes - result.start_bytes > 0.9e6 * MEGABYTES
  assert result.peak_bytes - result.start_bytes < 0.1e6 * MEGABYTES


def test_a_rival_that_dies_is_told_and_the_others_end(capfd):
  rivals = {
    'good': Rival(f'{RIVALS}:spinner', {}),
    'bad': Rival(f'{RIVALS}:broken', {}),
  }
  with pytest.raises(errors.UserError, match='bad: the process ended with 1'):
    side_by_side.measure(rivals, 1)
  assert 'no such model' in capfd.readouterr().err


def test_medians_not_means():
  start = {'num_params': 1, 'wall': 9.0, 'start_bytes': 10, 'peak_bytes': 90}
  turns = [
    {'wall': wall, 'cpu': 2 * wall, 'peak_bytes': peak}
    for wall, peak in [(1.0, 20), (50.0, 30), (2.0, 30)]
  ]
  assert side_by_side._result(start, turns) == Result(
    num_params=1,
    first=9.0,
    first_peak_bytes=90,
    wall=2.0,
    cpu=4.0,
    start_bytes=10,
    peak_bytes=30,
    walls=(1.0, 50.0, 2.0),
  )


@pytest.fixture
def results():
  def result(wall, peak):
    memory = (10**8, peak)
    return Result(
      1_234_567, 20.0, 5 * 10**9, wall, 2 * wall, *memory, (wall,) * 5
    )

  return {
    'train': {
      bench.OURS: result(1.0, 10**9),
      bench.THEIRS: result(2.0, 4 * 10**9),
      bench.RECIPE: result(3.0, 2 * 10**9),
    },
    'sample': {
      bench.OURS: result(0.3, 10**9),
      bench.THEIRS: result(0.1, 10**9),
      bench.RECIPE: result(0.4, 10**9),
    },
  }


def run(binary, monkeypatch, results, *arguments):
  """`python -m launch.bench` with the measuring replaced; what it was asked."""
  asked = []
  with binary('bench').loaded(*arguments) as module:
    monkeypatch.setattr(module.importlib.util, 'find_spec', lambda name: name)
    monkeypatch.setattr(
      module, 'run_mochi', lambda *what: asked.append(what) or results
    )
    module.main(['bench', 'mochi'])
  return asked[0]


def test_ratios_are_ours_over_theirs(binary, monkeypatch, results, capsys):
  sizes, config, rounds = run(
    binary, monkeypatch, results, '--json', '--rounds=3', '--batch_size=2'
  )
  (line,) = capsys.readouterr().out.splitlines()
  summary = json.loads(line)
  assert summary['train_ratio'] == pytest.approx(0.5)
  assert summary['sample_ratio'] == pytest.approx(3)
  assert summary['memory_ratio'] == pytest.approx(0.25)
  assert summary['medians']['train']['diffusers']['wall'] == 2.0
  assert summary['sizes'] == sizes
  assert rounds == 3 and sizes['batch'] == config['batch_size'] == 2
  assert sizes['depth'] == config['model']['depth'] == 8


def test_the_table_fits_80_columns(binary, monkeypatch, results, capsys):
  run(binary, monkeypatch, results)
  lines = capsys.readouterr().out.splitlines()
  assert max(map(len, lines)) <= 80
  (wall,) = [line for line in lines if line.startswith('training step: wall')]
  assert wall.split()[-4:] == ['1.000', '2.000', '0.50', '3.000']
  assert '1,234,567' in lines[-1]


@pytest.mark.parametrize('arguments', [[], ['warp'], ['mochi', 'mochi']])
def test_an_unknown_benchmark_is_one_line(binary, arguments, one_error):
  with binary('bench').loaded() as module, pytest.raises(SystemExit):
    module.main(['bench', *arguments])
  assert 'mochi' in one_error()


def test_a_missing_extra_is_one_line(binary, monkeypatch, one_error):
  with binary('bench').loaded() as module:
    monkeypatch.setattr(module.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(SystemExit):
      module.main(['bench', 'mochi'])
  assert 'convert' in one_error()


def test_the_measuring_process_stays_small():
  # A child's peak memory counts that of the process it was forked from.
  code = 'import sys, launch.bench; print("jax" in sys.modules)'
  result = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, check=True, text=True
  )
  assert result.stdout.strip() == 'False'


@pytest.mark.full
def test_both_sides_are_the_same_model():
  pytest.importorskip('torch', reason='needs the `convert` extra')
  pytest.importorskip('diffusers', reason='needs the `convert` extra')
  config = json.loads(bench.grid.get_config('dit').to_json())
  config['batch_size'] = 1
  config['latent_size'] = [2, 2]
  config['model'] |= {'depth': 2, 'num_heads': 1, 'head_dim': 8}
  config['model']['video'] = {'width': 8, 'mlp_dim': 16}
  config['model']['audio'] |= {'width': 8, 'mlp_dim': 16}
  config['model']['text'] |= {'width': 8, 'mlp_dim': 16, 'in_dim': 8}
  sizes = bench.mochi_sizes(config)
  results = bench.run_mochi(sizes, config, 1)
  counts = {k: r.num_params for k, r in results['train'].items()}
  # The last block's text queries have no reader: diffusers keeps them.
  dead = 8 * 8 + 8
  assert counts[bench.THEIRS] - counts[bench.OURS] == dead
  for sides in results.values():
    for result in sides.values():
      assert result.wall > 0 and result.cpu > 0
      assert result.peak_bytes > result.start_bytes > 0
