"""Draws from the flow: a solver's steps under guidance, known frames kept."""

from collections.abc import Callable, Mapping

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from mirage_jax import cache, solvers
from mirage_jax.cache import Caching
from mirage_jax.guidance import Apply, Guidance, guided

Step = Callable[..., solvers.State]
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
  caching: Caching = cache.OFF,
) -> Step:
  """Makes one step of a solver: step(state, sigma, next_sigma) -> state.

  Jit it to drive the loop from Python, as for a progress bar. Start from
  `start`, or, without caching, from the noise itself, at the first sigma 1; at
  sigma 0, state.x is the sample. With caching, step takes a fourth argument:
  the `cache.Fresh` of that step, out of `cache.plan`.

  Args:
    apply: The network with its parameters bound; a `cache.Bound` if attention
      is cached.
    cond: Conditions, see `dit.Mirage` and `guidance.guided`.
    noise: The noise that x started from.
    guidance: Weights.
    known: Clean latents to keep, as of the window before.
    known_mask: Which frames of `known` are kept. They follow their own path,
      (1 - sigma) * known + sigma * noise, and end as they are.
    solver: One of `solvers.NAMES`.
    sigmas: The whole table of steps, for a guidance that counts them.
    caching: What is used again from step to step.

  Raises:
    ValueError: Only one of known and known_mask is given, there is no such
      solver, it runs the network twice a step and there is caching, or the
      guidance needs what is not there.
  """
  begin, advance, _ = solvers.get(solver)
  push = _pusher(apply, guidance, sigmas, solver, caching)
  keep = _keeper(noise, known, known_mask)

  def velocity(x, sigma, *memory):
    levels = jnp.broadcast_to(sigma, x.shape[:1])
    return push(keep(x, sigma), levels, cond, *memory)

  def step(state, sigma, next_sigma, *fresh):
    if not isinstance(state, solvers.State):
      state = begin(state)
    dtype = jnp.promote_types(state.x.dtype, jnp.float32)
    sigma, next_sigma = (jnp.asarray(s, dtype) for s in (sigma, next_sigma))
    state = state._replace(x=keep(state.x, sigma))
    run, memory = velocity, state.memory
    if caching:
      slope, memory = velocity(state.x, sigma, memory, *fresh)
      run = lambda x, sigma: slope  # It asks once, and for just this one.
    state = advance(run, state, sigma, next_sigma)
    return state._replace(x=keep(state.x, next_sigma), memory=memory)

  return step


def _keeper(noise, known, known_mask):
  if (known is None) != (known_mask is None):
    raise ValueError('known and known_mask must be given together.')

  def keep(x, sigma):
    if known is None:
      return x
    path = (1 - sigma) * known + sigma * noise
    return jnp.where(known_mask[:, :, None, None, None], path, x)

  return keep


def _pusher(apply, guidance, sigmas, solver, caching):
  if not caching:
    return guided(apply, guidance, sigmas)
  if solvers.get(solver).runs > 1:
    raise ValueError(
      f'{solver} runs the network more than once a step, which caching does '
      'not cover; give another solver or none of it.'
    )
  return cache.cached(apply, guidance, caching, sigmas)


def start(
  apply: Apply,
  cond: Mapping[str, Array],
  noise: Float[Array, 'B F Y X C'],
  guidance: Guidance = UNGUIDED,
  solver: str = 'euler',
  caching: Caching = cache.OFF,
) -> solvers.State:
  """Where `make_step` with the same arguments begins."""
  state = solvers.get(solver).start(noise)
  if not caching:
    return state
  return state._replace(
    memory=cache.empty(apply, guidance, caching, noise, cond)
  )


def sample(
  apply: Apply,
  cond: Mapping[str, Array],
  noise: Float[Array, 'B F Y X C'],
  sigmas: Float[Array, 'K'],
  guidance: Guidance = UNGUIDED,
  known: Float[Array, 'B F Y X C'] | None = None,
  known_mask: Bool[Array, 'B F'] | None = None,
  solver: str = 'euler',
  caching: Caching = cache.OFF,
) -> Float[Array, 'B F Y X C']:
  """Integrates from noise to data along descending sigmas, 1 to 0.

  A `lax.scan` over `make_step`, whose arguments these are; jit it whole. With
  caching, `sigmas` must be plain numbers: what each step computes is decided
  from them before anything runs.
  """
  fresh = ()
  if caching:
    fresh = (cache.plan(caching, sigmas, guidance),)
  sigmas = jnp.asarray(sigmas, jnp.promote_types(noise.dtype, jnp.float32))
  step = make_step(
    apply, cond, noise, guidance, known, known_mask, solver, sigmas, caching
  )

  def body(state, arguments):
    return step(state, *arguments), None

  state = start(apply, cond, noise, guidance, solver, caching)
  state, _ = jax.lax.scan(body, state, (sigmas[:-1], sigmas[1:], *fresh))
  return state.x
