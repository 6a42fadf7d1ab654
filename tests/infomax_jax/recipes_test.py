"""What the docstrings of AMDIM's recipes tell a user to type."""

import importlib.util
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / 'configs/infomax').glob('*.py'))


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_flags_of_the_docstring_are_keys_of_the_config(file):
  """A key that a config lacks cannot be set on the command line."""
  spec = importlib.util.spec_from_file_location(f'recipe_{file.stem}', file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  for path in re.findall(r'--config\.([a-z_.]+)=', module.__doc__):
    place = config
    for key in path.split('.'):
      assert key in place, f'{file.name} has no {path}'
      place = place[key]


def test_there_are_such_flags():
  told = [f.name for f in FILES if '--config.' in f.read_text()]
  assert told == ['imagenet.py', 'stl10.py']
