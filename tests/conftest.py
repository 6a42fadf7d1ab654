"""A hostile setting: eight devices, no rank promotion, warnings are errors."""

import os
import pathlib

# Before jax is imported; subprocesses of tests inherit these.
ROOT = pathlib.Path(__file__).parents[1]
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache/jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '0')

from absl import flags  # noqa: E402
import jax  # noqa: E402

from tests.tables import pytest_terminal_summary  # noqa: E402, F401

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Grain reads absl flags when it starts to prefetch.
flags.FLAGS.mark_as_parsed()
