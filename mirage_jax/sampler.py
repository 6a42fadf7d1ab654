"""Euler integration of the flow with guidance by each condition.

Guidance is v + sum over conditions k of (w_k - 1) * (v - v_without_k), with v
of all conditions: weight 1 leaves k alone and costs nothing, and with a single
condition it is classifier-free guidance, v_u + w * (v - v_u).

`apply` is any callable (video, sigma, cond) -> velocity.
"""

from collections.abc import Callable, Mapping
import dataclasses

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

Apply = Callable[[Array, Array, Mapping[str, Array]], Array]
Step = Callable[[Array, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Guidance:
  """Guidance weight of each condition; 1 is plain conditioning, 0 is none."""

  audio: float = 1.0
  text: float = 1.0
  reference: float = 1.0

  def active(self, cond: Mapping[str, Array]) -> dict[str, float]:
    """Weights that change anything: other than 1, and the condition present."""
    weights = dataclasses.asdict(self)
    return {k: w for k, w in weights.items() if w != 1.0 and k in cond}


def guided(apply: Apply, guidance: Guidance) -> Apply:
  """Wraps `apply` with guidance; all branches run as one batch."""

  def wrapped(video, sigma, cond):
    weights = guidance.active(cond)
    if not weights:
      return apply(video, sigma, cond)
    branches = 1 + len(weights)
    velocities = apply(
      jnp.concatenate([video] * branches),
      jnp.concatenate([sigma] * branches),
      _branch_cond(cond, tuple(weights), video.shape[0]),
    )
    full, *without = jnp.split(velocities, branches)
    result = full
    for weight, other in zip(weights.values(), without, strict=True):
      result = result + (weight - 1) * (full - other)
    return result

  return wrapped


def _branch_cond(cond, dropped, batch):
  """Stacks cond, then cond without each of `dropped`, along the batch."""
  cond, result = dict(cond), {}
  if jnp.ndim(cond.get('video_start', 0)) == 0 and 'video_start' in cond:
    cond['video_start'] = jnp.broadcast_to(cond['video_start'], (batch,))
  for name in dropped:
    if f'{name}_mask' not in cond:
      cond[f'{name}_mask'] = jnp.ones(cond[name].shape[:2], bool)
  for key, value in cond.items():
    parts = [value] + [
      jnp.zeros_like(value) if key == f'{name}_mask' else value
      for name in dropped
    ]
    result[key] = jnp.concatenate(parts)
  return result


def make_step(
  apply: Apply,
  cond: Mapping[str, Array],
  noise: Float[Array, 'B F Y X C'],
  guidance: Guidance = Guidance(),
  known: Float[Array, 'B F Y X C'] | None = None,
  known_mask: Bool[Array, 'B F'] | None = None,
) -> Step:
  """Makes one Euler step: step(x, sigma, next_sigma) -> x.

  Jit it to drive the loop from Python, as for a progress bar. Start from
  x = noise at the first sigma 1.

  Args:
    apply: The network with its parameters bound.
    cond: Conditions, see `dit.Mirage`.
    noise: The noise that x started from.
    guidance: Weights.
    known: Clean latents to keep, as of the window before.
    known_mask: Which frames of `known` are kept. They follow their own path,
      (1 - sigma) * known + sigma * noise, and end as they are.

  Raises:
    ValueError: Only one of known and known_mask is given.
  """
  if (known is None) != (known_mask is None):
    raise ValueError('known and known_mask must be given together.')
  velocity = guided(apply, guidance)

  def keep(x, sigma):
    if known is None:
      return x
    path = (1 - sigma) * known + sigma * noise
    return jnp.where(known_mask[:, :, None, None, None], path, x)

  def step(x, sigma, next_sigma):
    x = keep(x, sigma)
    v = velocity(x, jnp.full(x.shape[:1], sigma, jnp.float32), cond)
    return keep(x + v * (sigma - next_sigma), next_sigma)

  return step


def sample(
  apply: Apply,
  cond: Mapping[str, Array],
  noise: Float[Array, 'B F Y X C'],
  sigmas: Float[Array, 'K'],
  guidance: Guidance = Guidance(),
  known: Float[Array, 'B F Y X C'] | None = None,
  known_mask: Bool[Array, 'B F'] | None = None,
) -> Float[Array, 'B F Y X C']:
  """Integrates from noise to data along descending sigmas, 1 to 0.

  A `lax.scan` over `make_step`, whose arguments these are; jit it whole.
  """
  step = make_step(apply, cond, noise, guidance, known, known_mask)
  sigmas = jnp.asarray(sigmas, jnp.float32)

  def body(x, pair):
    return step(x, *pair), None

  x, _ = jax.lax.scan(body, noise, (sigmas[:-1], sigmas[1:]))
  return x
