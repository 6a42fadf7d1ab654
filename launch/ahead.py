"""Programs exported ahead of time, kept as files: a start that traces nothing.

JAX's own cache of compiled programs is asked only after a function was traced
and lowered, on which a second start would spend a third of its time. What that
comes to is exported here (`jax.export`), and looked up by the function, what is
static and the shapes of its arguments; what it compiles to is in JAX's cache,
as ever. Files of other code, another JAX or device are never taken. Executables
are not kept: those that JAX's cache gave cannot be written again on a CPU.
"""

from collections.abc import Callable
import functools
import hashlib
import os
import pathlib
import pickle
from typing import Any

from absl import logging
import jax
from jax import export
import numpy as np

from launch import atomic
from launch.errors import UserError
import mirage_jax

MOST = 256  # Files; those that were not asked for the longest go.
IN_MEMORY = 64
ADDRESS = ' at 0x'


class Programs:
  """`programs(f, static, *arguments)` is `f(*static, *arguments)`.

  Loading a file may run code from it: the folder must be the user's own.

  Args:
    folder: where files are.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._known: dict[Any, tuple[Callable, Any]] = {}

  def __call__(
    self, function: Callable, static: tuple[Any, ...], *arguments: Any
  ) -> Any:
    """Runs the program, which is loaded or exported at the first call.

    Args:
      function: jitted, with its first parameters static.
      static: hashable values for those.
      *arguments: trees of arrays.
    """
    leaves, tree = jax.tree.flatten(arguments)
    key = function, static, tree, tuple(_kind(leaf) for leaf in leaves)
    if key not in self._known:
      if len(self._known) >= IN_MEMORY:
        self._known.pop(next(iter(self._known)))
      self._known[key] = self._find(key, leaves)
    program, out = self._known[key]
    return jax.tree.unflatten(out, program(*leaves))

  def _find(self, key, leaves):
    function, static, tree, kinds = key
    said = repr((static, str(tree), kinds))
    if ADDRESS in said:  # It would be another one in another process.
      flat, found = _flat(function, static, tree)
      jax.eval_shape(flat, *leaves)
      return flat, found[0]
    name = f'{function.__module__}.{function.__qualname__}'
    whole = '\n'.join([name, said, *_surroundings()])
    digest = hashlib.sha256(whole.encode()).hexdigest()
    path = self._folder / f'{name}-{digest[:32]}.program'
    exported, out = self._load(path) or self._save(
      path, *_export(function, static, tree, leaves)
    )
    return jax.jit(exported.call), out

  def _load(self, path):
    try:
      data, out = pickle.loads(path.read_bytes())
      exported = export.deserialize(data)
      os.utime(path)
    except FileNotFoundError:
      return None
    except Exception as error:  # Cut short, or not ours.
      logging.warning('%s: is made again: %s', path, error)
      return None
    return exported, out

  def _save(self, path, exported, out):
    try:
      data = bytes(exported.serialize())
      with atomic.replacing(path) as half:
        half.write_bytes(pickle.dumps((data, out)))
    except (UserError, ImportError) as error:  # It needs flatbuffers.
      logging.warning('the next start will be slower: %s', error)
      return exported, out
    files = sorted(self._folder.glob('*.program'), key=_used)
    for old in files[:-MOST]:
      old.unlink(missing_ok=True)
    return exported, out


def _used(file):
  try:
    return file.stat().st_mtime
  except FileNotFoundError:  # Another process has thrown it away.
    return 0.0


def _export(function, static, tree, leaves):
  """A program from leaves to leaves, and the tree of what it returns."""
  flat, found = _flat(function, static, tree)
  return export.export(flat)(*leaves), found[0]


def _flat(function, static, tree):
  """The same, jitted; its tree is known as soon as it was traced."""
  found = []

  def flat(*leaves):
    result = function(*static, *jax.tree.unflatten(tree, leaves))
    leaves, out = jax.tree.flatten(result)
    found.append(out)
    return leaves

  return jax.jit(flat), found


def _kind(leaf):
  return np.shape(leaf), str(getattr(leaf, 'dtype', type(leaf).__name__))


@functools.cache
def _surroundings():
  """What else a program depends on: code, JAX, device, flags."""
  code = hashlib.sha256()
  here = pathlib.Path(__file__).parent
  sources = pathlib.Path(mirage_jax.__file__).parent.rglob('*.py')
  for file in sorted([*sources, here / 'draw.py', here / 'ahead.py']):
    code.update(str(file).encode() + file.read_bytes())
  device = jax.local_devices()[0]
  return (
    code.hexdigest(),
    jax.__version__,
    device.platform,
    device.device_kind,
    device.client.platform_version,
    os.environ.get('XLA_FLAGS', ''),
    str(jax.config.jax_default_matmul_precision),
  )
