"""Training of AMDIM as the loop drives it, on a folder of pictures."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from infomax_jax import experiment

CONFIG = dict(
  experiment='infomax_jax.experiment',
  seed=0,
  batch_size=8,
  data=dict(train='', recipe='cifar', hold_out=2),
  encoder=dict(image_size=32, ndf=4, n_rkhs=32, n_depth=1),
  objective=dict(block=4),
  heads=dict(num_classes=2, hidden=16),
  optimizer=dict(learning_rate=2e-3, warmup_steps=5),
)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The experiment, its state after 12 steps, and the metrics of each."""
  folder, rng = tmp_path_factory.mktemp('pictures'), np.random.default_rng(0)
  for name, colour in (('blue', 2), ('red', 0)):
    (folder / name).mkdir()
    for n in range(12):
      picture = rng.integers(0, 256, (8, 8, 3)).repeat(4, 0).repeat(4, 1)
      picture[..., colour] = 255
      path = folder / name / f'{n:02}.png'
      Image.fromarray(picture.astype(np.uint8)).save(path)
  config = CONFIG | {'data': CONFIG['data'] | {'train': str(folder)}}
  exp = experiment.make(config)
  state = nn.unbox(jax.jit(exp.init)(jax.random.key(0)))
  step, rows = jax.jit(exp.train_step), []
  for _, batch in zip(range(12), exp.dataset(), strict=False):
    state, metrics = step(state, batch, jax.random.key(1))
    rows.append(jax.device_get(metrics))
  return exp, state, rows


def test_the_loss_is_the_sum_of_its_parts(run):
  _, state, rows = run
  parts = ('1t5', '1t7', '5t5', 'lgt_reg', 'loss_linear', 'loss_mlp')
  for row in rows:
    assert row['loss'] == pytest.approx(sum(row[p] for p in parts), rel=1e-5)
  assert int(state.step) == 12


def test_a_step_takes_what_it_gives_and_compiles_once(run):
  exp, state, _ = run
  fresh = nn.unbox(jax.eval_shape(exp.init, jax.random.key(0)))
  kind = lambda x: (x.shape, x.dtype, x.weak_type)
  assert jax.tree.map(kind, fresh) == jax.tree.map(kind, state)


def test_training_lowers_the_loss_of_what_it_trains_on(run):
  exp, _, _ = run
  state, rows = nn.unbox(jax.jit(exp.init)(jax.random.key(0))), []
  batch, step = next(iter(exp.dataset())), jax.jit(exp.train_step)
  for _ in range(12):
    # Step 0 again: the same places are sources each time.
    state = state.replace(step=jnp.zeros_like(state.step))
    state, metrics = step(state, batch, jax.random.key(1))
    rows.append(metrics)
  assert rows[-1]['loss_infomax'] < 0.98 * rows[0]['loss_infomax']


def test_both_views_move_the_running_statistics(run):
  exp, state, _ = run
  fresh = nn.unbox(jax.jit(exp.init)(jax.random.key(0)))
  moved = jax.tree.map(
    lambda a, b: float(jnp.abs(a - b).max()),
    state.batch_stats,
    fresh.batch_stats,
  )
  assert min(jax.tree.leaves(moved)) > 0


def test_the_held_out_images_are_judged_once_each(run):
  exp, state, _ = run
  batches = list(exp.eval_dataset())
  assert sum(batch['mask'].sum() for batch in batches) == 4
  metrics = exp.eval_step(state, batches[0], jax.random.key(0))
  for value in metrics.values():
    assert float(value) in (0, 0.25, 0.5, 0.75, 1)


def test_the_optimizer_is_adam_with_l2_in_the_gradient():
  torch_like = experiment.OptimizerConfig(
    learning_rate=0.1, warmup_steps=4, milestones=(6,), l2=0.5
  )
  tx = experiment.optimizer(torch_like)
  x, state = jnp.array(2.0), tx.init(jnp.array(2.0))
  m = v = 0.0
  for t in range(8):
    gradient = jnp.sin(x)
    update, state = tx.update(gradient, state, x)
    g = float(gradient) + 0.5 * float(x)
    m, v = 0.8 * m + 0.2 * g, 0.999 * v + 0.001 * g * g
    rate = 0.1 * min(1, (t + 1) / 4) * (0.2 if t >= 6 else 1)
    want = m / (1 - 0.8 ** (t + 1))
    want *= -rate / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
    assert float(update) == pytest.approx(want, rel=1e-4), t
    x = x + update


def test_sizes_that_differ_are_refused():
  config = CONFIG | {'data': CONFIG['data'] | {'size': 64}}
  with pytest.raises(ValueError, match='views are of 64 pixels'):
    experiment.make(config)


def test_chunks_that_do_not_divide_the_batch_are_refused():
  with pytest.raises(ValueError, match='chunks 3 does not divide batch_size 8'):
    experiment.make(CONFIG | {'chunks': 3})


def test_more_classes_than_logits_are_refused(tmp_path):
  """They would be labels without a logit, and the loss no number."""
  for name in ('a', 'b', 'c'):
    (tmp_path / name).mkdir()
    for n in range(5):
      Image.new('RGB', (32, 32)).save(tmp_path / name / f'{n}.png')
  source = CONFIG['data'] | {'train': str(tmp_path)}
  exp = experiment.make(CONFIG | {'data': source})
  for pipeline in (exp.dataset, exp.eval_dataset):
    with pytest.raises(ValueError, match='3 classes, heads.num_classes is 2'):
      pipeline()
  enough = CONFIG | {'data': source, 'heads': dict(num_classes=3)}
  assert experiment.make(enough).dataset()
