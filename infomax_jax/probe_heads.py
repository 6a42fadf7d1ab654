"""Classifiers trained after the encoder: on its features, or as the authors do.

Both train the linear and the MLP classifier of `heads` with the authors'
optimizer, without a warm-up. `fit_frozen` sees features of plain images, once
computed. `fit_moving` is the authors' own protocol (`task_classifiers.py`): one
augmented view of each image, through an encoder whose norms take the statistics
of each batch and go on averaging them.
"""

from collections.abc import Callable, Iterable
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8
import numpy as np
import optax

from infomax_jax import augment, heads
from infomax_jax.config import HeadsConfig
from infomax_jax.encoder import Encoder
from infomax_jax.optimizer import OptimizerConfig, optimizer


@dataclasses.dataclass(frozen=True)
class Plan:
  """How classifiers are trained.

  Attributes:
    epochs: Passes over the training images.
    falls: Epochs at whose end the rate falls to a fifth.
    batch_size: Images in a step; the last ones of an epoch may go unused.
    seed: Of the weights, the order and dropout.
  """

  epochs: int
  falls: tuple[int, ...]
  batch_size: int
  seed: int = 0

  def optimizer(self, num_images: int) -> optax.GradientTransformation:
    per_epoch = num_images // self.batch_size
    falls = tuple((fall + 1) * per_epoch for fall in self.falls)
    return optimizer(OptimizerConfig(warmup_steps=1, milestones=falls))


@flax.struct.dataclass
class State:
  """Of the classifiers; `encoder_stats` are of the encoder, or None."""

  step: jax.Array
  params: Any
  stats: Any
  opt_state: Any
  encoder_stats: Any = None


def init(
  classifiers: heads.Heads, width: int, tx: optax.GradientTransformation, seed
) -> State:
  """Fresh classifiers of features of `width` numbers."""
  made = classifiers.init(jax.random.key(seed), jnp.zeros((2, width)))
  params = nn.unbox(made['params'])
  stats = nn.unbox(made['batch_stats'])
  return State(jnp.zeros((), jnp.int32), params, stats, tx.init(params))


def learn(
  state: State,
  r1: Float[Array, 'B C'],
  labels: Int[Array, 'B'],
  *,
  classifiers: heads.Heads,
  tx: optax.GradientTransformation,
  seed: int,
) -> State:
  """One update of both classifiers."""
  key = jax.random.fold_in(jax.random.key(seed), state.step)

  def cost(params):
    logits, updates = classifiers.apply(
      {'params': params, 'batch_stats': state.stats},
      r1,
      train=True,
      rngs={'dropout': key},
      mutable=['batch_stats'],
    )
    parts = (logits.linear, logits.mlp)
    total = sum(heads.loss(x, labels, classifiers.cfg) for x in parts)
    return total, updates['batch_stats']

  grads, stats = jax.grad(cost, has_aux=True)(state.params)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  return state.replace(
    step=state.step + 1, params=params, stats=stats, opt_state=opt_state
  )


def fit_frozen(
  features: Float[np.ndarray, 'M C'],
  labels: Int[np.ndarray, 'M'],
  num_classes: int,
  plan: Plan,
) -> 'Trained':
  """Trains on features that were computed once."""
  classifiers = _classifiers(num_classes)
  tx = plan.optimizer(len(features))
  step = functools.partial(
    learn, classifiers=classifiers, tx=tx, seed=plan.seed
  )
  x, y = jnp.asarray(features), jnp.asarray(labels)

  @functools.partial(jax.jit, donate_argnums=0)
  def epoch(state, order):
    return jax.lax.scan(
      lambda state, rows: (step(state, x[rows], y[rows]), None), state, order
    )[0]

  state = init(classifiers, features.shape[1], tx, plan.seed)
  rng = np.random.default_rng(plan.seed)
  whole = len(features) // plan.batch_size * plan.batch_size
  for _ in range(plan.epochs):
    order = rng.permutation(len(features))[:whole]
    state = epoch(state, jnp.asarray(order.reshape(-1, plan.batch_size)))
  return Trained(classifiers, state)


def _classifiers(num_classes):
  return heads.Heads(HeadsConfig(num_classes, random_scale=True))


@dataclasses.dataclass(frozen=True)
class Trained:
  """Classifiers and their weights."""

  classifiers: heads.Heads
  state: State

  def __call__(
    self, r1: Float[np.ndarray, 'M C']
  ) -> dict[str, Int[np.ndarray, 'M']]:
    """{'linear', 'mlp'}: the classes that each says."""
    variables = {'params': self.state.params, 'batch_stats': self.state.stats}
    logits = self.classifiers.apply(variables, jnp.asarray(r1))
    return {
      name: np.argmax(np.asarray(getattr(logits, name)), axis=-1)
      for name in ('linear', 'mlp')
    }


Move = Callable[
  [Any, Any, UInt8[Array, 'B Y X 3']], tuple[Float[Array, 'B C'], Any]
]


def make_move(encoder: Encoder, recipe: augment.Recipe) -> Move:
  """(params, batch_stats, images) -> (r1, batch_stats), as in training.

  Norms normalise by the batch, and their running statistics move towards it.
  """

  @jax.jit
  def move(params, stats, images):
    features, updates = encoder.apply(
      {'params': params, 'batch_stats': stats},
      augment.normalize(images, recipe),
      train=True,
      mutable=['batch_stats'],
    )
    return features.r1, updates['batch_stats']

  return move


def fit_moving(
  encoder: Encoder,
  variables: Any,
  recipe: augment.Recipe,
  batches: Iterable[Any],
  num_images: int,
  num_classes: int,
  plan: Plan,
) -> tuple[Trained, Any]:
  """The authors' protocol, on an encoder that is frozen but for its norms.

  Args:
    encoder: whose r1 is classified.
    variables: of the encoder.
    recipe: by which views are normalised.
    batches: endless, of `batches.views`; the first view is used.
    num_images: in an epoch.
    num_classes: of the labels.
    plan: how long.

  Returns:
    The classifiers, and the variables of the encoder with its moved norms.
  """
  classifiers, params = _classifiers(num_classes), variables['params']
  move = make_move(encoder, recipe)
  tx = plan.optimizer(num_images)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, params, batch):
    r1, stats = move(params, state.encoder_stats, batch['view1'])
    state = learn(
      state,
      r1,
      batch['label'],
      classifiers=classifiers,
      tx=tx,
      seed=plan.seed,
    )
    return state.replace(encoder_stats=stats)

  state = init(classifiers, encoder.cfg.n_rkhs, tx, plan.seed)
  # A copy, for the step takes its state's memory over.
  stats = jax.tree.map(jnp.array, variables['batch_stats'])
  state = state.replace(encoder_stats=stats)
  steps = plan.epochs * (num_images // plan.batch_size)
  for _, batch in zip(range(steps), batches, strict=False):
    state = step(state, params, batch)
  moved = {'params': params, 'batch_stats': state.encoder_stats}
  return Trained(classifiers, state), moved
