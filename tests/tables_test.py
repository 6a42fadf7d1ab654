"""What a worker's test has recorded is printed by the process that started it."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
TEST = """
def test_it(record_property):
  print('swallowed')
  record_property('seconds', 3)
  record_property('table', '| a | b |')
"""


def test_a_table_of_a_worker_is_printed(tmp_path):
  (tmp_path / 'conftest.py').write_text(
    'from tests.tables import pytest_terminal_summary\n'
  )
  (tmp_path / 'it_test.py').write_text(TEST)
  options = ['-q', '-n1', '-p', 'no:cacheprovider', '--import-mode=importlib']
  done = subprocess.run(
    [sys.executable, '-m', 'pytest', *options, 'it_test.py'],
    cwd=tmp_path,
    env={'PYTHONPATH': str(ROOT), 'PATH': ''},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.count('| a | b |\n') == 1
  assert 'swallowed' not in done.stdout
