"""Arrays and what is to be known of them: one safetensors file.

The latter is JSON in the file's metadata, under a key that tells kinds apart.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import os
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from launch import atomic
from launch.errors import UserError


class Kind(NamedTuple):
  """A kind of file.

  Attributes:
    key: In the metadata.
    name: What messages call one.
    maker: The binary that writes them.
  """

  key: str
  name: str
  maker: str


def write(
  path: str | os.PathLike,
  kind: Kind,
  tree: Mapping[str, Any],
  about: Mapping[str, Any],
  whole: Sequence[str] = (),
) -> None:
  """Writes under a temporary name, then renames it.

  Args:
    path: the file.
    kind: of the file.
    tree: nested arrays; they become float16.
    about: JSON values.
    whole: names at the top of the tree whose arrays stay float32.

  Raises:
    UserError: a number is not finite in float16, the disk is full, or the
      folder cannot be written.
  """
  flat = {}
  for name, value in flax.traverse_util.flatten_dict(tree, sep='/').items():
    dtype = np.float32 if name.split('/')[0] in whole else np.float16
    with np.errstate(over='ignore'):
      flat[name] = np.asarray(value, dtype, order='C')
    if not np.isfinite(flat[name]).all():
      raise UserError(
        f'{path}: {name} does not fit {dtype.__name__} (largest '
        f'{np.abs(value).max()}): export an earlier --step'
      )
  metadata = {kind.key: json.dumps(about)}
  data = safetensors.numpy.save(flat, metadata=metadata)
  with atomic.replacing(path) as half:
    half.write_bytes(data)


@contextlib.contextmanager
def reading(
  path: str | os.PathLike, kind: Kind
) -> Iterator[tuple[Any, dict[str, Any]]]:
  """What `write` got, its arrays as float32.

  A KeyError, TypeError or ValueError of the body counts as one of the file.

  Raises:
    UserError: it is missing, cut short, or of another kind.
  """
  if not os.path.exists(path):
    raise UserError(
      f'{path}: no such {kind.name}; give one that {kind.maker} wrote, or none '
      'for the shipped one'
    )
  try:
    with safetensors.safe_open(path, framework='numpy') as f:
      about = json.loads((f.metadata() or {})[kind.key])
      flat = {k: f.get_tensor(k).astype(np.float32) for k in f.keys()}
    yield about, flax.traverse_util.unflatten_dict(flat, sep='/')
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(
      f'{path}: is cut short or is no safetensors file ({error}); copy or '
      'export it again'
    ) from error
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f'{path}: is a safetensors file, but none of {kind.maker} (it lacks '
      f'{error}); export it again'
    ) from error
