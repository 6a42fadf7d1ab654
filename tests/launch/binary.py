"""Binaries of launch run inside the test's process, one at a time."""

import contextlib
import importlib
import sys

from absl import flags, logging  # noqa: F401  Its flags are no binary's.


class Binary:
  """A module of launch with the flags of no other one beside its own.

  Binaries define flags of the same names, which absl allows only once in a
  process.
  """

  def __init__(self, name):
    self.name = name

  @contextlib.contextmanager
  def loaded(self, *arguments):
    """The module, imported afresh, its flags parsed from the arguments."""
    known = flags.FLAGS.flags_by_module_dict()
    libraries = {
      flag.name for m, own in known.items() for flag in own if 'launch' not in m
    }
    hidden = {n: flags.FLAGS[n] for n in set(flags.FLAGS) - libraries}
    name = f'launch.{self.name}'
    other, argv = sys.modules.pop(name, None), sys.argv
    for flag in hidden:
      delattr(flags.FLAGS, flag)
    try:
      sys.argv = [self.name, *map(str, arguments)]  # Configs look there.
      module = importlib.import_module(name)
      parse = getattr(module, 'parse_flags', flags.FLAGS)
      parse(list(sys.argv))
      yield module
    finally:
      sys.argv = argv
      for flag in set(flags.FLAGS) - libraries:
        delattr(flags.FLAGS, flag)
      for flag, holder in hidden.items():
        flags.FLAGS[flag] = holder
      sys.modules.pop(name, None)
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
