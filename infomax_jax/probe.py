"""What frozen features are worth: logistic regression and neighbours.

Nothing is fitted on test images, not even a constant to scale them by.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np
import optax

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
HELD_OUT = 5  # The penalty is chosen on a fifth of the training images.


class Linear(NamedTuple):
  """A linear classifier of features, and how it was found.

  Attributes:
    mean: [C] what is taken off a feature.
    spread: [C] what it is then divided by.
    kernel: [C N]
    bias: [N]
    penalty: Times half the squared kernel, beside the mean cross-entropy.
  """

  mean: np.ndarray
  spread: np.ndarray
  kernel: np.ndarray
  bias: np.ndarray
  penalty: float

  def __call__(self, features: Float[np.ndarray, 'M C']) -> np.ndarray:
    """Classes, int [M]."""
    x = (features - self.mean) / self.spread
    return np.argmax(x @ self.kernel + self.bias, axis=-1)


def logistic_regression(
  features: Float[np.ndarray, 'M C'],
  labels: Int[np.ndarray, 'M'],
  num_classes: int,
  seed: int = 0,
  iterations: int = 300,
) -> Linear:
  """Multinomial logistic regression on standardised features, by L-BFGS.

  The penalty is the one of `PENALTIES` that classifies a random fifth best
  after training on the rest; then all images are trained on.

  Args:
    features: float32, of training images.
    labels: in [0, num_classes).
    num_classes: N.
    seed: of the choice of the fifth.
    iterations: at most so many for each penalty.

  Raises:
    ValueError: there are fewer than five images.
  """
  if len(features) < HELD_OUT:
    raise ValueError(
      f'{len(features)} images are too few to choose a penalty on a fifth of'
    )
  order = np.random.default_rng(seed).permutation(len(features))
  kept, held = np.split(order, [len(order) - len(order) // HELD_OUT])
  fit = functools.partial(_fit, num_classes=num_classes, iterations=iterations)
  right, start = [], None
  for penalty in PENALTIES:  # Each starts from the one before.
    model, start = fit(features[kept], labels[kept], penalty, start=start)
    right.append(np.mean(model(features[held]) == labels[held]))
  best = PENALTIES[int(np.argmax(right))]
  return fit(features, labels, best, start=start)[0]


def _fit(features, labels, penalty, *, num_classes, iterations, start):
  mean, spread = features.mean(0), features.std(0)
  spread = np.where(spread > 1e-6, spread, 1.0)
  x = jnp.asarray((features - mean) / spread)
  if start is None:
    zeros = np.zeros((x.shape[1] + 1, num_classes), np.float32)
    start = zeros[:-1], zeros[-1]
  kernel, bias = jax.device_get(
    _solve(x, jnp.asarray(labels), penalty, start, iterations)
  )
  return Linear(mean, spread, kernel, bias, penalty), (kernel, bias)


@functools.partial(jax.jit, static_argnames='iterations')
def _solve(x, labels, penalty, start, iterations):
  def cost(params):
    kernel, bias = params
    logits = x @ kernel + bias[None]
    fit = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return fit.mean() + penalty / 2 * jnp.square(kernel).sum()

  return minimise(cost, start, iterations)


def minimise(
  cost: Callable, start: optax.Params, iterations: int, tolerance: float = 1e-5
) -> optax.Params:
  """L-BFGS until the gradient's norm is below `tolerance`; to be jitted."""
  tx = optax.lbfgs()
  value_and_grad = optax.value_and_grad_from_state(cost)

  def step(carry):
    params, state, _ = carry
    value, grad = value_and_grad(params, state=state)
    updates, state = tx.update(
      grad, state, params, value=value, grad=grad, value_fn=cost
    )
    return optax.apply_updates(params, updates), state, optax.tree.norm(grad)

  def going(carry):
    _, state, slope = carry
    count = optax.tree_utils.tree_get(state, 'count')
    return (count < iterations) & (slope > tolerance)

  carry = start, tx.init(start), jnp.asarray(jnp.inf)
  return jax.lax.while_loop(going, step, carry)[0]


def nearest(
  features: Float[np.ndarray, 'M C'],
  labels: Int[np.ndarray, 'M'],
  queries: Float[np.ndarray, 'Q C'],
  num_classes: int,
  neighbours: int = 20,
  block: int = 1024,
) -> Int[np.ndarray, 'Q']:
  """The class of most of the nearest training images, by cosine.

  Among classes with as many, the one whose neighbours are nearer. `block`
  queries are compared at once: block times M float32 of memory.
  """
  unit = jnp.asarray(_unit(features))
  find = jax.jit(
    functools.partial(_vote, num_classes=num_classes, neighbours=neighbours)
  )
  found = [
    find(jnp.asarray(_unit(queries[i : i + block])), unit, jnp.asarray(labels))
    for i in range(0, len(queries), block)
  ]
  return np.concatenate(jax.device_get(found))


def _unit(x):
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _vote(
  queries: Float[Array, 'Q C'],
  unit: Float[Array, 'M C'],
  labels: Int[Array, 'M'],
  num_classes: int,
  neighbours: int,
) -> Int[Array, 'Q']:
  likeness, index = jax.lax.top_k(queries @ unit.T, min(neighbours, len(unit)))
  # One vote each, and less than one in all for how near they are.
  weight = 1 + (likeness + 1) / (4 * neighbours)
  votes = jax.nn.one_hot(labels[index], num_classes) * weight[..., None]
  return jnp.argmax(votes.sum(1), axis=-1)
