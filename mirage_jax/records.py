"""Records of the ArrayRecord shards: flat dicts of arrays as bytes and back."""

from collections.abc import Mapping
import io
import re
import zipfile

import numpy as np

# What numpy's format says of an array in front of its bytes. Not read by np.load:
# it has Python's parser do it, which in CPython 3.11 fails in a thread while any
# other parses ("AST constructor recursion depth mismatch", as in
# python/cpython#106905).
_HEADER = re.compile(
  rb"\x93NUMPY\x01\x00..{'descr': '([<>|][biufU]\d+)', "
  rb"'fortran_order': (False|True), 'shape': \(([\d, ]*)\), } *\n",
  re.DOTALL,
)


def pack(record: Mapping[str, np.ndarray | str]) -> bytes:
  """Encodes a flat dict of arrays and strings (kept as 0-d string arrays)."""
  buffer = io.BytesIO()
  np.savez(buffer, **{k: np.asarray(v) for k, v in record.items()})
  return buffer.getvalue()


def unpack(data: bytes) -> dict[str, np.ndarray]:
  """The inverse of `pack`; strings come back as 0-d string arrays.

  Raises:
    ValueError: there is an array that `pack` does not write, as of objects.
  """
  with zipfile.ZipFile(io.BytesIO(data)) as arrays:
    return {
      name.removesuffix('.npy'): _array(name, arrays.read(name))
      for name in arrays.namelist()
    }


def _array(name, data):
  header = _HEADER.match(data)
  if not header:
    raise ValueError(f'{name} of a record is no array of numbers or text')
  dtype, fortran, shape = (group.decode() for group in header.groups())
  shape = [int(n) for n in shape.split(',') if n.strip()]
  flat = np.frombuffer(data, np.dtype(dtype), offset=header.end()).copy()
  return flat.reshape(shape, order='F' if fortran == 'True' else 'C')
