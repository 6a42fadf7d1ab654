"""What a checkpoint is of: a model, its sizes, and the place of each tensor."""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

from mirage_jax.encoders.names import Places


@dataclasses.dataclass(frozen=True)
class Kind:
  """A model, and where a checkpoint's tensors go in it.

  Attributes:
    config: Plain values, as in a run's config.json.
    layout: The checkpoint's.
    ours: Our parameters' abstract shapes, unboxed.
  """

  config: dict[str, Any]
  layout: Places
  ours: Any


class Shapes:
  """Asks for the shapes of a checkpoint, prefixes of names left out."""

  def __init__(self, tensors: Mapping[str, Any], *prefixes: str):
    self._found = {}
    for name, tensor in tensors.items():
      for prefix in prefixes:
        name = name.removeprefix(prefix)
      self._found[name] = tuple(tensor.shape)

  def __call__(self, name: str, axis: int) -> int:
    """Raises KeyError for a tensor that is not there or has no such axis."""
    shape = self._found[name]
    if axis >= len(shape):
      raise KeyError(f'{name} of {shape}')
    return shape[axis]

  def __contains__(self, name: str) -> bool:
    return name in self._found

  def count(self, pattern: str) -> int:
    """One more than the highest number that a pattern's group matches."""
    found = (re.match(pattern, name) for name in self._found)
    return max((int(m[1]) + 1 for m in found if m), default=0)
