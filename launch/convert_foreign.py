"""Foreign checkpoints -> ours: the job of a conversion."""

from collections.abc import Callable, Mapping, Sequence
import functools
import sys
from typing import Any

from flax import traverse_util
import numpy as np

from launch import convert_strangers
from launch.convert_job import Unit
from launch.convert_kinds import Kind
from launch.convert_sink import Spec
from launch.errors import UserError
from mirage_jax.encoders import names, names_diff


def refuse_strangers(source: Any, asked: str) -> None:
  """UserError for a checkpoint that is known to be of another model.

  Args:
    source: the checkpoint.
    asked: the value of --from.
  """
  asked_as = 'wav2vec2' if asked in ('hubert', 'wavlm') else asked
  found = convert_strangers.models(source.tensors)
  if found and not any(f'--from {asked_as})' in model for model in found):
    raise UserError(
      f'{source.where}: is {found[0]}, not what --from {asked} takes'
    )


def check(source: Any, kind: Kind) -> dict[str, str]:
  """What `names.check` says; what is wrong goes to stderr, with a UserError."""
  try:
    return names.check(kind.layout, kind.ours, source.tensors)
  except names_diff.NamesError as error:
    first, *rest = str(error).splitlines()
    print('\n'.join(rest), file=sys.stderr)
    raise UserError(f'{source.where}: {first} What differs is above') from error


def specs(
  source: Any, kind: Kind, spelled: Mapping[str, str], dtype: str, root: str
) -> dict[str, Spec]:
  """What will be written: our path to its spec, in the layout's order.

  Args:
    source: the checkpoint.
    kind: its model.
    spelled: what `check` returns.
    dtype: 'keep' for the checkpoint's (the widest, where layers differ).
    root: of our paths.
  """
  flat = traverse_util.flatten_dict(kind.ours, sep='/')
  dtypes: dict[str, list[np.dtype]] = {}
  stacked: dict[str, bool] = {}
  for place in kind.layout.places:
    if place.path is not None:
      theirs = source.tensors[spelled[place.name]].dtype
      dtypes.setdefault(place.path, []).append(theirs)
      stacked[place.path] = bool(place.index) and isinstance(
        place.index[0], int
      )
  return {
    root + path: Spec(flat[path].shape, as_dtype(dtype, found), stacked[path])
    for path, found in dtypes.items()
  }


def as_dtype(dtype: str, found: Sequence[np.dtype]) -> np.dtype:
  """The dtype asked for, or the narrowest that holds all that are found."""
  if dtype != 'keep':
    return np.dtype(dtype)
  return functools.reduce(np.promote_types, found)


def units(
  source: Any, kind: Kind, spelled: Mapping[str, str], root: str
) -> list[Unit]:
  """One for each slab: a layer of a stacked array, or an array."""
  flat = traverse_util.flatten_dict(kind.ours, sep='/')
  groups: dict[tuple[str, int | None], list[names.Place]] = {}
  for place in kind.layout.places:
    if place.path is None:
      continue
    stacked = place.index and isinstance(place.index[0], int)
    lead = place.index[0] if stacked else None
    groups.setdefault((place.path, lead), []).append(place)
  read = _last(lambda name: source.read(spelled[name]))
  return [
    Unit(
      root + path,
      lead,
      functools.partial(_fill, flat[path].shape, lead, places, read),
    )
    for (path, lead), places in groups.items()
  ]


def _fill(shape, lead, places, read):
  """One slab from its places."""
  if len(places) == 1 and places[0].index in ((), (lead,)):
    return places[0].to_ours(read(places[0].name))
  out = None
  for place in places:
    piece = place.to_ours(read(place.name))
    index = place.index if lead is None else place.index[1:]
    if out is None:
      out = np.empty(shape if lead is None else shape[1:], piece.dtype)
    if piece.dtype != out.dtype:
      out = out.astype(np.promote_types(out.dtype, piece.dtype))
    out[index] = piece
  return out


def _last(read: Callable[[str], np.ndarray]) -> Callable[[str], np.ndarray]:
  """`read` that keeps its last tensor: parts of it come one after the other."""
  held: dict[str, np.ndarray] = {}

  def cached(name):
    if name not in held:
      held.clear()
      held[name] = read(name)
    return held[name]

  return cached
