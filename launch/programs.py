"""Compiled programs are kept on disk, so that a second start is fast."""

import os
import pathlib

import jax

FOLDER = 'mirage_infomax/programs'


def keep(folder: str | os.PathLike | None = None) -> pathlib.Path:
  """Tells JAX to look for programs in `folder` before it compiles them.

  Args:
    folder: None takes that of $JAX_COMPILATION_CACHE_DIR, or else one in the
      user's own cache. Made if it is not there; safe to delete.

  Returns:
    The folder.
  """
  here = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  usual = jax.config.jax_compilation_cache_dir or pathlib.Path(here, FOLDER)
  path = pathlib.Path(folder or usual).expanduser()
  jax.config.update('jax_compilation_cache_dir', str(path))
  # Small programs take time, too, where there are many.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)
  return path
