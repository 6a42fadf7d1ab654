"""Files that are either whole or not there."""

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib

from launch.errors import UserError, disk_is_full

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary name beside `path`, renamed to it if all went well.

  The temporary file is hidden, keeps the suffix (encoders go by it) and is
  removed when the body raises; what was at `path` before then stays.

  Raises:
    UserError: the disk is full, or the folder cannot be written to.
  """
  path = pathlib.Path(path)
  half = path.with_name(f'.{path.stem}.{os.getpid()}.part{path.suffix}')
  with told(path):
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      yield half
      os.replace(half, path)
    except BaseException:
      half.unlink(missing_ok=True)
      raise


@contextlib.contextmanager
def told(path: str | os.PathLike) -> Iterator[None]:
  """Turns what keeps the body from writing `path` into a UserError."""
  try:
    yield
  except BaseException as error:
    if _no_room(error):
      raise UserError(
        f'{path}: the disk is full; nothing was written: make room there'
      ) from error
    if isinstance(error, (PermissionError, NotADirectoryError)):
      raise UserError(f'{path}: cannot be written: {error}') from error
    raise


def _no_room(error):
  # ArrayRecord tells it only in words.
  if isinstance(error, RuntimeError) and 'File too large' in str(error):
    return True
  return getattr(error, 'errno', None) in NO_ROOM or disk_is_full(error)
