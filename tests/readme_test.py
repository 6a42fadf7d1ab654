"""The commands in README's code blocks exist and their flags parse."""

import pathlib
import re
import shlex

from absl import flags
import pytest

from tests.launch.binary import Binary

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / 'README.md'
BLOCK = re.compile(r'^```(?:bash|sh|console)?\n(.*?)^```', re.M | re.S)


def commands(text):
  """Words of every command in the code blocks of a Markdown text."""
  for block in BLOCK.findall(text):
    for line in block.replace('\\\n', ' ').splitlines():
      if words := shlex.split(line, comments=True):
        yield words[1:] if words[0] == '$' else words


def check(words):
  """Fails unless `python -m module --flags` or `make target VAR=x` is right."""
  if words[0] == 'make':
    makefile = (ROOT / 'Makefile').read_text()
    for word in words[1:]:
      name, is_variable, _ = word.partition('=')
      if is_variable:
        assert re.search(rf'^(export .*\b{name}\b|{name} \?=)', makefile, re.M)
      else:
        assert re.search(rf'^{name}:', makefile, re.M), f'no target {name}'
  elif words[0].startswith('python') and words[1] == '-m':
    package, _, name = words[2].partition('.')
    assert package == 'launch' and (ROOT / f'launch/{name}.py').exists()
    with Binary(name).loaded(*words[3:]):
      pass


def written():
  return list(commands(README.read_text())) if README.exists() else []


@pytest.mark.parametrize('words', written(), ids=lambda w: ' '.join(w)[:60])
def test_a_command_of_the_readme_is_right(words):
  check(words)


def test_the_readme_has_commands():
  if not README.exists():
    pytest.skip('README.md is not written yet')
  assert {'make', 'python'} <= {words[0] for words in written()}


@pytest.mark.parametrize(
  'command',
  [
    'make dmeo',
    'make demo TXT=hello',
    'python -m launch.smaple --audio a.wav',
    'python -m launch.sample --adio a.wav',
    'python -m launch.sample --steps=0',
    'python -m launch.train --config configs/mirage/grid.py:dti --workdir W',
    'python -m launch.train --config configs/mirage/grid.py --config.modle.depth=3',
  ],
)
def test_a_wrong_command_is_seen(command):
  text = f'words\n```bash\n# note\n{command}  # tail\n```\n'
  (words,) = commands(text)
  with pytest.raises((AssertionError, SystemExit, flags.Error)):
    check(words)


def test_a_right_command_is_let_through():
  text = '```\nmake demo TEXT="a b" OUT=o.mp4\npython -m launch.train \\\n'
  text += ' --config configs/mirage/grid.py:dit --workdir W \\\n'
  text += ' --config.model.depth=3\n```'
  found = list(commands(text))
  assert len(found) == 2 and found[0][2] == 'TEXT=a b'
  for words in found:
    check(words)
