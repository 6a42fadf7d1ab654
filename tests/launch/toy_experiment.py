"""A few milliseconds a step: a noisy MLP, for the tests of launch/."""

import dataclasses
import time
from typing import Any

from flax import linen as nn
import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

WIDTH = 8
AXIS_RULES = (
  ('batch', ('data', 'fsdp')),
  ('seq', 'context'),
  ('embed', 'fsdp'),
  ('mlp', 'tensor'),
)


@flax.struct.dataclass
class State:
  step: jax.Array
  params: Any
  opt_state: Any
  ema: Any


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):  # [B, T, C]
    init = nn.initializers.lecun_normal()
    up = nn.with_logical_partitioning(init, ('embed', 'mlp'))
    down = nn.with_logical_partitioning(init, ('mlp', 'embed'))
    h = nn.Dense(16, use_bias=False, kernel_init=up, name='up')(x)
    h = nn.with_logical_constraint(nn.gelu(h), ('batch', 'seq', 'mlp'))
    return nn.Dense(WIDTH, use_bias=False, kernel_init=down, name='down')(h)


@dataclasses.dataclass(frozen=True)
class Toy:
  """Predicts the noise added to a batch.

  Attributes:
    break_at: The step whose loss is NaN; -1 for none.
    bad_at: The example that cannot be read; -1 for none.
    delay: Seconds that a batch takes.
    repeats: Passes over the data; None for no end.
  """

  batch_size: int
  learning_rate: float
  break_at: int = -1
  bad_at: int = -1
  delay: float = 0.0
  repeats: int | None = None
  num_examples: int = 64
  axis_rules: tuple = AXIS_RULES
  tokens_per_step: int = 32

  def __post_init__(self):
    if self.learning_rate < 0:
      raise ValueError('learning_rate must not be negative')

  def init(self, key):
    params = Net().init(key, jnp.zeros((1, 4, WIDTH)))['params']
    opt_state = self.optimizer.init(params)
    return State(jnp.zeros((), jnp.int32), params, opt_state, params)

  @property
  def optimizer(self):
    return optax.adam(self.learning_rate)

  def loss(self, params, x, key):
    noise = jax.random.normal(key, x.shape)
    out = Net().apply({'params': params}, x + noise)
    return jnp.mean(jnp.square(out - noise))

  def train_step(self, state, batch, key):
    key = jax.random.fold_in(key, state.step)
    loss, grads = jax.value_and_grad(self.loss)(state.params, batch['x'], key)
    updates, opt_state = self.optimizer.update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    ema = optax.incremental_update(params, state.ema, 0.1)
    loss = jnp.where(state.step == self.break_at, jnp.nan, loss)
    return State(state.step + 1, params, opt_state, ema), {'loss': loss}

  def eval_step(self, state, batch, key):
    return {'loss': self.loss(state.ema, batch['x'], key)}

  def dataset(self):
    # The rows of a global batch in order, this process's share of them: the
    # noise falls on the same examples whatever the number of processes.
    share = self.batch_size // jax.process_count()
    start = jax.process_index() * share
    rows = (
      grain.MapDataset.range(self.num_examples).shuffle(seed=0).map(self._row)
    )

    def local(x):
      time.sleep(self.delay)
      return {'x': x[start : start + share]}

    batches = rows.repeat(self.repeats).batch(self.batch_size).map(local)
    return batches.to_iter_dataset(grain.ReadOptions(1, 1))

  def _row(self, i):
    if i == self.bad_at:
      raise ValueError(f'example {i} is broken:\nmend it')
    return (
      np.random.default_rng(i).standard_normal((4, WIDTH)).astype('float32')
    )

  def eval_dataset(self):
    return self.dataset()


def make(config):
  return Toy(config['batch_size'], **config['toy'])
