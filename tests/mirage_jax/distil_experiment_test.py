"""Training of a student: the teacher stays, the student comes nearer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.mirage import grid_distil
from launch import loop
from launch.errors import UserError
from mirage_jax import distil_experiment, lora, train_step
from tests import tiny


def config():
  made = grid_distil.get_config()
  made.update(dict(batch_size=2, latent_size=(2, 2), num_steps=40))
  made.data.update(tiny.WINDOW)
  made.model.update(tiny.DIT)
  made.flow.update(dict(num_steps=4, drop_text=0.0, drop_reference=0.0))
  made.distil.update(dict(kept=(3,)))
  made.lora.update(dict(rank=2))
  made.optimizer.update(dict(learning_rate=0.02, warmup_steps=1, ema_decay=0.5))
  return tiny.plain(made)


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)

  def draw(spec):
    if spec.dtype == jnp.bool_:
      return np.ones(spec.shape, bool)
    if spec.dtype == jnp.int32:
      return rng.integers(1, 99, spec.shape).astype(np.int32)
    return rng.standard_normal(spec.shape).astype(np.float32)

  return jax.tree.map(draw, distil_experiment.abstract_batch(config(), 2))


@pytest.fixture(scope='module')
def exp():
  return distil_experiment.make(config())


@pytest.fixture(scope='module')
def fresh(exp):
  """What a run starts with that has found the teacher."""
  teacher = jax.tree.map(jnp.asarray, tiny.dit_params())
  cfg = lora.LoraConfig(rank=2, targets=('*',))
  changes = lora.init(jax.random.key(0), cfg, teacher)
  new = train_step.new_state(changes, exp.init.keywords['tx'])
  zeros = jax.tree.map(jnp.zeros_like, teacher)
  return exp.adopt(lora.LoraState(**vars(new), base=zeros), teacher)


@pytest.fixture(scope='module')
def trained(exp, fresh, batch):
  options = {'xla_backend_optimization_level': 0}
  step = jax.jit(exp.train_step, compiler_options=options)
  state, rows = fresh, []
  for _ in range(40):
    state, metrics = step(state, batch, jax.random.key(1))
    rows.append(jax.device_get(metrics))
  return state, rows


@pytest.mark.full
def test_only_changes_are_trained_and_all_of_them(fresh, trained):
  state, _ = trained
  jax.tree.map(np.testing.assert_array_equal, state.base, fresh.base)
  assert int(state.step) == 40
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), state.params, fresh.params
  )
  for path, change in jax.tree_util.tree_leaves_with_path(moved):
    assert change > 0, path


@pytest.mark.full
def test_it_comes_nearer_to_the_teachers_samples(exp, fresh, trained, batch):
  state, rows = trained
  losses = [row['loss'] for row in rows]
  assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
  assert set(rows[0]) == {'loss', 'grad_norm', 'loss_first', 'loss_last'}
  options = {'xla_backend_optimization_level': 0}
  evaluate = jax.jit(exp.eval_step, compiler_options=options)
  before, after = (
    evaluate(s, batch, jax.random.key(2)) for s in (fresh, state)
  )
  assert after['sample_error'] < 0.5 * before['sample_error']
  assert after['teacher_motion'] == before['teacher_motion'] > 0


def test_a_teacher_is_needed_and_stops_must_fit():
  wrong = config() | {'init_from': ''}
  with pytest.raises(UserError, match='init_from must name the teacher'):
    loop.build(wrong)
  wrong = config()
  wrong['distil']['kept'] = [4]
  with pytest.raises(UserError, match='kept must rise between 0 and the 4'):
    loop.build(wrong)
  wrong['distil'] = {'guidance': {'audoi': 3.0}, 'kept': [2]}
  with pytest.raises(UserError, match="'audoi'; did you mean 'audio'"):
    loop.build(wrong)
