"""Prompts as bytes, for models small enough to learn letters themselves."""

from jaxtyping import Bool, Int
import numpy as np

VOCAB = 256


def byte_ids(
  text: str, length: int
) -> tuple[Int[np.ndarray, 'L'], Bool[np.ndarray, 'L']]:
  """UTF-8 bytes of `text`, cut or padded to `length`, and their mask."""
  data = np.frombuffer(text.encode()[:length], np.uint8)
  ids = np.zeros(length, np.int32)
  ids[: len(data)] = data
  return ids, np.arange(length) < len(data)
