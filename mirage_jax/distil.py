"""Distillation: a sampler of many guided steps becomes one of few plain ones.

The teacher samples from noise under guidance, step after step. The student has
the same network and stops at only a few of these noise levels: from each it
learns the constant velocity that leads to where the teacher is at the next, with
one evaluation and no other branch. Both follow the deterministic flow, so that
there is one right answer; whole trajectories are taken, as in Luhman and Luhman
(arXiv 2101.02388), cut into steps as in progressive distillation (Salimans and
Ho, arXiv 2202.00512), with guidance folded in (Meng et al., arXiv 2210.03142).
Only conditions are needed, no videos.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from mirage_jax import config as config_lib, flow, sampler
from mirage_jax.guidance import Apply, Guidance


@dataclasses.dataclass(frozen=True)
class DistilConfig:
  """From which teacher to which student.

  Attributes:
    guidance: Weights that the teacher samples with.
    kept: After which of the teacher's steps the student stops, too; both begin
      at noise and end at data.
  """

  guidance: Guidance
  kept: tuple[int, ...]


def stops(cfg: DistilConfig, num_steps: int) -> list[int]:
  """Which points of the teacher's trajectory the student passes.

  Raises:
    ValueError: `kept` does not rise from 1 to below num_steps.
  """
  points = [0, *cfg.kept, num_steps]
  if any(a >= b for a, b in zip(points[:-1], points[1:], strict=True)):
    raise ValueError(
      f'distil.kept must rise between 0 and the {num_steps} steps of the '
      f'teacher, got {cfg.kept}.'
    )
  return points


def student_sigmas(
  cfg: DistilConfig, path: config_lib.FlowConfig
) -> np.ndarray:
  """The student's own noise levels, float32, from 1 down to 0."""
  table = flow.linear_quadratic(path.num_steps, path.threshold_noise)
  return table[np.array(stops(cfg, path.num_steps))]


def trajectory(
  apply: Apply,
  cond: Mapping[str, Array],
  noise: Float[Array, 'B F Y X C'],
  sigmas: Sequence[float],
  guidance: Guidance,
) -> Float[Array, 'B K F Y X C']:
  """Where Euler's method under guidance comes by, the noise first."""
  table = jnp.asarray(sigmas, noise.dtype)
  step = sampler.make_step(apply, cond, noise, guidance, sigmas=table)

  def body(state, now):
    state = step(state, *now)
    return state, state.x

  state = sampler.start(apply, cond, noise, guidance)
  _, points = jax.lax.scan(body, state, (table[:-1], table[1:]))
  return jnp.moveaxis(jnp.concatenate([noise[None], points]), 0, 1)


def loss(
  student: Apply,
  points: Float[Array, 'B N F Y X C'],
  cond: Mapping[str, Array],
  sigmas: Sequence[float],
  path: config_lib.FlowConfig,
) -> tuple[Float[Array, ''], Float[Array, 'K']]:
  """How far the student's steps lead from the teacher's trajectory.

  Args:
    student: The network with the student's parameters.
    points: The trajectory at the N = K + 1 student's noise levels.
    cond: Conditions, see `dit.Mirage`.
    sigmas: The N noise levels.
    path: How much places and channels count, see `flow.error_weights`.

  Returns:
    The mean squared error of the velocity, and that of each of the K steps.
  """
  sigmas = np.asarray(sigmas, np.float32)
  batch, steps = len(points), len(sigmas) - 1
  points = jax.lax.stop_gradient(points)
  lengths = jnp.asarray(sigmas[:-1] - sigmas[1:])[
    None, :, None, None, None, None
  ]
  target = (points[:, 1:] - points[:, :-1]) / lengths
  # All steps of all samples as one batch.
  starts = points[:, :-1].reshape(-1, *points.shape[2:])
  levels = jnp.tile(jnp.asarray(sigmas[:-1]), batch)
  conds = {
    k: jnp.repeat(v, steps, axis=0) if jnp.ndim(v) else v
    for k, v in cond.items()
  }
  predicted = student(starts, levels, conds).astype(jnp.float32)
  error = jnp.square(predicted.reshape(target.shape) - target)
  error = error * flow.error_weights(points[:, -1], path)[:, None]
  each = error.mean((0, 2, 3, 4, 5))
  return each.mean(), each
