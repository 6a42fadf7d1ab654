"""The authors' optimizer and schedule."""

import dataclasses

import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Adam as in the authors' code: L2 is part of the gradient.

  Attributes:
    learning_rate: After the warm-up.
    warmup_steps: Updates of linear rise.
    milestones: Updates after which the rate falls to a fifth.
    b1: Decay of the first moment.
    b2: Decay of the second moment.
    l2: Times each parameter, norms and biases too, added to its gradient.
  """

  learning_rate: float = 2e-4
  warmup_steps: int = 500
  milestones: tuple[int, ...] = ()
  b1: float = 0.8
  b2: float = 0.999
  l2: float = 1e-5


def optimizer(cfg: OptimizerConfig) -> optax.GradientTransformation:
  """The authors' optimizer and schedule (their train.py)."""
  falls = optax.piecewise_constant_schedule(
    cfg.learning_rate, {step: 0.2 for step in cfg.milestones}
  )

  def schedule(count):
    return falls(count) * jnp.minimum(1, (count + 1) / cfg.warmup_steps)

  return optax.chain(
    optax.add_decayed_weights(cfg.l2),
    optax.scale_by_adam(cfg.b1, cfg.b2),
    optax.scale_by_learning_rate(schedule),
  )
