"""One window of latents: the steps of a sampler, compiled once for all.

What is compiled depends on which terms of guidance there are and on the kinds
of their schedules, not on their weights, nor on how many steps are taken. With
caching there is one program for each set of things that a step computes.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from launch.settings import Settings
from mirage_jax import cache, flow, sampler
from mirage_jax.dit import Mirage
from mirage_jax.latents import Run, call

# Tables of steps are filled up to a multiple of this, as their length is
# compiled in: up to 64 steps share a program.
TABLE = 65


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _step(
  model, how, fresh, guidance, params, cond, noise, known, table, state, *now
):
  solver, caching = how
  step = sampler.make_step(
    cache.Bound(model, params),
    cond,
    noise,
    guidance,
    *known,
    solver=solver,
    sigmas=table,
    caching=caching,
  )
  return step(state, *now, *fresh)


def draw(
  model: Mirage,
  params: Any,
  cond: Mapping[str, Array],
  noise: Float[Array, '1 F Y X C'],
  known: Float[np.ndarray, 'K Y X C'] | tuple,
  settings: Settings,
  sigmas: Sequence[float] | None = None,
  progress: Callable[[], None] = lambda: None,
  run: Run = call,
) -> Float[np.ndarray, 'F Y X C']:
  """The window that the noise becomes.

  Args:
    model: the network.
    params: its parameters.
    cond: of this window, see `dit.Mirage`.
    noise: what it starts from.
    known: latents that the window begins with and keeps, or ().
    settings: how to sample.
    sigmas: noise levels of a distilled model; None takes settings.steps.
    progress: called after every step.
    run: see `ahead.Programs`.
  """
  kept = ()
  if len(known):
    fixed = np.zeros(noise.shape, np.float32)
    fixed[0, : len(known)] = known
    kept = (jnp.asarray(fixed), jnp.arange(noise.shape[1])[None] < len(known))
  if sigmas is None:
    sigmas = flow.linear_quadratic(settings.steps)
  sigmas = np.asarray(sigmas, np.float32)
  guidance, how = settings.guidance, (settings.solver, settings.caching)
  table = None
  if guidance.counts_steps:
    table = np.pad(sigmas, (0, -len(sigmas) % TABLE))
  bound = cache.Bound(model, params)
  state = sampler.start(bound, cond, noise, guidance, *how)
  fresh = [()] * (len(sigmas) - 1)
  if settings.caching:
    plan = np.stack(cache.plan(settings.caching, sigmas, guidance))
    fresh = [(cache.Fresh(*now),) for now in plan.T.tolist()]
  for what, *now in zip(fresh, sigmas[:-1], sigmas[1:], strict=True):
    static = model, how, what
    state = run(
      _step, static, guidance, params, cond, noise, kept, table, state, *now
    )
    jax.block_until_ready(state)
    progress()
  return np.asarray(state.x[0])
