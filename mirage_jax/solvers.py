"""Solvers of the flow's ODE, from noise at sigma 1 down to data at sigma 0.

With dx = (sigma - next_sigma) * v, as velocities point towards the data:

- 'euler', order 1, one evaluation a step. Exact where paths are straight.
- 'heun', order 2, two evaluations a step, but one at the last: a network has
  seen little of sigma = 0 (Karras et al., arXiv 2206.00364, algorithm 1).
- 'dpmpp_2m', order 2, one evaluation a step: DPM-Solver++(2M) (Lu et al., arXiv
  2211.01095, algorithm 2) with the flow's alpha = 1 - sigma, as Sana has it
  (arXiv 2410.10629). It extrapolates the predicted data in log(alpha / sigma),
  where Adams-Bashforth extrapolates the velocity in sigma. Of the same order,
  that one overshoots by an order of magnitude if steps are few, long at the end
  and strongly guided; this one was never far behind Euler.

All of them are linear in the velocities, so they keep a batch's samples apart.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

Velocity = Callable[[Array, Array], Array]


class State(NamedTuple):
  """Where a solver is: latents x, and what it remembers of earlier steps.

  `memory` is the sampler's, for step caching.
  """

  x: Float[Array, 'B *n']
  past: Any = ()
  memory: Any = ()


class Solver(NamedTuple):
  """start(noise) -> state; step(velocity, state, sigma, next_sigma) -> state.

  `velocity` is a callable (x, sigma) -> velocity for a scalar sigma.
  """

  start: Callable[[Array], State]
  step: Callable[[Velocity, State, Array, Array], State]
  runs: int = 1  # evaluations a step


def get(name: str) -> Solver:
  """The solver of that name; ValueError lists them all if there is none."""
  if name not in SOLVERS:
    raise ValueError(f'there is no solver {name!r}; give one of {NAMES}.')
  return SOLVERS[name]


def _euler(velocity, state, sigma, next_sigma):
  return State(state.x + (sigma - next_sigma) * velocity(state.x, sigma))


def _heun(velocity, state, sigma, next_sigma):
  x, step = state.x, sigma - next_sigma
  stages = jnp.where(next_sigma > 0, 2, 1)

  def stage(i, carry):
    total, slope = carry
    slope = velocity(x + i * step * slope, jnp.where(i, next_sigma, sigma))
    return total + slope, slope

  # A loop, so that the network is compiled once.
  zeros = jnp.zeros_like(x)
  total, _ = jax.lax.fori_loop(0, stages, stage, (zeros, zeros))
  return State(x + step / stages * total)


def _dpmpp_start(x):
  # A past at sigma 1 is infinitely far in log(alpha / sigma): no weight.
  return State(x, (jnp.zeros_like(x), jnp.ones((), x.dtype)))


def _dpmpp(velocity, state, sigma, next_sigma):
  x, (past_data, past_sigma) = state.x, state.past
  data = x + sigma * velocity(x, sigma)
  last, here, after = (
    jnp.log1p(-s) - jnp.log(s) for s in (past_sigma, sigma, next_sigma)
  )
  ratio = (after - here) / (2 * (here - last))
  # First order from sigma 1 and to sigma 0, where the logarithm is infinite.
  ratio = jnp.where(jnp.isfinite(ratio), ratio, 0)
  towards = data + ratio * (data - past_data)
  x = x + (1 - next_sigma / sigma) * (towards - x)
  return State(x, (data, jnp.asarray(sigma, past_sigma.dtype)))


SOLVERS = {
  'euler': Solver(State, _euler),
  'heun': Solver(State, _heun, runs=2),
  'dpmpp_2m': Solver(_dpmpp_start, _dpmpp),
}
NAMES = tuple(SOLVERS)
