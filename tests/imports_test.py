"""The rules of dependency and size, read off the source."""

import ast
import pathlib
import statistics
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ('mirage_jax', 'infomax_jax')
TOP = (*PACKAGES, 'configs', 'launch', 'tests')
EMPTY_NAMES = {'utils', 'common', 'helpers', 'misc', 'base'}
EFFECTS = {'launch', 'configs', 'tests', 'absl', 'orbax', 'ml_collections'}
# Installed by extras only: imported where they are used, not at the top.
EXTRAS = {'ai_edge_litert', 'diffusers', 'matplotlib', 'onnx', 'piper'}
EXTRAS |= {'qwix', 'skimage', 'sklearn', 'torch', 'transformers'}
# What runs any experiment, and so knows none.
GENERIC = {'train', 'loop', 'mesh', 'checkpoint', 'writer', 'signals', 'errors'}
# What tells JAX of a derivative or a tree is no effect.
REGISTRATIONS = ('.defvjp', '.defjvp', '.register_dataclass')
MAX_LINES, MAX_FUNCTION, MAX_MEDIAN = 400, 60, 150
LONG_FUNCTIONS = {('launch/loop.py', 'train'): 90}


def imported(tree):
  """(module, at the top level or not) of every import."""
  top = {id(node) for node in tree.body}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, id(node) in top
    elif isinstance(node, ast.ImportFrom):
      yield '.' * node.level + (node.module or ''), id(node) in top
      for alias in node.names:  # `from package import module`
        yield f'{node.module}.{alias.name}', id(node) in top


def wrong_imports(path, tree):
  """What a file imports against the rules; `path` is relative to the root."""
  here, stem = path.parts[0], path.stem
  for name, top_level in imported(tree):
    first, last = name.split('.')[0], name.split('.')[-1]
    if name.startswith('.'):
      yield f'{name}: relative'
    if here == 'configs':
      standard = first in sys.stdlib_module_names
      if not standard and first != 'ml_collections' and first != 'configs':
        yield f'{name}: configs import ml_collections and configs.args only'
    if here in PACKAGES and first in EFFECTS:
      yield f'{name}: packages are pure'
    if first == 'tensorflow':
      yield f'{name}: TensorFlow is no dependency'
    if here != 'tests':
      if first in EXTRAS and top_level and first != 'configs':
        yield f'{name}: an extra, import it where it is used'
      if first == 'tests':
        yield f'{name}: nothing imports tests'
    if here == 'infomax_jax' and first == 'mirage_jax':
      yield f'{name}: infomax_jax stands alone'
    if here == 'mirage_jax' and first == 'infomax_jax':
      if not stem.startswith(('evals', 'curate')):
        yield f'{name}: only evaluation and curation use infomax_jax'
    if here in PACKAGES and first == here:
      yield from wrong_arrows(path, name, last)
    if path.parent.name == 'launch' and stem in GENERIC and first in PACKAGES:
      yield f'{name}: the loop knows no model'


def wrong_arrows(path, name, last):
  """Inside a package: ops <- block <- dit; nothing imports experiment."""
  if last.endswith('experiment'):
    yield f'{name}: nothing imports an experiment'
  if path.parts[1] == 'ops' and not name.startswith(f'{path.parts[0]}.ops'):
    if name != path.parts[0]:
      yield f'{name}: ops import no model'
  if path.stem == 'block' and last == 'dit':
    yield f'{name}: block comes before dit'
  if path.stem in ('flow', 'sampler') and last in ('dit', 'block'):
    yield f'{name}: takes an apply callable'


def effects_at_import(path, tree):
  """Calls whose result nobody takes, at the top level of a module."""
  for node in tree.body:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
      if ast.unparse(node.value.func).endswith(REGISTRATIONS):
        continue
      yield f'line {node.lineno}: {ast.unparse(node)[:60]}'
  if path.parts[0] != 'launch':
    for node in tree.body:
      if 'flags.DEFINE' in ast.unparse(node):
        yield f'line {node.lineno}: a flag outside launch'


def silent_excepts(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.ExceptHandler):
      if node.type is None or all(isinstance(x, ast.Pass) for x in node.body):
        yield f'line {node.lineno}: swallows an error'


def long_functions(path, tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef):
      length = node.end_lineno - node.lineno + 1
      if length > LONG_FUNCTIONS.get((str(path), node.name), MAX_FUNCTION):
        yield f'{node.name}: {length} lines'


FILES = sorted(f for top in TOP for f in (ROOT / top).rglob('*.py'))


@pytest.mark.parametrize('file', FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_the_rules_hold(file):
  path = file.relative_to(ROOT)
  source = file.read_text()
  tree = ast.parse(source)
  assert not list(wrong_imports(path, tree))
  assert not list(silent_excepts(tree))
  assert file.stem not in EMPTY_NAMES
  assert len(source.splitlines()) <= MAX_LINES
  assert not list(long_functions(path, tree))
  if path.parts[0] != 'tests':
    assert not list(effects_at_import(path, tree))
  else:
    assert file.name != '__init__.py'


def test_the_median_file_is_short():
  lengths = [
    len(f.read_text().splitlines())
    for f in FILES
    if f.relative_to(ROOT).parts[0] != 'tests'
  ]
  assert statistics.median(lengths) <= MAX_MEDIAN


@pytest.mark.parametrize(
  ('path', 'source'),
  [
    ('configs/mirage/x.py', 'import jax'),
    ('configs/mirage/x.py', 'from mirage_jax import config'),
    ('mirage_jax/x.py', 'from absl import flags'),
    ('mirage_jax/x.py', 'def f():\n  import orbax.checkpoint'),
    ('mirage_jax/x.py', 'from launch import media'),
    ('mirage_jax/x.py', 'from . import dit'),
    ('mirage_jax/dit.py', 'import infomax_jax'),
    ('mirage_jax/x.py', 'import torch'),
    ('mirage_jax/x.py', 'from mirage_jax import experiment'),
    ('mirage_jax/ops/attention/api.py', 'from mirage_jax import block'),
    ('mirage_jax/block.py', 'from mirage_jax.dit import Mirage'),
    ('mirage_jax/sampler.py', 'from mirage_jax import dit'),
    ('infomax_jax/x.py', 'import mirage_jax.evals'),
    ('launch/loop.py', 'from mirage_jax import vae'),
    ('launch/x.py', 'import tensorflow'),
    ('launch/x.py', 'from tests.launch import toy_experiment'),
  ],
)
def test_a_wrong_import_is_seen(path, source):
  assert list(wrong_imports(pathlib.Path(path), ast.parse(source)))


def test_effects_long_functions_and_swallowed_errors_are_seen():
  path = pathlib.Path('mirage_jax/x.py')
  assert list(effects_at_import(path, ast.parse('jax.config.update(1, 2)')))
  assert list(effects_at_import(path, ast.parse("A = flags.DEFINE_bool('a')")))
  assert list(long_functions(path, ast.parse('def f():\n' + '  x\n' * 60)))
  swallowed = 'try:\n  x\nexcept KeyError:\n  pass'
  assert list(silent_excepts(ast.parse(swallowed)))
