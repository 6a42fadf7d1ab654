"""How a weight changes while sampling goes from sigma 1 to 0.

A schedule is a callable (sigma, progress) -> the share of the weight, 0 to 1,
that counts there. Progress is the share of the steps that are done.
"""

import dataclasses

from jax import numpy as jnp
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Constant:
  """The same weight at every step."""

  def __call__(self, sigma: Array, progress: Array | None) -> Array:
    return jnp.ones_like(sigma)


@dataclasses.dataclass(frozen=True)
class Cosine:
  """Half a cosine over the steps: the whole weight first, none at the end."""

  def __call__(self, sigma: Array, progress: Array | None) -> Array:
    return (1 + jnp.cos(jnp.pi * progress)) / 2


@dataclasses.dataclass(frozen=True)
class Window:
  """The whole weight while high >= sigma >= low, none outside.

  Guidance of the middle noise levels alone keeps variety (Kynkäänniemi et al.,
  arXiv 2404.07724); steps outside cost one branch.
  """

  high: float
  low: float

  def __post_init__(self):
    if not 1 >= self.high > self.low >= 0:
      raise ValueError(
        'a window lies between noise levels 1 >= HIGH > LOW >= 0, got '
        f'{self.high:g} and {self.low:g}.'
      )

  def __call__(self, sigma: Array, progress: Array | None) -> Array:
    return ((sigma <= self.high) & (sigma >= self.low)).astype(sigma.dtype)


Schedule = Constant | Cosine | Window
CONSTANT = Constant()


def parse(text: str) -> Schedule:
  """Reads 'constant', 'cosine' or 'window:HIGH:LOW'.

  Raises:
    ValueError: It is none of them, or the noise levels are none.
  """
  name, *numbers = text.split(':')
  try:
    levels = [float(number) for number in numbers]
  except ValueError:
    levels = []
  if text in ('constant', 'cosine'):
    return Constant() if text == 'constant' else Cosine()
  if name == 'window' and len(levels) == 2:
    return Window(*levels)
  raise ValueError(
    f'{text!r} is no schedule; give constant, cosine, or window:HIGH:LOW with '
    'two noise levels, as window:0.95:0.3.'
  )
