"""Weights by name: where each tensor of a foreign checkpoint goes in ours.

A checkpoint's layout is data: a `Places` table with one `Place` per piece. The
same table loads, saves, and says what does not fit, before any tensor is read.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import einops
from flax import traverse_util
from jaxtyping import Float
import numpy as np

from mirage_jax.encoders import names_diff

Index = tuple[int | slice, ...]


@dataclasses.dataclass(frozen=True)
class Place:
  """One of their tensors, or an equal part of one, and its place in ours.

  Attributes:
    name: Their name.
    path: Ours, joined by '/'; None for a tensor that has no reader: it must be
      there, is dropped, and comes back as zeros.
    pattern: einops, theirs to ours; read from right to left it goes back.
    index: Which part of our array it fills; () for the whole.
    part: (i, n): it is the i-th of n equal parts of their first axis.
    sizes: Axes that the pattern splits, in either direction.
    shape: Of the part, if it has no path.
  """

  name: str
  path: str | None
  pattern: str = '... -> ...'
  index: Index = ()
  part: tuple[int, int] = (0, 1)
  sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
  shape: tuple[int, ...] = ()

  def to_ours(self, tensor: np.ndarray) -> np.ndarray:
    """The piece of ours that their whole tensor holds."""
    i, n = self.part
    step = tensor.shape[0] // n if n > 1 else 0
    part = tensor[i * step : (i + 1) * step] if n > 1 else tensor
    return einops.rearrange(part, self.pattern, **self.sizes)

  def to_theirs(self, array: np.ndarray) -> np.ndarray:
    """Their part, of our whole array."""
    theirs, ours = self.pattern.split('->')
    pattern = f'{ours} -> {theirs}'
    return einops.rearrange(array[self.index], pattern, **self.sizes)


@dataclasses.dataclass(frozen=True)
class Places:
  """The layout of one kind of checkpoint.

  Attributes:
    what: The model and its size, for messages.
    places: Every tensor that the model needs.
    prefixes: What may stand before their names, as in files of larger models.
    ignored: Beginnings of names (without prefix) of parts that we leave out.
    aliases: Other spellings of names in `places`; never both count.
  """

  what: str
  places: tuple[Place, ...]
  prefixes: tuple[str, ...] = ()
  ignored: tuple[str, ...] = ()
  aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def canonical(self, name: str) -> str | None:
    """A checkpoint's name as `places` spells it; None if it is left out."""
    for prefix in self.prefixes:
      name = name.removeprefix(prefix)
    name = self.aliases.get(name, name)
    return None if name.startswith(self.ignored) else name


def their_shapes(
  layout: Places, ours: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
  """The shape of every tensor of a checkpoint.

  Args:
    layout: The layout.
    ours: Our parameters, nested, arrays or their abstract shapes (unboxed).

  Returns:
    Name to shape, in the order of `layout.places`.

  Raises:
    KeyError: The layout and our parameters are not of one model.
  """
  flat, left = _flat(ours), set(_flat(ours))
  shapes = {}
  for place in layout.places:
    shape = place.shape
    if place.path is not None:
      left.discard(place.path)
      # Numbers without memory: einops only moves their strides.
      dummy = np.broadcast_to(np.float32(0), flat[place.path].shape)
      shape = place.to_theirs(dummy).shape
    parts = place.part[1]
    shapes[place.name] = (shape[0] * parts, *shape[1:]) if shape else shape
  if left:
    raise KeyError(f'{layout.what}: the layout has no {sorted(left)}')
  return shapes


def check(
  layout: Places, ours: Mapping[str, Any], found: Mapping[str, Any]
) -> dict[str, str]:
  """Compares a checkpoint's names, shapes and dtypes with what must be there.

  Args:
    layout: The layout.
    ours: Our parameters, nested, arrays or their abstract shapes (unboxed).
    found: The checkpoint's name to anything with a shape and a dtype.

  Returns:
    Name in `layout.places` to the name that the checkpoint has for it.

  Raises:
    names_diff.NamesError: Anything is missing, extra, misshaped or no float;
      says what.
  """
  spelled: dict[str, str] = {}
  for name in found:
    canonical = layout.canonical(name)
    if canonical is not None:
      # The plain spelling wins over an alias, which is the same tensor.
      if canonical not in spelled or name.endswith(canonical):
        spelled[canonical] = name
  want = their_shapes(layout, ours)
  tensors = {name: found[theirs] for name, theirs in spelled.items()}
  names_diff.check(layout.what, want, tensors)
  return spelled


def choose(layouts: Sequence[Places], found: Iterable[str]) -> Places:
  """The layout that most of a checkpoint's names are of, for `check`."""
  names = list(found)

  def score(layout):
    wanted = {place.name for place in layout.places}
    return sum(layout.canonical(name) in wanted for name in names)

  return max(layouts, key=score)


def pieces(
  layout: Places, spelled: Mapping[str, str], read: Callable[[str], np.ndarray]
) -> Iterator[tuple[str, Index, np.ndarray]]:
  """Yields (our path, index, values) one by one, reading each tensor once.

  Memory holds one of their tensors at a time, in the checkpoint's dtype.

  Args:
    layout: The layout.
    spelled: What `check` returns.
    read: The checkpoint's name to its tensor.
  """
  name, tensor = None, None
  for place in layout.places:
    if place.path is None:
      continue
    if place.name != name:
      name, tensor = place.name, np.asarray(read(spelled[place.name]))
    yield place.path, place.index, place.to_ours(tensor)


def load(
  layout: Places, ours: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Our parameters as float32 numpy, from a checkpoint held in memory.

  Args:
    layout: The layout.
    ours: Our parameters' abstract shapes, nested and unboxed.
    tensors: The checkpoint, name to array of any float dtype.

  Raises:
    names_diff.NamesError: The checkpoint does not fit; says where.
  """
  spelled = check(layout, ours, tensors)
  flat = {k: np.empty(v.shape, np.float32) for k, v in _flat(ours).items()}
  for path, index, values in pieces(layout, spelled, tensors.__getitem__):
    flat[path][index] = values
  return traverse_util.unflatten_dict(flat, sep='/')


def save(
  layout: Places, params: Mapping[str, Any]
) -> dict[str, Float[np.ndarray, '...']]:
  """The checkpoint's tensors, contiguous, from our parameters: `load` undone.

  Raises:
    KeyError: The layout and our parameters are not of one model.
  """
  their_shapes(layout, params)
  flat, parts = _flat(params), {}
  for place in layout.places:
    if place.path is None:
      part = np.zeros(place.shape, np.float32)
    else:
      part = place.to_theirs(np.asarray(flat[place.path]))
    parts.setdefault(place.name, []).append((place.part, part))
  tensors = {}
  for name, found in parts.items():
    found = [part for _, part in sorted(found, key=lambda x: x[0])]
    whole = np.concatenate(found) if len(found) > 1 else found[0]
    tensors[name] = np.ascontiguousarray(whole)
  return tensors


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
  return traverse_util.flatten_dict(tree, sep='/')
