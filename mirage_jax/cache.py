"""Step caching: what hardly changes from step to step is used again.

In the manner of FasterCache (Lv et al., arXiv 2410.19355), of three kinds:

- how far the branches of guidance lie from the velocity of all conditions, and
  how that changes with the noise level. In a step that uses it again, only the
  conditional branch runs.
- what attention gave every stream in every block of the conditional branch. In
  a step that uses it again, no queries, keys, values and scores are computed.
- what all blocks before the last changed in every stream of that branch. In a
  step that uses it again, the last block alone runs, on what noise is left.

Which steps compute what is decided before sampling, step by step, so that one
compiled loop runs any plan. All are plain arrays in the solver's state.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple, Protocol

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

from mirage_jax import guidance as guidance_lib, skip
from mirage_jax.block import CACHE
from mirage_jax.guidance import Guidance
from mirage_jax.schedules import Window

NAMES = 'guidance', 'attention', 'blocks', 'last'


@dataclasses.dataclass(frozen=True)
class Caching:
  """How long things are used again; 1 is never.

  Attributes:
    guidance: The branches of guidance run at every so many steps.
    attention: Attention runs at every so many steps, and wherever the branches
      do: what it makes wrong must not be taken for a difference. Under guidance
      it saves nothing unless `guidance` is greater.
    blocks: So do the blocks before the last.
    last: So many steps at the end compute everything. They are the longest.

  Raises:
    ValueError: A number is too small.
  """

  guidance: int = 1
  attention: int = 1
  blocks: int = 1
  last: int = 0

  def __post_init__(self):
    for name in NAMES:
      least = 0 if name == 'last' else 1
      if getattr(self, name) < least:
        raise ValueError(
          f'{name} of caching must be at least {least}, got '
          f'{getattr(self, name)}.'
        )

  def __bool__(self) -> bool:
    return max(self.guidance, self.attention, self.blocks) > 1


# How much of the last change of a difference is taken to go on. Over 64 steps
# all of it was best where 4 steps share one, a half where 8 do.
TREND = 0.75
OFF, FAST = Caching(), Caching(guidance=6, blocks=3)
PRESETS = {'none': OFF, 'fast': FAST}


class Kept(NamedTuple):
  """Parts of a network's cache; () where nothing is used again."""

  attended: Any
  change: Any


class Network(Protocol):
  """The `guidance.Apply` that caching of its own parts needs; see `Bound`."""

  def keep(
    self, video: Array, sigma: Array, cond: Mapping[str, Array]
  ) -> tuple[Array, Kept]: ...

  def reuse(
    self, video: Array, sigma: Array, cond: Mapping[str, Array], part: Any
  ) -> Array: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Bound:
  """A `dit.Mirage` with its parameters: what samplers take as `apply`."""

  model: nn.Module
  params: Any

  def __call__(
    self,
    video: Float[Array, 'B F Y X C'],
    sigma: Float[Array, 'B'],
    cond: Mapping[str, Array],
    *,
    skip_blocks: tuple[int, ...] = (),
  ) -> Float[Array, 'B F Y X C']:
    """The velocity, without some blocks if so wanted."""
    params = self.params
    if skip_blocks:
      params = skip.without_blocks(params, skip_blocks)
    return self.model.apply({'params': params}, video, sigma, cond)

  def keep(
    self,
    video: Float[Array, 'B F Y X C'],
    sigma: Float[Array, 'B'],
    cond: Mapping[str, Array],
  ) -> tuple[Float[Array, 'B F Y X C'], Kept]:
    """The velocity, and what can be used again."""
    velocity, state = self.model.apply(
      {'params': self.params}, video, sigma, cond, mutable=[CACHE]
    )
    attended = dict(state[CACHE])
    change = {k: attended.pop(k) for k in ('change',) if k in attended}
    return velocity, Kept(attended, change)

  def reuse(
    self,
    video: Float[Array, 'B F Y X C'],
    sigma: Float[Array, 'B'],
    cond: Mapping[str, Array],
    part: Any,
  ) -> Float[Array, 'B F Y X C']:
    """The velocity, with a part of what was kept before."""
    variables = {'params': self.params, CACHE: part}
    return self.model.apply(variables, video, sigma, cond)


class Memory(NamedTuple):
  """What is used again.

  Attributes:
    differences: Of each term of guidance, the velocity of all conditions less
      that of its branch [B F Y X C].
    slopes: How they changed, per unit of sigma [B F Y X C].
    sigma: Where they were computed [B]; infinite for never.
    kept: What the network kept.
  """

  differences: tuple[Array, ...]
  slopes: tuple[Array, ...]
  sigma: Float[Array, 'B']
  kept: Kept


class Fresh(NamedTuple):
  """What is computed, of one step [] or of all [K - 1]."""

  guidance: Bool[Array, '...']
  attention: Bool[Array, '...']
  blocks: Bool[Array, '...']


def plan(
  caching: Caching, sigmas: Sequence[float], guidance: Guidance
) -> Fresh:
  """What each step computes; numpy, so that it may stand beside the sigmas.

  Where no weight counts, outside of all windows, branches need not run.
  """
  sigmas = np.asarray(sigmas, np.float32)[:-1]
  fresh = np.zeros((3, len(sigmas)), bool)
  # Steps since the branches, attention and the blocks ran.
  ages = [np.inf] * 3
  for step, counts in enumerate(_counting(guidance, sigmas)):
    late = step >= len(sigmas) - caching.last
    branches = counts and (late or ages[0] >= caching.guidance)
    whole = branches or late
    blocks = whole or ages[2] >= caching.blocks
    attention = blocks and (whole or ages[1] >= caching.attention)
    fresh[:, step] = branches, attention, blocks
    # Across a gap of a window no difference is used again.
    ages[0] = (1 if branches else ages[0] + 1) if counts else np.inf
    ages[1] = 1 if attention else ages[1] + 1
    ages[2] = 1 if blocks else ages[2] + 1
  return Fresh(*fresh)


def _counting(guidance, sigmas):
  """Whether any weight counts, per step."""
  counting = np.zeros(len(sigmas), bool)
  for name, neutral in guidance_lib.NEUTRAL.items():
    weight = guidance.weight(name)
    if weight.value != neutral:
      windowed = isinstance(weight.schedule, Window)
      counting |= weight.schedule(sigmas, None) > 0 if windowed else True
  return counting


def cached(
  apply: Network,
  guidance: Guidance,
  caching: Caching,
  sigmas: Float[Array, 'K'] | None = None,
) -> Callable[
  [Array, Array, Mapping[str, Array], Memory, Fresh], tuple[Array, Memory]
]:
  """`guidance.guided` that remembers.

  Args:
    apply: The network; `Bound`, to use parts of it again.
    guidance: Weights.
    caching: What is used again at all; which step does so is told by the step.
    sigmas: As for `guided`.

  Returns:
    (video, sigma [B], cond, memory, fresh) -> (velocity, memory). `fresh` has
    two booleans, traced or not; with both true it is the velocity of `guided`
    but for rounding.
  """
  if guidance.counts_steps and sigmas is None:
    raise ValueError('a cosine schedule counts steps: sigmas must be given.')

  def wrapped(video, sigma, cond, memory, fresh):
    branches = guidance_lib.prepare(guidance, cond, len(video))
    cond = branches.conds[0]
    full, kept = _run(apply, caching, (video, sigma, cond), memory.kept, fresh)
    memory = memory._replace(kept=kept)
    if not branches.terms:
      return full, memory

    def look():
      others = guidance_lib.others(apply, guidance, branches, video, sigma)
      return _remember(memory, [full - other for other in others], sigma)

    memory = _either(fresh.guidance, look, lambda: memory)
    found = _recall(memory, sigma)
    gains = guidance_lib.weigh(guidance, branches.terms, sigma, sigmas)
    total = guidance_lib.combine(full, found, gains, guidance)
    return total, memory

  return wrapped


def _run(apply, caching, inputs, kept, fresh):
  """The velocity of one branch and what is kept then, with what was before."""
  whole = lambda: _whole(apply, caching, inputs)
  again = lambda part: lambda: (apply.reuse(*inputs, part), kept)

  def blocks():
    if caching.attention == 1:
      return whole()
    return _either(fresh.attention, whole, again(kept.attended))

  if caching.blocks == 1:
    return blocks()
  return _either(fresh.blocks, blocks, again(kept.change))


def _either(choice, yes, no):
  """`jax.lax.cond`, but no program at all for what is known not to run."""
  if isinstance(choice, bool):
    return yes() if choice else no()
  return jax.lax.cond(choice, yes, no)


def _whole(apply, caching, inputs):
  """The velocity and, of what can be used again, what will be."""
  if caching.attention == caching.blocks == 1:
    return apply(*inputs), Kept((), ())
  velocity, (attended, change) = apply.keep(*inputs)
  return velocity, Kept(
    attended if caching.attention > 1 else (),
    change if caching.blocks > 1 else (),
  )


def _remember(memory, differences, sigma):
  """The memory after a step that ran all branches."""
  since = sigma - memory.sigma
  # No slope after the first time, which is infinitely far, nor in one place.
  since = _wide(jnp.where(since == 0, jnp.inf, since), differences[0])
  slopes = [
    (new - old) / since
    for new, old in zip(differences, memory.differences, strict=True)
  ]
  return memory._replace(
    differences=tuple(differences), slopes=tuple(slopes), sigma=sigma
  )


def _recall(memory, sigma):
  """The differences at sigma [B]; those just computed as they are."""
  ahead = sigma - memory.sigma
  # Before a window nothing is known, and no weight counts.
  ahead = TREND * jnp.where(jnp.isinf(ahead), 0, ahead)
  return [
    difference + _wide(ahead, slope) * slope
    for difference, slope in zip(memory.differences, memory.slopes, strict=True)
  ]


def _wide(x, like):
  """[B] -> [B 1 1 1 1]."""
  return x.reshape(-1, *(1,) * (like.ndim - 1))


def empty(
  apply: Network,
  guidance: Guidance,
  caching: Caching,
  video: Float[Array, 'B F Y X C'],
  cond: Mapping[str, Array],
) -> Memory:
  """A memory of zeros, for a first step that computes everything."""
  branches = guidance_lib.prepare(guidance, cond, len(video))
  sigma = jnp.ones(len(video), video.dtype)
  inputs = video, sigma, branches.conds[0]
  shapes = jax.eval_shape(lambda: _whole(apply, caching, inputs))
  velocity, kept = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  zeros = (velocity,) * len(branches.terms)
  return Memory(zeros, zeros, jnp.full_like(sigma, jnp.inf), kept)


def parse(text: str) -> Caching:
  """Reads 'none', 'fast', or numbers of `Caching` as 'guidance:6,blocks:3'.

  Raises:
    ValueError: It is none of them.
  """
  if text in PRESETS:
    return PRESETS[text]
  numbers = {}
  for part in text.split(','):
    name, _, number = part.partition(':')
    if name not in NAMES or not number.isdecimal():
      raise ValueError(
        f'{text!r} is no caching; give {", ".join(PRESETS)}, or how many steps '
        'each thing serves, as guidance:6,blocks:3 or attention:2, and last:8 to '
        'spare the last 8 steps.'
      )
    numbers[name] = int(number)
  return Caching(**numbers)
