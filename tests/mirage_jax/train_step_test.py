"""One update of the optimizer, against the formulas written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirage_jax import train_step
from mirage_jax.train_step import OptimizerConfig

CFG = OptimizerConfig(
  learning_rate=0.1,
  warmup_steps=2,
  final_fraction=0.1,
  b1=0.8,
  b2=0.9,
  weight_decay=0.3,
  clip_norm=2.0,
  ema_decay=0.5,
)
PARAMS = {'w': jnp.array([[1.0, -2.0]]), 'b': jnp.array([0.5])}
PULL = {'w': jnp.array([[3.0, 1.0]]), 'b': jnp.array([-2.0])}


def loss_fn(params):
  """Its gradient is PULL, whatever the parameters."""
  parts = jax.tree.map(lambda p, g: (p * g).sum(), params, PULL)
  return sum(jax.tree.leaves(parts)), {'extra': params['b'][0]}


def by_hand(num_updates, num_steps):
  """AdamW after Loshchilov and Hutter, decay on matrices alone."""
  norm = np.sqrt(9 + 1 + 4)
  out = {}
  for name, p in PARAMS.items():
    p = np.asarray(p, np.float64)
    g = np.asarray(PULL[name], np.float64) * (CFG.clip_norm / norm)
    m = v = ema = 0.0
    ema = p
    for t in range(num_updates):
      m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
      step = (m / (1 - 0.8 ** (t + 1))) / (
        np.sqrt(v / (1 - 0.9 ** (t + 1))) + 1e-8
      )
      p = p - rate(t, num_steps) * (step + 0.3 * p * (p.ndim > 1))
      decay = min(0.5, (1 + t) / (10 + t))
      ema = decay * ema + (1 - decay) * p
    out[name] = p, ema
  return out


def rate(t, num_steps):
  """Up from zero in 2 steps, then down a cosine to a tenth."""
  if t < 2:
    return 0.1 * t / 2
  part = min((t - 2) / (num_steps - 2), 1)
  return 0.1 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * part)))


def run(num_updates, num_steps=6, cfg=CFG):
  tx = train_step.optimizer(cfg, num_steps)
  state = train_step.new_state(PARAMS, tx)
  step = jax.jit(lambda s: train_step.update(s, loss_fn, tx, cfg.ema_decay))
  rows = []
  for _ in range(num_updates):
    state, metrics = step(state)
    rows.append(metrics)
  return state, rows


@pytest.mark.parametrize('count', [1, 2, 9])
def test_parameters_and_average_follow_the_formulas(count):
  state, _ = run(count)
  for name, (params, ema) in by_hand(count, 6).items():
    np.testing.assert_allclose(state.params[name], params, rtol=1e-5)
    np.testing.assert_allclose(state.ema[name], ema, rtol=1e-5)
  assert int(state.step) == count
  if count == 1:  # The warm-up begins at zero.
    np.testing.assert_array_equal(state.params['w'], PARAMS['w'])


def test_metrics_are_of_the_parameters_before_the_step():
  _, rows = run(3)
  assert rows[0]['loss'] == pytest.approx(3 - 2 - 1)
  assert rows[0]['grad_norm'] == pytest.approx(14**0.5)  # Before clipping.
  assert rows[0]['extra'] == 0.5 and rows[2]['extra'] != 0.5


def test_a_fresh_average_is_a_copy():
  """A donated state must not hold one buffer twice."""
  tx = train_step.optimizer(CFG, 6)
  state = train_step.new_state(PARAMS, tx)
  np.testing.assert_array_equal(state.ema['w'], state.params['w'])
  buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
  assert len(set(buffers)) == len(buffers)


def test_a_run_shorter_than_its_warm_up_still_has_a_schedule():
  cfg = OptimizerConfig(learning_rate=0.1, warmup_steps=100)
  state, _ = run(3, num_steps=3, cfg=cfg)
  assert np.isfinite(jax.tree.leaves(state.params)[0]).all()


def test_muon_takes_kernels_of_hidden_layers_alone():
  params = {
    'blocks': {
      'video': {'up': {'kernel': jnp.zeros((2, 8, 16))}},  # Two layers.
      'attn': {'out': {'kernel': jnp.zeros((2, 4, 3, 8))}},  # Heads, size.
      'norm': {'scale': jnp.zeros((2, 8))},
    },
    'vae': {'conv1': {'kernel': jnp.zeros((3, 3, 3, 4, 8)), 'bias': 0.0}},
    'final': {'modulation': {'kernel': jnp.zeros((8, 8))}},
  }
  axes = train_step.hidden_matrices(params)
  up = axes['blocks']['video']['up']['kernel']
  assert (up.reduction_axis, up.output_axis) == ((1,), (2,))
  out = axes['blocks']['attn']['out']['kernel']
  assert (out.reduction_axis, out.output_axis) == ((1, 2), (3,))
  conv = axes['vae']['conv1']['kernel']
  assert (conv.reduction_axis, conv.output_axis) == ((0, 1, 2, 3), (4,))
  assert axes['blocks']['norm']['scale'] is None
  assert axes['vae']['conv1']['bias'] is None
  assert axes['final']['modulation']['kernel'] is None
