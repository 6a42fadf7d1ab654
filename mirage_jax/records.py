"""Records of the ArrayRecord shards: flat dicts of arrays as bytes and back."""

from collections.abc import Mapping
import io

import numpy as np


def pack(record: Mapping[str, np.ndarray | str]) -> bytes:
  """Encodes a flat dict of arrays and strings (kept as 0-d string arrays)."""
  buffer = io.BytesIO()
  np.savez(buffer, **{k: np.asarray(v) for k, v in record.items()})
  return buffer.getvalue()


def unpack(data: bytes) -> dict[str, np.ndarray]:
  """The inverse of `pack`; strings come back as 0-d string arrays."""
  with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
    return {k: arrays[k] for k in arrays.files}
