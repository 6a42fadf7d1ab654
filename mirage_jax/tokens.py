"""Latents and features <-> one sequence of tokens: patches, masks, joins.

The joint sequence is [reference, video, text, audio]; absent parts have no
tokens. Attention does not see order, only positions (`rope`) and masks.
"""

from collections.abc import Iterable, Mapping, Sequence

from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

STREAMS = ('video', 'text', 'audio')
CONDITIONS = ('reference', 'text', 'audio')

COND_KEYS = CONDITIONS + (
  'reference_mask',
  'reference_time',
  'text_mask',
  'audio_mask',
  'video_start',
)
# What is told of a condition beside its tokens.
_SUFFIXES = ('_mask', '_time', '_share', '_start')


def ordered(names: Iterable[str]) -> list[str]:
  """Names of streams in the joint sequence's order, further ones last."""
  names = set(names)
  known = [name for name in STREAMS if name in names]
  return known + sorted(names.difference(STREAMS))


def conditions(cond: Mapping[str, Array]) -> list[str]:
  """The conditions that have tokens, further streams last."""
  names = {n for n in cond if n != 'video' and not n.endswith(_SUFFIXES)}
  known = [name for name in CONDITIONS if name in names]
  return known + sorted(names.difference(CONDITIONS))


def hidden(
  cond: Mapping[str, Array], name: str, keep: Bool[Array, 'B']
) -> Bool[Array, 'B _']:
  """The mask of a condition that only the samples in `keep` still see."""
  mask = cond.get(f'{name}_mask')
  if mask is None:
    mask = jnp.ones(cond[name].shape[:2], bool)
  return mask & keep[:, None]


def patchify(
  latents: Float[Array, 'B F Y X C'], size: int
) -> Float[Array, 'B T P']:
  """Cuts every latent frame into size x size patches, row by row.

  A patch's values are in (row, column, channel) order. With the Linear that
  follows, this is Mochi's strided 2-D convolution.

  Raises:
    ValueError: Rows or columns are no multiple of `size`.
  """
  b, f, y, x, c = latents.shape
  if y % size or x % size:
    raise ValueError(
      f'latents of {y} x {x} cannot be cut into patches of {size} x {size}.'
    )
  patches = latents.reshape(b, f, y // size, size, x // size, size, c)
  patches = patches.transpose(0, 1, 2, 4, 3, 5, 6)
  return patches.reshape(b, -1, size * size * c)


def unpatchify(
  patches: Float[Array, 'B T P'], shape: Sequence[int], size: int
) -> Float[Array, 'B F Y X C']:
  """The inverse of `patchify`, for latents of `shape` (B, F, Y, X, C)."""
  b, f, y, x, c = shape
  latents = patches.reshape(b, f, y // size, x // size, size, size, c)
  return latents.transpose(0, 1, 2, 4, 3, 5, 6).reshape(tuple(shape))


def check_cond(cond: Mapping[str, Array], extra: Sequence[str] = ()):
  """Raises ValueError for a key that no model reads, or one that lacks.

  Args:
    cond: The conditions.
    extra: Names of the model's further streams.
  """
  known = COND_KEYS + tuple(f'{n}{end}' for n in extra for end in ('', '_mask'))
  shares = [f'{name}_share' for name in (*STREAMS[1:], *extra)]
  for key in cond:
    if key not in known and key not in shares:
      raise ValueError(f'unknown condition {key!r}; known: {known}.')
  for name in (*CONDITIONS, *extra):
    if f'{name}_mask' in cond and name not in cond:
      raise ValueError(f'{name}_mask is given without {name}.')
  if 'reference' in cond and 'reference_time' not in cond:
    raise ValueError(
      'reference is given without reference_time [B R], its latent times.'
    )


def key_mask(
  parts: Sequence[tuple[int, Bool[Array, 'B _'] | None]], batch: int
) -> Bool[Array, 'B S'] | None:
  """Joins the masks of the parts of a sequence.

  Args:
    parts: Length and mask of each part, in order; None masks nothing.
    batch: B.

  Returns:
    True for tokens that may be attended to, or None if that is all of them.
  """
  if all(mask is None for _, mask in parts):
    return None
  full = [
    jnp.ones((batch, length), bool) if mask is None else mask.astype(bool)
    for length, mask in parts
  ]
  return jnp.concatenate(full, axis=1)


def join(parts: Sequence[Array]) -> Array:
  """Concatenates along the token axis; one part is returned as it is."""
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def split(tokens: Array, lengths: Sequence[int]) -> list[Array]:
  """Cuts the token axis into parts of the given lengths."""
  if len(lengths) == 1:
    return [tokens]
  ends = [sum(lengths[:i]) for i in range(1, len(lengths))]
  return jnp.split(tokens, ends, axis=1)
