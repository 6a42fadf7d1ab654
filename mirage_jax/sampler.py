"""Draws from the flow: a solver's steps under guidance, known frames kept."""

from collections.abc import Callable, Mapping

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from mirage_jax import solvers
from mirage_jax.guidance import Apply, Guidance, guided

Step = Callable[[solvers.State, Array, Array], solvers.State]
UNGUIDED = Guidance()


def make_step(
  apply: Apply,
  cond: Mapping[str, Array],
  noise: Float[Array, 'B F Y X C'],
  guidance: Guidance = UNGUIDED,
  known: Float[Array, 'B F Y X C'] | None = None,
  known_mask: Bool[Array, 'B F'] | None = None,
  solver: str = 'euler',
  sigmas: Float[Array, 'K'] | None = None,
) -> Step:
  """Makes one step of a solver: step(state, sigma, next_sigma) -> state.

  Jit it to drive the loop from Python, as for a progress bar. Start from
  `solvers.get(solver).start(noise)`, or from the noise itself, at the first
  sigma 1; at sigma 0, state.x is the sample.

  Args:
    apply: The network with its parameters bound.
    cond: Conditions, see `dit.Mirage` and `guidance.guided`.
    noise: The noise that x started from.
    guidance: Weights.
    known: Clean latents to keep, as of the window before.
    known_mask: Which frames of `known` are kept. They follow their own path,
      (1 - sigma) * known + sigma * noise, and end as they are.
    solver: One of `solvers.NAMES`.
    sigmas: The whole table of steps, for a guidance that counts them.

  Raises:
    ValueError: Only one of known and known_mask is given, there is no such
      solver, or the guidance needs what is not there.
  """
  if (known is None) != (known_mask is None):
    raise ValueError('known and known_mask must be given together.')
  start, advance = solvers.get(solver)
  push = guided(apply, guidance, sigmas)

  def keep(x, sigma):
    if known is None:
      return x
    path = (1 - sigma) * known + sigma * noise
    return jnp.where(known_mask[:, :, None, None, None], path, x)

  def velocity(x, sigma):
    return push(keep(x, sigma), jnp.broadcast_to(sigma, x.shape[:1]), cond)

  def step(state, sigma, next_sigma):
    if not isinstance(state, solvers.State):
      state = start(state)
    dtype = jnp.promote_types(state.x.dtype, jnp.float32)
    sigma, next_sigma = (jnp.asarray(s, dtype) for s in (sigma, next_sigma))
    state = state._replace(x=keep(state.x, sigma))
    state = advance(velocity, state, sigma, next_sigma)
    return state._replace(x=keep(state.x, next_sigma))

  return step


def sample(
  apply: Apply,
  cond: Mapping[str, Array],
  noise: Float[Array, 'B F Y X C'],
  sigmas: Float[Array, 'K'],
  guidance: Guidance = UNGUIDED,
  known: Float[Array, 'B F Y X C'] | None = None,
  known_mask: Bool[Array, 'B F'] | None = None,
  solver: str = 'euler',
) -> Float[Array, 'B F Y X C']:
  """Integrates from noise to data along descending sigmas, 1 to 0.

  A `lax.scan` over `make_step`, whose arguments these are; jit it whole.
  """
  sigmas = jnp.asarray(sigmas, jnp.promote_types(noise.dtype, jnp.float32))
  step = make_step(
    apply, cond, noise, guidance, known, known_mask, solver, sigmas
  )

  def body(state, pair):
    return step(state, *pair), None

  start = solvers.get(solver).start(noise)
  state, _ = jax.lax.scan(body, start, (sigmas[:-1], sigmas[1:]))
  return state.x
