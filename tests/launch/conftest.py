"""One tiny bundle for all, and binaries run inside this process."""

import contextlib
import importlib
import sys

from absl import flags
import pytest

from launch import bundle as bundle_lib, generate
from tests import tiny


@pytest.fixture(scope='session')
def tiny_file(tmp_path_factory):
  """The file of a bundle of 16 x 16 frames with random weights."""
  path = tmp_path_factory.mktemp('bundle') / 'tiny.safetensors'
  bundle_lib.save(path, tiny.bundle())
  return path


@pytest.fixture(scope='session')
def generator(tiny_file):
  return generate.Generator(bundle_lib.load(tiny_file), str(tiny_file))


class Binary:
  """A module of launch with the flags of no other one beside its own."""

  def __init__(self, name):
    self.name = name

  @contextlib.contextmanager
  def loaded(self, *arguments):
    """The module, imported afresh, its flags parsed from the arguments."""
    known = flags.FLAGS.flags_by_module_dict()
    absl = {f.name for m, fs in known.items() for f in fs if 'launch' not in m}
    hidden = {n: flags.FLAGS[n] for n in set(flags.FLAGS) - absl}
    name = f'launch.{self.name}'
    other = sys.modules.pop(name, None)
    for flag in hidden:
      delattr(flags.FLAGS, flag)
    try:
      module = importlib.import_module(name)
      flags.FLAGS([self.name, *map(str, arguments)])
      yield module
    finally:
      for flag in set(flags.FLAGS) - absl:
        delattr(flags.FLAGS, flag)
      for flag, holder in hidden.items():
        flags.FLAGS[flag] = holder
      sys.modules.pop(name)
      if other is not None:
        sys.modules[name] = other

  def __call__(self, *arguments):
    """The exit code of `python -m launch.NAME arguments`."""
    with self.loaded(*arguments) as module:
      try:
        module.main([])
      except SystemExit as exit:
        return exit.code
      return 0


@pytest.fixture
def binary():
  """binary('sample')('--audio=a.wav', ...) -> exit code."""
  return Binary


@pytest.fixture
def one_error(capsys):
  """The one line that a run has put on stderr, without 'error: '."""

  def last():
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith('error: ')]
    assert len(errors) == 1 and lines[-1] == errors[0], lines
    return errors[0].removeprefix('error: ')

  return last
