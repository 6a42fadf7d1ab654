"""Mistakes of the user, told in one line."""

from collections.abc import Iterator
import contextlib
import errno
import sys

from absl import logging


class UserError(Exception):
  """A mistake the user can mend; the message names the file or key and how."""


@contextlib.contextmanager
def one_line() -> Iterator[None]:
  """Prints a UserError as one line and exits with 1; `-v=1` adds a traceback.

  So do a missing file and a full disk, wherever they strike. JAX and Orbax tell
  of every step they take; here they only warn.
  """
  if not logging.vlog_is_on(1):
    logging.set_verbosity(logging.WARNING)
  try:
    yield
  except (UserError, OSError) as error:
    known = isinstance(error, UserError | FileNotFoundError)
    if not known and error.errno != errno.ENOSPC:
      raise
    logging.vlog(1, 'traceback', exc_info=True)
    message = ' '.join(str(error).split())
    print(f'error: {message}', file=sys.stderr, flush=True)
    sys.exit(1)


def disk_is_full(error: BaseException | None) -> bool:
  """Whether `error`, or anything it came from, is a full disk.

  TensorStore wraps the operating system's error in its own text, so the text
  is read too.
  """
  while error is not None:
    if getattr(error, 'errno', None) == errno.ENOSPC:
      return True
    if 'No space left on device' in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False
