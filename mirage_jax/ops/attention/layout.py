"""Where the tokens, heads and samples of attention lie on a mesh."""

from collections.abc import Mapping, Sequence
import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where a sequence lies on a mesh, and how its parts meet.

  Attributes:
    batch: Mesh axes of samples.
    heads: Mesh axes of heads.
    tokens: Mesh axis of tokens, '' if they are not split.
    ring: Devices in a ring.
    ulysses: Devices that trade tokens for heads; with `ring` the axis's size.
    samples: How many parts the batch has.
    tensor: How many parts the heads have.
  """

  batch: tuple[str, ...]
  heads: tuple[str, ...]
  tokens: str
  ring: int
  ulysses: int
  samples: int
  tensor: int

  @classmethod
  def of(
    cls,
    sizes: Mapping[str, int],
    axes: Sequence[Sequence[str]],
    way: str,
    ring: int,
  ) -> 'Layout':
    """From a mesh.

    Args:
      sizes: Mesh axis -> devices.
      axes: Of samples, tokens and heads; at most one is of tokens.
      way: 'ulysses', 'ring' or 'both'.
      ring: Devices in a ring, for 'both' on more than one device.

    Raises:
      ValueError: `ring` does not divide the axis.
    """
    batch, tokens, heads = map(tuple, axes)
    count = lambda names: math.prod(sizes[name] for name in names)
    size = count(tokens)
    wanted = {'ulysses': 1, 'ring': size, 'both': ring}[way]
    ring = wanted if size > 1 else 1
    if size % ring:
      near = ', '.join(map(str, _divisors(size)))
      raise ValueError(
        f'model.ring={ring} does not divide the {size} devices of mesh axis '
        f'{tokens[0]!r}; {near} do.'
      )
    return cls(
      batch,
      heads,
      *(tokens or ('',)),
      ring=ring,
      ulysses=size // ring,
      samples=count(batch),
      tensor=count(heads),
    )

  @property
  def size(self) -> int:
    """Devices on the axis of tokens."""
    return self.ring * self.ulysses

  def check(self, shape: Sequence[int], keys: int | None) -> None:
    """Raises ValueError if the mesh does not divide B T H D, or the keys."""
    batch, tokens, heads, _ = shape
    if batch % self.samples:
      raise ValueError(
        f'mesh axes {self.batch} of {self.samples} devices do not divide a '
        f'batch of {batch}; make it a multiple.'
      )
    for count in {tokens, keys or tokens}:
      if count % self.size:
        near = [n for n in range(1, 2 * self.size + 1) if count % n == 0]
        raise ValueError(
          f'mesh axis {self.tokens!r} of {self.size} devices does not divide '
          f'{count} tokens; {", ".join(map(str, near))} do.'
        )
    if heads % self.tensor:
      near = ', '.join(map(str, _divisors(heads)))
      raise ValueError(
        f'mesh axes {self.heads} of {self.tensor} devices do not divide '
        f'{heads} heads; {near} do.'
      )
    local = heads // self.tensor
    if keys is not None and local % self.ulysses:
      most = math.gcd(local, self.size)
      fits = f"model.context='both' with model.ring={self.size // most}"
      raise ValueError(
        f"model.context='ulysses' on {self.ulysses} devices of mesh axis "
        f'{self.tokens!r} does not divide the {local} heads of a device; '
        f"{'' if most == 1 else fits + ' or '}model.context='ring' would fit."
      )


def _divisors(n):
  return [d for d in range(1, n + 1) if n % d == 0]
