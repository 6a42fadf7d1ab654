"""Our side of `launch.bench_amdim`: the recipe's own train step."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from infomax_jax import experiment
from launch.side_by_side import Workload


def step(config: Mapping[str, Any]) -> Workload:
  """A step on random images, of which the state is donated."""
  made = experiment.make(config)
  rng = np.random.default_rng(0)
  batch = {}
  for name, x in experiment.abstract_batch(
    config, config['batch_size']
  ).items():
    top = 10 if name == 'label' else 256
    batch[name] = rng.integers(0, top, x.shape).astype(x.dtype)
  kept = [nn.unbox(jax.jit(made.init)(jax.random.key(0)))]
  compiled = jax.jit(made.train_step, donate_argnums=0)
  key = jax.random.key(1)

  def once():
    state, metrics = compiled(kept.pop(), batch, key)
    kept.append(state)
    jax.block_until_ready((state, metrics))

  params = jax.tree.leaves(kept[0].params)
  return Workload(once, sum(x.size for x in params))
