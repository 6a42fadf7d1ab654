"""Guidance: the velocity of all conditions, pushed away from weaker ones.

  v + (audio - 1)     * (v - v without the sound)
    + (text - 1)      * (v - v without the text)
    + (reference - 1) * (v - v without the reference image)
    + (joint - 1)     * (v - v without any of them)
    + skip            * (v - v of the network without some of its blocks)

Weight 1 (for skip 0) leaves a term out, and then it costs nothing. With one
condition alone it is classifier-free guidance, v_u + w * (v - v_u) (Ho and
Salimans, arXiv 2207.12598). A negative text stands where a text would be left
out, as in Mochi 1. Skip guidance is spatiotemporal skip guidance with whole
blocks left out, STG-R (Hyung et al., arXiv 2411.18664).
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from mirage_jax.schedules import CONSTANT, Cosine, Schedule, Window

CONDITIONS = ('audio', 'text', 'reference')
# The least and the greatest value of each number of a Guidance.
LIMITS = dict.fromkeys((*CONDITIONS, 'joint'), (0.0, 30.0))
LIMITS |= {'skip': (0.0, 10.0), 'rescale': (0.0, 1.0)}
NEUTRAL = dict.fromkeys((*CONDITIONS, 'joint'), 1.0) | {'skip': 0.0}


class Apply(Protocol):
  """The network with its parameters bound.

  `skip_blocks` is only ever given for skip guidance. What else caching needs
  of it, see `cache.Network`.
  """

  def __call__(
    self,
    video: Array,
    sigma: Array,
    cond: Mapping[str, Array],
    *,
    skip_blocks: tuple[int, ...] = (),
  ) -> Array: ...


@dataclasses.dataclass(frozen=True)
class Weight:
  """A weight that changes from step to step."""

  value: float
  schedule: Schedule = CONSTANT


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Guidance:
  """How strongly each condition counts; every weight may have a schedule.

  To JAX it is a tree: how much each term counts is traced, which terms there
  are, and all else, is not. So a jitted function that takes one is compiled once
  for all weights that are not neutral.

  Attributes:
    audio: Weight of the sound, 0 to 30; 1 is plain conditioning, 0 is none.
    text: Of the text, likewise.
    reference: Of the reference image, likewise.
    joint: Of all three at once, likewise.
    skip: Scale of skip guidance, 0 (none) to 10.
    skip_blocks: Which blocks it leaves out, counted from 0; of Mochi's 48, 34
      is usual.
    rescale: 0 to 1: how far each sample's standard deviation goes back to that
      of the unguided velocity, against too much contrast (Lin et al., arXiv
      2305.08891, section 3.4; STG's own rescaling is the same). 0.7 is usual.
    sequential: Run the branches one after the other instead of as one batch:
      less memory, the same velocities but for rounding.

  Raises:
    ValueError: A number lies outside, or skip and skip_blocks do not fit.
  """

  audio: float | Weight = 1.0
  text: float | Weight = 1.0
  reference: float | Weight = 1.0
  joint: float | Weight = 1.0
  skip: float | Weight = 0.0
  skip_blocks: tuple[int, ...] = ()
  rescale: float = 0.0
  sequential: bool = False
  # Inside of a transformation, what stands for the numbers that count.
  _traced: Mapping[str, Any] | None = dataclasses.field(
    default=None, init=False, repr=False, compare=False
  )

  def __post_init__(self):
    for name, (low, high) in LIMITS.items():
      value = self.weight(name).value
      if not low <= value <= high:
        raise ValueError(
          f'{name} must lie in {low:g} to {high:g}, got {value:g}.'
        )
    if bool(self.weight('skip').value) != bool(self.skip_blocks):
      raise ValueError('skip and skip_blocks must be given together.')

  def weight(self, name: str) -> Weight:
    """The weight of that name, a plain number as a constant one."""
    value = getattr(self, name)
    return value if isinstance(value, Weight) else Weight(value)

  @property
  def gains(self) -> Mapping[str, Any]:
    """By how much each weight that counts differs from a neutral one.

    With `rescale`, if that is not 0.
    """
    if self._traced is not None:
      return self._traced
    weights = {name: self.weight(name).value for name in NEUTRAL}
    gains = {
      name: value - NEUTRAL[name]
      for name, value in weights.items()
      if value != NEUTRAL[name]
    }
    return gains | ({'rescale': self.rescale} if self.rescale else {})

  def tree_flatten(self) -> tuple[tuple[Any, ...], tuple['Guidance', tuple]]:
    """The gains; what stays the same whatever they are, and their names."""
    gains = self.gains
    same = {}
    for name in gains:  # Any number that counts stands for all.
      same[name] = 1.0
      if name != 'rescale':
        schedule = self.weight(name).schedule
        same[name] = Weight(NEUTRAL[name] + 1.0, schedule)
    return tuple(gains.values()), (
      dataclasses.replace(self, **same),
      tuple(gains),
    )

  @classmethod
  def tree_unflatten(
    cls, same: tuple['Guidance', tuple], gains: Sequence[Any]
  ) -> 'Guidance':
    """One whose gains are these, whatever they are."""
    guidance, names = same
    made = dataclasses.replace(guidance)
    object.__setattr__(made, '_traced', dict(zip(names, gains, strict=True)))
    return made

  @property
  def counts_steps(self) -> bool:
    """Whether a schedule needs to know how far sampling is."""
    return any(isinstance(self.weight(n).schedule, Cosine) for n in NEUTRAL)

  def active(self, cond: Mapping[str, Array]) -> list['Term']:
    """The terms that change anything and whose condition is present."""
    present = tuple(name for name in CONDITIONS if name in cond)
    left_out = {name: (name,) for name in present} | {'skip': ()}
    if present:
      left_out['joint'] = present
    terms = []
    for name, neutral in NEUTRAL.items():
      weight = self.weight(name)
      if name in left_out and weight.value != neutral:
        gain = self.gains[name]
        terms.append(Term(name, left_out[name], gain, weight.schedule))
    return terms


class Term(NamedTuple):
  """One line of the sum: gain * schedule * (v - v of a weaker branch)."""

  name: str
  left_out: tuple[str, ...]
  gain: float
  schedule: Schedule


def guided(
  apply: Apply,
  guidance: Guidance,
  sigmas: Float[Array, 'K'] | None = None,
) -> Callable[[Array, Array, Mapping[str, Array]], Array]:
  """Wraps `apply` with guidance.

  Branches that lack conditions run with the full one as a single batch, or
  after each other if `guidance.sequential`. That of skip guidance is always a
  call of its own, as other blocks run in it.

  Args:
    apply: The network.
    guidance: Weights.
    sigmas: The whole descending table; only schedules over steps need it. Zeros
      after the first one are no steps: tables may be filled up to one length.

  Returns:
    (video, sigma [B], cond) -> velocity. `cond` is that of `apply`, and may
    have negative_text with negative_text_mask, shaped as text and text_mask.

  Raises:
    ValueError: A schedule needs `sigmas`; when called: a negative text has no
      text to stand for or no weight, or skip guidance is asked of an `apply`
      that has no skip_blocks.
  """
  if guidance.counts_steps and sigmas is None:
    raise ValueError('a cosine schedule counts steps: sigmas must be given.')

  def wrapped(video, sigma, cond):
    plan = prepare(guidance, cond, len(video))
    if not plan.terms:
      return apply(video, sigma, plan.cond)
    gains = weigh(guidance, plan.terms, sigma, sigmas)

    def everything():
      full, others = branches(apply, guidance, plan, video, sigma)
      differences = [full - other for other in others]
      return combine(full, differences, gains, guidance)

    if not all(isinstance(term.schedule, Window) for term in plan.terms):
      return everything()
    inside = jnp.any(jnp.stack(gains) != 0)
    return jax.lax.cond(
      inside, everything, lambda: apply(video, sigma, plan.cond)
    )

  return wrapped


class Branches(NamedTuple):
  """What is to be run.

  Attributes:
    cond: The conditions without what stands for a left-out text.
    terms: The terms that count; skip guidance's is the last one.
    conds: `cond`, then the variant of each other term, all with equal keys.
  """

  cond: dict[str, Array]
  terms: list[Term]
  conds: list[dict[str, Array]]


def prepare(
  guidance: Guidance, cond: Mapping[str, Array], batch: int
) -> Branches:
  """The terms that count and their conditions; ValueError as in `guided`."""
  cond, negative = _split_negative(cond)
  terms = guidance.active(cond)
  if negative and not any('text' in term.left_out for term in terms):
    raise ValueError(
      'negative_text stands where guidance leaves text out: it needs text '
      'in cond, and a weight of text or joint other than 1.'
    )
  left_out = [term.left_out for term in terms if term.left_out]
  if not left_out:
    return Branches(cond, terms, [cond])
  return Branches(cond, terms, _variants(cond, negative, left_out, batch))


def branches(
  apply: Apply, guidance: Guidance, plan: Branches, video: Array, sigma: Array
) -> tuple[Array, list[Array]]:
  """The velocity of all conditions, and that of each term."""
  full, *rest = _run(apply, guidance, plan.conds, video, sigma)
  return full, rest + _skipped(apply, guidance, plan, video, sigma)


def others(
  apply: Apply, guidance: Guidance, plan: Branches, video: Array, sigma: Array
) -> list[Array]:
  """The velocity of each term alone."""
  rest = _run(apply, guidance, plan.conds[1:], video, sigma)
  return rest + _skipped(apply, guidance, plan, video, sigma)


def _split_negative(cond):
  """`cond` without the negative text, and that under the text's names."""
  negative = {}
  for key in ('text', 'text_mask'):
    if f'negative_{key}' in cond:
      negative[key] = cond[f'negative_{key}']
  rest = {k: v for k, v in cond.items() if not k.startswith('negative_')}
  return rest, negative


def _run(apply, guidance, conds, video, sigma):
  """The velocity under each of `conds`."""
  if len(conds) < 2:
    return [apply(video, sigma, cond) for cond in conds]
  if guidance.sequential:
    stacked = {k: jnp.stack([c[k] for c in conds]) for k in conds[0]}
    run = lambda variant: apply(video, sigma, variant)
    return list(jax.lax.map(run, stacked))
  velocities = apply(
    jnp.concatenate([video] * len(conds)),
    jnp.concatenate([sigma] * len(conds)),
    {k: jnp.concatenate([c[k] for c in conds]) for k in conds[0]},
  )
  return jnp.split(velocities, len(conds))


def _variants(cond, negative, left_out, batch):
  """`cond`, then one without each of `left_out`; all have the same keys."""
  cond = dict(cond)
  if 'video_start' in cond:
    cond['video_start'] = jnp.broadcast_to(cond['video_start'], (batch,))
  for name in {name for names in left_out for name in names}:
    if f'{name}_mask' not in cond:
      cond[f'{name}_mask'] = jnp.ones(cond[name].shape[:2], bool)
  if negative:
    negative = {'text_mask': jnp.ones_like(cond['text_mask'])} | negative
    for key, value in negative.items():
      if value.shape != cond[key].shape:
        raise ValueError(
          f'negative_{key} has the shape {value.shape}, {key} '
          f'{cond[key].shape}: they must be the same.'
        )
  conds = [cond]
  for names in left_out:
    variant = dict(cond)
    for name in names:
      variant[f'{name}_mask'] = jnp.zeros_like(cond[f'{name}_mask'])
    if 'text' in names:
      variant |= negative
    conds.append(variant)
  return conds


def _skipped(apply, guidance, plan, video, sigma):
  """The velocity without some blocks, if skip guidance wants it."""
  blocks = guidance.skip_blocks
  if not blocks:
    return []
  try:
    return [apply(video, sigma, plan.cond, skip_blocks=blocks)]
  except TypeError as error:
    if 'skip_blocks' not in str(error):
      raise
    raise ValueError(
      'skip guidance needs an apply(video, sigma, cond, skip_blocks=...); '
      'bind the parameters with `skip.without_blocks`, or set skip to 0.'
    ) from error


def weigh(
  guidance: Guidance,
  terms: Sequence[Term],
  sigma: Float[Array, 'B'],
  sigmas: Float[Array, 'K'] | None,
) -> list[Float[Array, 'B']]:
  """What each term is multiplied with, per sample; `sigmas` as in `guided`."""
  progress = None
  if guidance.counts_steps:
    steps = jnp.sum(sigmas > 0)
    done = jnp.minimum(jnp.arange(len(sigmas), dtype=sigma.dtype) / steps, 1)
    progress = jnp.interp(sigma, jnp.flip(sigmas), jnp.flip(done))
  return [term.gain * term.schedule(sigma, progress) for term in terms]


def combine(
  full: Float[Array, 'B *n'],
  differences: Sequence[Float[Array, 'B *n']],
  gains: Sequence[Float[Array, 'B']],
  guidance: Guidance,
) -> Float[Array, 'B *n']:
  """The guided velocity from that of all conditions and how far others lie."""
  total = full
  for gain, difference in zip(gains, differences, strict=True):
    gain = gain.reshape(-1, *(1,) * (full.ndim - 1))
    total = total + gain * difference
  if not guidance.rescale:
    return total
  deviation = lambda v: jnp.std(v, axis=range(1, v.ndim), keepdims=True)
  least = jnp.finfo(total.dtype).tiny
  back = deviation(full) / jnp.maximum(deviation(total), least)
  return total * (1 + guidance.gains['rescale'] * (back - 1))
