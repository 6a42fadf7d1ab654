"""Prompts as bytes, for models small enough to learn letters; or as features."""

from jaxtyping import Bool, Float, Int
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


def pad(
  features: Float[np.ndarray, '_ Ct'], length: int
) -> tuple[Float[np.ndarray, 'L Ct'], Bool[np.ndarray, 'L']]:
  """Features of a text's tokens, cut or padded to `length`, and their mask."""
  found = features[:length]
  padded = np.zeros((length, found.shape[1]), np.float32)
  padded[: len(found)] = found
  return padded, np.arange(length) < len(found)
