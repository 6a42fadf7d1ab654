"""Records of the ArrayRecord shards: flat dicts of arrays as bytes and back."""

from collections.abc import Mapping
import io
import threading

import numpy as np

# Threads of a pipeline unpack one at a time: numpy reads an array's header with
# Python's parser, of which two at once can fail in CPython 3.11 ("AST constructor
# recursion depth mismatch", as in python/cpython#106905).
_PARSING = threading.Lock()


def pack(record: Mapping[str, np.ndarray | str]) -> bytes:
  """Encodes a flat dict of arrays and strings (kept as 0-d string arrays)."""
  buffer = io.BytesIO()
  np.savez(buffer, **{k: np.asarray(v) for k, v in record.items()})
  return buffer.getvalue()


def unpack(data: bytes) -> dict[str, np.ndarray]:
  """The inverse of `pack`; strings come back as 0-d string arrays."""
  source = io.BytesIO(data)
  with _PARSING, np.load(source, allow_pickle=False) as arrays:
    return {k: arrays[k] for k in arrays.files}
