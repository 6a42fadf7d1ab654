"""Training of the transformer: batches fit, gradients flow, loss falls."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.mirage import grid
from launch import loop, mesh as mesh_lib
from launch.errors import UserError
from mirage_jax import data, experiment, train_step
from tests import tiny


def config(**optimizer):
  made = grid.get_config('dit')
  made.update(dict(batch_size=2, latent_size=(2, 2)))
  made.data.update(tiny.WINDOW)
  made.model.update(tiny.DIT)
  made.optimizer.update(optimizer)
  return tiny.plain(made)


def record(seed):
  """As `launch.prepare --stage latents` writes it, random."""
  rng = np.random.default_rng(seed)
  kept = np.arange(0, 60, 6)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float16)
  return {
    'id': np.array('c'),
    'caption': np.array('red'),
    'offsets': np.array([0]),
    'latents_0': draw(10, 2, 2, 3),
    'reference': draw(len(kept), 2, 2, 3),
    'reference_frame': kept,
    'audio': draw(1, 60, 320),
  }


@pytest.fixture(scope='module')
def batch():
  cfg = data.LatentConfig('t', 'e', **tiny.WINDOW, drop_past=0, augment=0.0)
  rows = [
    data.latent_window(record(k), np.random.default_rng(3), cfg=cfg)
    for k in range(2)
  ]
  assert all(r['reference_mask'].all() for r in rows)
  return jax.tree.map(lambda *x: np.stack(x), *rows)


@pytest.fixture(scope='module')
def exp():
  """Without dropped conditions: then every parameter has a gradient."""
  made = config(name='adamw', learning_rate=0.02, warmup_steps=1, ema_decay=0.5)
  drops = ('drop_text', 'drop_audio', 'drop_reference', 'drop_all')
  made['flow'].update(dict.fromkeys(drops, 0.0))
  return experiment.make(made)


@pytest.fixture(scope='module')
def step(exp):
  # Faster to compile; a few tiny steps need no fast code.
  options = {'xla_backend_optimization_level': 0}
  return jax.jit(exp.train_step, compiler_options=options)


@pytest.fixture(scope='module')
def fresh(exp):
  """Weights that are nowhere zero: a fresh output layer stops gradients."""
  shapes = nn.unbox(jax.eval_shape(exp.init, jax.random.key(0))).params
  params = tiny.dit_params()
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
  params = jax.tree.map(jnp.asarray, params)
  return train_step.new_state(params, exp.init.keywords['tx'])


@pytest.fixture(scope='module')
def trained(fresh, step, batch):
  """States and metrics of 30 steps on one batch with one key."""
  state, key = fresh, jax.random.key(1)
  states, rows = [state], []
  for _ in range(30):
    state, metrics = step(state, batch, key)
    states.append(state)
    rows.append(jax.device_get(metrics))
  return states, rows


def test_a_batch_is_what_abstract_batch_says(batch):
  said = experiment.abstract_batch(config(), 2)
  assert set(said) == set(batch)
  for name, spec in said.items():
    assert (spec.shape, spec.dtype) == (batch[name].shape, batch[name].dtype)


def test_the_gradient_reaches_every_parameter(trained):
  """Read off Adam's first moment after one step."""
  states, _ = trained
  moments = optax.tree.get(states[1].opt_state, 'mu')
  for path, g in jax.tree_util.tree_leaves_with_path(moments):
    assert np.isfinite(g).all() and np.abs(g).max() > 0, path


def test_training_learns_a_batch(trained):
  states, rows = trained
  losses = [row['loss'] for row in rows]
  assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:8])
  assert set(rows[0]) == {'loss', 'grad_norm', 'loss_noisy'}
  assert int(states[-1].step) == 30


def test_every_step_draws_its_own_noise(step, batch, trained):
  states, rows = trained
  key = jax.random.key(1)
  _, again = step(states[0], batch, key)
  assert again['loss'] == rows[0]['loss']
  later = states[0].replace(step=states[0].step + 1)
  assert step(later, batch, key)[1]['loss'] != rows[0]['loss']


def test_evaluation_is_of_the_average(exp, batch, trained):
  states, _ = trained
  evaluate, key = jax.jit(exp.eval_step), jax.random.key(2)
  first = evaluate(states[-1], batch, key)
  assert evaluate(states[-1], batch, key) == first
  other = states[-1].replace(params=states[0].params)
  assert evaluate(other, batch, key)['loss'] == first['loss']
  other = states[-1].replace(ema=states[0].params)
  assert evaluate(other, batch, key)['loss'] != first['loss']


def test_evaluation_drops_nothing_and_keeps_the_voice():
  exp = experiment.make(config())
  train, held_out = (x.keywords['cfg'] for x in (exp.train_step, exp.eval_step))
  for name in ('drop_text', 'drop_audio', 'drop_reference', 'drop_all'):
    assert getattr(train, name) > 0 == getattr(held_out, name)
  assert exp.dataset.args[0].augment and not exp.eval_dataset.args[0].augment
  assert exp.tokens_per_step == 2 * 5  # Samples, latents of one token each.


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_the_state_lies_on_a_mesh(name):
  """Masked parts of an optimizer's state have no axes to lay out."""
  exp = experiment.make(config(name=name))
  mesh = mesh_lib.make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2, 'context': 1})
  state = mesh_lib.abstract_state(exp, mesh)
  specs = [x.sharding.spec for x in jax.tree.leaves(state.opt_state)]
  assert any('fsdp' in jax.tree.leaves(tuple(spec)) for spec in specs)


@pytest.mark.parametrize(
  ('part', 'key', 'near'),
  [
    ('model', 'dept', 'depth'),
    ('data', 'num_chunk', 'num_chunks'),
    ('flow', 'drop_txt', 'drop_text'),
    ('optimizer', 'learning_rat', 'learning_rate'),
  ],
)
def test_a_misspelt_key_is_one_line_with_its_neighbour(part, key, near):
  wrong = config()
  wrong[part][key] = 1
  with pytest.raises(UserError, match=f'{key!r}; did you mean {near!r}') as e:
    loop.build(wrong)
  assert '\n' not in str(e.value)
