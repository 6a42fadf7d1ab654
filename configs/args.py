"""The text after the colon in `--config file.py:variant,key=value`."""

import ast
from collections.abc import Sequence
from typing import Any

import ml_collections


def parse(
  arg: str | None, variants: Sequence[str] = (), **defaults: Any
) -> ml_collections.ConfigDict:
  """Splits `variant,key=value,...` into a ConfigDict.

  Args:
    arg: what config_flags hands to `get_config`; None or '' for all defaults.
    variants: the names allowed in first place; the first is the default.
    **defaults: the keys allowed and their values; a value given in `arg` must
      be a Python literal of the default's type, or plain text for a str.

  Returns:
    `variant` (if there are any) and every key of `defaults`.

  Raises:
    ValueError: an unknown variant or key, or a value of another type.
  """
  out = dict(defaults)
  parts = [part.strip() for part in (arg or '').split(',') if part.strip()]
  if variants:
    named = bool(parts) and '=' not in parts[0]
    out['variant'] = parts.pop(0) if named else variants[0]
    if out['variant'] not in variants:
      raise ValueError(
        f'config variant {out["variant"]!r} is unknown; there are: '
        f'{", ".join(variants)}'
      )
  for part in parts:
    key, equals, text = part.partition('=')
    if not equals or key not in defaults:
      raise ValueError(
        f'config argument {part!r} is unknown; give key=value with a key of: '
        f'{", ".join(defaults) or "(none)"}'
      )
    out[key] = _value(key, text, defaults[key])
  return ml_collections.ConfigDict(out)


def _value(key: str, text: str, default: Any) -> Any:
  if isinstance(default, str):
    return text
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError) as error:
    raise ValueError(f'config argument {key}={text} is no literal') from error
  if isinstance(default, float) and type(value) is int:
    value = float(value)
  if type(value) is not type(default):
    raise ValueError(
      f'config argument {key}={text} must be of type {type(default).__name__}'
    )
  return value
