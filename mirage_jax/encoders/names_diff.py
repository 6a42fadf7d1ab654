"""What is wrong with a checkpoint's names, so that a person can read it."""

from collections.abc import Mapping, Sequence
import re
from typing import Any

import numpy as np

MAX_LINES = 12  # Per kind of difference.


class NamesError(ValueError):
  """A checkpoint does not have the tensors that it must have.

  The first line says of what and how many; then come the differences by kind,
  with the numbers of layers folded.
  """


def check(
  what: str,
  want: Mapping[str, tuple[int, ...]],
  found: Mapping[str, Any],
):
  """Raises NamesError unless names and shapes agree and all are floats.

  Args:
    what: The model, for the first line.
    want: Name to shape.
    found: Name to anything with a shape and a dtype.
  """
  shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
  missing = [(n, _brackets(s)) for n, s in want.items() if n not in shapes]
  extra = [(n, _brackets(s)) for n, s in shapes.items() if n not in want]
  both = [name for name in want if name in shapes]
  misshaped = [
    (name, f'{_brackets(shapes[name])}, must be {_brackets(want[name])}')
    for name in both
    if shapes[name] != tuple(want[name])
  ]
  no_floats = [
    (name, str(found[name].dtype))
    for name in both
    if not _is_float(found[name].dtype)
  ]
  kinds = {
    'missing': missing,
    'extra': extra,
    'wrong shape': misshaped,
    'not a float': no_floats,
  }
  if not any(kinds.values()):
    return
  wrong = {name for name, _ in misshaped + no_floats}
  advice = 'use the configuration that made it, or another file.'
  if no_floats and not missing and not misshaped:
    advice = f'some are {no_floats[0][1]}: give weights that are not quantised.'
  lines = [
    f'the checkpoint is not {what}: {len(both) - len(wrong)} of {len(want)} '
    f'tensors fit; {advice}'
  ]
  for kind, items in kinds.items():
    if items:
      lines.append(f'{kind} ({len(items)}):')
      lines.extend(f'  {line}' for line in fold(items))
  raise NamesError('\n'.join(lines))


def fold(items: Sequence[tuple[str, str]]) -> list[str]:
  """Lines of (name, remark), those that differ in numbers only made one.

  At most MAX_LINES, and one that counts the rest.
  """
  groups: dict[tuple[str, str], list[str]] = {}
  for name, remark in items:
    # A number between dots is a layer's; in `wi_0` or `conv1` it is a name.
    folded = re.sub(r'(?<=\.)\d+(?=\.)', '*', name)
    groups.setdefault((folded, remark), []).append(name)
  lines = []
  for (folded, remark), names in groups.items():
    one = len(names) == 1
    times = '' if one else f' (x{len(names)})'
    lines.append(f'{names[0] if one else folded} {remark}{times}')
  if len(lines) > MAX_LINES:
    rest = len(lines) - MAX_LINES
    lines = lines[:MAX_LINES] + [f'and {rest} more kinds']
  return lines


def _brackets(shape: Sequence[int]) -> str:
  return f'[{", ".join(str(size) for size in shape)}]'


def _is_float(dtype: Any) -> bool:
  # numpy does not know that bfloat16 is a float.
  dtype = np.dtype(dtype)
  return dtype.kind == 'f' or dtype.name == 'bfloat16'
