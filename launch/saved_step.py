"""A compiled training step as a file, for a start that compiles nothing."""

from collections.abc import Mapping
import os
import pathlib
import pickle
from typing import Any

import jax
from jax.experimental import serialize_executable

from launch import atomic
from launch.errors import UserError


def save(
  path: str | os.PathLike, program: jax.stages.Compiled, config: Mapping
) -> None:
  """Writes a step with the plain config that it is of.

  It must have been compiled here: XLA saves nothing whole that came out of its
  cache.
  """
  parts = serialize_executable.serialize(program)
  with atomic.replacing(pathlib.Path(path)) as half:
    half.write_bytes(pickle.dumps((dict(config), parts)))


def load(path: str | os.PathLike, config: Mapping) -> Any:
  """The step that `save` wrote, on the devices that it was compiled for.

  It runs code from the file: which must be the user's own.

  Raises:
    UserError: it is of another config, or of other devices or another compiler.
  """
  try:
    known, parts = pickle.loads(pathlib.Path(path).read_bytes())
  except (pickle.UnpicklingError, EOFError, TypeError, ValueError) as error:
    raise UserError(f'{path} is no file of launch.aot --export') from error
  if known != dict(config):
    keys = sorted(
      key for key in {*known, *config} if known.get(key) != config.get(key)
    )
    raise UserError(
      f'{path} was compiled of other {", ".join(keys)}: give launch.aot '
      '--export the same --config and overrides'
    )
  try:
    return serialize_executable.deserialize_and_load(*parts)
  except Exception as error:  # Those of compilers have no class of their own.
    said = str(error).splitlines()[0]
    raise UserError(
      f'{path} does not load on {jax.device_count()} x '
      f'{jax.devices()[0].device_kind} ({said}): compile it for them, with '
      'the same jax and libtpu'
    ) from error
