"""Low-rank changes: nothing at first, the same merged, and the base stays."""

from flax import linen as nn, traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.mirage import grid
from mirage_jax import config as config_lib, experiment, lora, train_step
from mirage_jax.dit import Mirage
from tests import tiny

CFG = lora.LoraConfig(rank=3, alpha=6.0, targets=('*',))  # All there are.
MODEL = Mirage(config_lib.build(config_lib.MirageConfig, tiny.DIT))


@pytest.fixture(scope='module')
def base():
  return tiny.dit_params()


@pytest.fixture(scope='module')
def velocity():
  keys = jax.random.split(jax.random.key(0), 3)
  cond = {
    'audio': jax.random.normal(keys[0], (2, 25, 320)),
    'text': jnp.ones((2, 8), jnp.int32),
  }
  video, sigma = jax.random.normal(keys[1], (2, 5, 2, 2, 3)), jnp.full(2, 0.7)
  return jax.jit(lambda p: MODEL.apply({'params': p}, video, sigma, cond))


def drawn(changes):
  """As if they had been learned."""
  leaves, tree = jax.tree.flatten(changes)
  rng = np.random.default_rng(0)
  leaves = [0.3 * rng.standard_normal(x.shape, np.float32) for x in leaves]
  return jax.tree.unflatten(tree, leaves)


def test_fresh_changes_change_nothing(base, velocity):
  changes = lora.init(jax.random.key(1), CFG, base)
  got, want = velocity(lora.attach(base, changes, CFG)), velocity(base)
  # Exact, but that XLA fuses the two programs in other ways.
  np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max())
  assert not np.any(changes['out']['lora_b'])
  a = changes['blocks']['video']['qkv']['lora_a']
  assert a.shape == (1, 16, 3)
  assert np.std(a) == pytest.approx(16**-0.5, rel=0.3)


def test_every_linear_layer_may_change(base):
  flat = traverse_util.flatten_dict(base, sep='/')
  kernels = {path for path in flat if path.endswith('/kernel')}
  assert {f'{path}/kernel' for path in lora.layers(CFG, base)} == kernels
  assert {'pool/kv/kernel', 'sigma/up/kernel'} < kernels
  some = lora.LoraConfig(1, targets=('blocks/video/*', '*_in'))
  found = lora.layers(some, base)
  assert 'blocks/video/mlp/up' in found and 'text_in' in found
  assert not any(path.startswith(('last', 'pool')) for path in found)


def test_merged_they_do_the_same(base, velocity):
  changes = drawn(lora.init(jax.random.key(1), CFG, base))
  beside = velocity(lora.attach(base, changes, CFG))
  merged = lora.merge(base, changes, CFG)
  assert jax.tree.map(np.shape, merged) == jax.tree.map(np.shape, base)
  error = np.abs(beside - velocity(merged)).max()
  largest = np.abs(beside - velocity(base)).max()
  assert error < 1e-5 * largest


def test_a_kernel_changes_by_the_product(base):
  changes = drawn(lora.init(jax.random.key(1), CFG, base))
  merged = lora.merge(base, changes, CFG)
  for path, rule in (
    (('blocks', 'video', 'out'), 'lhdr,lrw->lhdw'),
    (('last', 'audio', 'qkv'), 'wr,rjhd->wjhd'),
    (('audio_in',), 'wr,rd->wd'),
  ):
    kernel, change, after = base, changes, merged
    for name in path:
      kernel, change, after = kernel[name], change[name], after[name]
    product = np.einsum(rule, change['lora_a'], change['lora_b'])
    want = kernel['kernel'] + 2.0 * product  # alpha / rank
    np.testing.assert_allclose(after['kernel'], want, rtol=1e-5, atol=1e-6)
  merged = lora.merge(base, {'audio_in': changes['audio_in']}, CFG)
  jax.tree.map(np.testing.assert_array_equal, merged['blocks'], base['blocks'])


def test_a_part_of_a_kernel_changes_as_in_the_whole():
  rng = np.random.default_rng(0)
  a, b = rng.standard_normal((3, 4, 2)), rng.standard_normal((3, 2, 5, 6))
  name = 'blocks/video/qkv/kernel'
  whole, part = lora.delta(CFG, name, a, b), slice(1, 2)
  np.testing.assert_allclose(
    whole, 2.0 * np.einsum('lir,lrab->liab', a, b), rtol=1e-5, atol=1e-5
  )
  got = lora.delta(CFG, name, a[part], b[part])
  np.testing.assert_array_equal(got, whole[part])
  whole = lora.delta(CFG, 'text_in/kernel', a[0], b[0])
  got = lora.delta(CFG, 'text_in/kernel', a[0][part], b[0])
  np.testing.assert_allclose(got, whole[part], rtol=1e-6)


def test_changes_of_another_model_are_refused(base):
  changes = lora.init(jax.random.key(1), CFG, base)
  with pytest.raises(ValueError, match='no audio_in/kernel of'):
    lora.merge({k: v for k, v in base.items() if k != 'audio_in'}, changes, CFG)
  with pytest.raises(ValueError, match="is 'blocks/video/qvk'; there are"):
    lora.layers(lora.LoraConfig(1, targets=('blocks/video/qvk',)), base)


def config(**changes):
  made = grid.get_config('dit')
  made.update(dict(batch_size=2, latent_size=(2, 2), init_from='a.safetensors'))
  made.data.update(tiny.WINDOW)
  made.model.update(tiny.DIT)
  made.optimizer.update(dict(learning_rate=0.02, warmup_steps=1))
  return tiny.plain(made) | {'lora': {'rank': 3, **changes}}


def test_only_the_changes_are_trained(base):
  exp = experiment.make(config())
  shapes = nn.unbox(jax.eval_shape(exp.init, jax.random.key(0)))
  assert jax.tree.map(np.shape, shapes.base) == jax.tree.map(np.shape, base)
  held = sum(x.size for x in jax.tree.leaves(shapes.opt_state))
  learned = sum(x.size for x in jax.tree.leaves(shapes.params))
  assert held < 2 * learned + 20  # Adam's moments, and counts.
  rng = jax.random.key(2)
  batch = {
    name: jax.random.normal(rng, x.shape)
    if x.dtype == jnp.float32
    else jnp.ones(x.shape, x.dtype)
    for name, x in experiment.abstract_batch(config(), 2).items()
  }
  lora_cfg, tx = (exp.init.keywords[name] for name in ('lora', 'tx'))
  fresh = train_step.new_state(lora.init(rng, lora_cfg, base), tx)
  state = lora.LoraState(**vars(fresh), base=jax.tree.map(jnp.zeros_like, base))
  assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, shapes)
  state = jax.tree.map(jnp.asarray, exp.adopt(state, base))
  options = {'xla_backend_optimization_level': 0}
  step = jax.jit(exp.train_step, compiler_options=options)
  first = state
  for _ in range(3):
    state, metrics = step(state, batch, jax.random.key(3))
    assert np.isfinite(metrics['loss'])
  jax.tree.map(np.testing.assert_array_equal, state.base, base)
  for tree in (state.params, state.ema):
    moved = jax.tree.map(
      lambda a, b: np.abs(a - b).max() > 0, tree, first.params
    )
    assert all(jax.tree.leaves(moved))
  assert int(state.step) == 3


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    (dict(lora={'rank': 0}), 'rank must be at least 1'),
    (dict(lora={'rank': 2, 'alpha': -1.0}), 'alpha must not be negative'),
    (dict(init_from=''), 'name them in init_from'),
    (dict(stitch={'new': ['audio']}), 'do not go together'),
  ],
)
def test_what_does_not_fit_is_told(changes, said):
  with pytest.raises(ValueError, match=said):
    experiment.make(config() | changes)
