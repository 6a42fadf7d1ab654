"""Every shipped config parses, builds, and its full-size step type-checks."""

from collections.abc import Mapping
import dataclasses
import importlib
import importlib.util
import json
import math
import pathlib

from flax import linen as nn
import jax
import ml_collections
import pytest

from configs import args
from launch import loop, mesh as mesh_lib
from mirage_jax.ops.attention import tpu_blocks

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(f for f in (ROOT / 'configs').rglob('*.py') if f.stem != 'args')
MAX_KEYS = 60


def load(file):
  spec = importlib.util.spec_from_file_location(f'config_{file.stem}', file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def variants(file):
  """The variants that a config file offers to args.parse, or ''."""
  module, offered = load(file), []

  class Watched:
    @staticmethod
    def parse(arg, variants=(), **defaults):
      offered.extend(variants)
      return args.parse(arg, variants, **defaults)

  if hasattr(module, 'args'):
    module.args = Watched
    module.get_config('')
  return offered or ['']


CASES = [(file, variant) for file in FILES for variant in variants(file)]
NAMES = [f'{f.relative_to(ROOT)}:{variant}' for f, variant in CASES]
every_config = pytest.mark.parametrize(('file', 'variant'), CASES, ids=NAMES)


class Recorder(Mapping):
  """A config that remembers which of its keys were read."""

  def __init__(self, values, prefix=''):
    self.unread = set()
    self._values = {}
    for key, value in values.items():
      if isinstance(value, Mapping):
        self._values[key] = Recorder(value, f'{prefix}{key}.')
      else:
        self._values[key] = value
        self.unread.add(key)
    self._prefix = prefix

  def __getitem__(self, key):
    self.unread.discard(key)
    return self._values[key]

  def __iter__(self):
    return iter(self._values)

  def __len__(self):
    return len(self._values)

  def all_unread(self):
    inner = [x for x in self._values.values() if isinstance(x, Recorder)]
    own = {self._prefix + key for key in self.unread}
    return own.union(*(x.all_unread() for x in inner))

  def count(self):
    return sum(
      x.count() if isinstance(x, Recorder) else 1 for x in self._values.values()
    )


def unread_keys(config):
  """Builds everything a run builds; the keys that nothing asked for."""
  config = Recorder(config)
  loop.Schedule.of(config)
  config.get('init_from')  # The loop may be told to start from it.
  sizes = {axis: size for axis, size in config['mesh'].items() if size != -1}
  mesh_lib.mesh_shape(config['mesh'], math.prod(sizes.values()))
  module = importlib.import_module(config['experiment'])
  module.make(config)
  return config.all_unread()


def plain(file, variant):
  config = load(file).get_config(variant)
  assert isinstance(config, ml_collections.ConfigDict)
  return json.loads(config.to_json())


@every_config
def test_the_docstring_has_the_command(file, variant):
  doc = ' '.join(load(file).__doc__.split())
  assert f'python -m launch.train --config {file.relative_to(ROOT)}' in doc
  assert f':{variant}'.rstrip(':') in doc


@every_config
def test_it_is_small_and_every_key_is_read(file, variant):
  config = plain(file, variant)
  assert Recorder(config).count() < MAX_KEYS
  assert unread_keys(config) == set()


@every_config
def test_the_full_size_step_type_checks(file, variant, monkeypatch):
  # The chip is the mesh's, and these meshes are of devices that are not here.
  monkeypatch.setattr(tpu_blocks, 'chip', lambda: 'v6e')
  config = plain(file, variant)
  exp = loop.build(config)
  module = importlib.import_module(config['experiment'])
  batch = module.abstract_batch(config, config['batch_size'])
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = nn.unbox(jax.eval_shape(exp.init, key))
  after, metrics = jax.eval_shape(exp.train_step, state, batch, key)
  assert jax.tree.map(_kind, after) == jax.tree.map(_kind, state)
  assert metrics['loss'].shape == ()
  if exp.eval_step is not None:
    if hasattr(module, 'abstract_eval_batch'):
      batch = module.abstract_eval_batch(config, config['batch_size'])
    metrics = jax.eval_shape(exp.eval_step, state, batch, key)
    assert all(value.shape == () for value in metrics.values())
  for rows in jax.tree.leaves(batch):
    assert rows.shape[0] == config['batch_size']


def _kind(x):
  return x.shape, x.dtype


def test_a_key_that_nothing_reads_is_seen(monkeypatch):
  config = {f.name: 1 for f in dataclasses.fields(loop.Schedule)}
  config |= {'experiment': 'toy', 'mesh': {'data': -1}}
  config |= {'model': {'width': 4, 'widht': 3}, 'forgotten': 2}

  class Toy:
    @staticmethod
    def make(config):
      return config['model']['width']

  monkeypatch.setattr(importlib, 'import_module', lambda name: Toy)
  assert unread_keys(config) == {'forgotten', 'model.widht'}


def test_arguments_after_the_colon():
  parse = lambda arg: args.parse(arg, ('a', 'b'), n=1, x=0.5, name='', on=False)
  assert parse(None).to_dict() == dict(
    variant='a', n=1, x=0.5, name='', on=False
  )
  got = parse('b,n=3,x=2,name=q/r,on=True')
  assert got.to_dict() == dict(variant='b', n=3, x=2.0, name='q/r', on=True)
  assert type(got.x) is float
  assert parse('n=2').n == 2
  for wrong, said in (
    ('c', "variant 'c' is unknown; there are: a, b"),
    ('b,m=2', "'m=2' is unknown; give key=value with a key of: n, x"),
    ('b,a', "'a' is unknown"),
    ('n=1.5', 'n=1.5 must be of type int'),
    ('n=x', 'n=x is no literal'),
    ('on=1', 'on=1 must be of type bool'),
  ):
    with pytest.raises(ValueError, match=said):
      parse(wrong)
