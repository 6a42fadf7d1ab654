"""The transformer as a whole: influence, equivalences, shardings, size."""

import dataclasses
import functools

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mirage_jax import config, dit, sharding

STREAM = config.StreamConfig
CFG = config.MirageConfig(
  depth=3,
  num_heads=2,
  head_dim=8,
  video=STREAM(16, 32),
  text=STREAM(8, 16, in_dim=8),
  audio=STREAM(8, 16, in_dim=5),
  latent_channels=3,
  text_vocab=11,
  text_pool_heads=2,
  rope_area=4.0,
)
SMALL = dataclasses.replace(CFG, text=None, text_vocab=0)  # compiles faster
CROSS = dataclasses.replace(
  CFG, audio_fusion='cross', audio=STREAM(8, 0, in_dim=5)
)
STEM = dataclasses.replace(CFG, audio=STREAM(8, 16, in_dim=5, stem=2))
SIGMA = jnp.array([0.9, 0.4])
VIDEO = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 3))


def make_cond():
  keys = jax.random.split(jax.random.key(1), 3)
  return {
    'reference': jax.random.normal(keys[0], (2, 2, 4, 4, 3)),
    'reference_time': jnp.array([[-5.0, 12.0], [20.0, -2.0]]),
    'reference_mask': jnp.array([[True, False], [True, True]]),
    'text': jax.random.randint(keys[1], (2, 3), 0, 11),
    'text_mask': jnp.array([[True, True, False], [True, True, True]]),
    'audio': jax.random.normal(keys[2], (2, 10, 5)),
    'audio_mask': jnp.arange(10)[None] < jnp.array([[10], [7]]),
  }


@functools.cache
def make(cfg):
  """The model and parameters that are nowhere zero, and fresh ones."""
  cond = make_cond()
  if cfg.text is None:
    cond = {'audio': cond['audio']}
  model = dit.Mirage(cfg)
  fresh = nn.unbox(jax.jit(model.init)(jax.random.key(2), VIDEO, SIGMA, cond))[
    'params'
  ]
  leaves, tree = jax.tree.flatten(fresh)
  rng = np.random.default_rng(0)
  leaves = [x + 0.2 * rng.standard_normal(x.shape, np.float32) for x in leaves]
  apply = jax.jit(lambda *args: model.apply({'params': args[0]}, *args[1:]))
  return apply, jax.tree.unflatten(tree, leaves), fresh


@pytest.fixture(params=[CFG, CROSS, STEM], ids=['joint', 'cross', 'stem'])
def model(request):
  return make(request.param)[:2]


@pytest.fixture
def joint():
  return make(CFG)[:2]


def poke(cond, name, b, i):
  value = cond[name]
  if name == 'text':
    return cond | {name: value.at[b, i].set((value[b, i] + 1) % 11)}
  return cond | {name: value.at[b, i].add(3.0)}


def test_tokens_count_exactly_where_their_mask_says(model):
  apply, params = model
  cond = make_cond()
  base = apply(params, VIDEO, SIGMA, cond)
  for name in ('reference', 'text', 'audio'):
    mask = cond[f'{name}_mask']
    for b in range(2):
      for i in range(mask.shape[1]):
        after = apply(params, VIDEO, SIGMA, poke(cond, name, b, i))
        moved = np.abs(after - base).max((1, 2, 3, 4))
        assert moved[1 - b] == 0, 'samples are independent'
        assert (moved[b] > 1e-5) == mask[b, i], (name, b, i, moved)


@pytest.mark.parametrize('gone', [('text', 'audio'), ('reference', 'audio')])
def test_absent_is_masked_out(joint, gone):
  apply, params = joint
  cond = make_cond()
  masks = {f'{n}_mask': jnp.zeros_like(cond[f'{n}_mask']) for n in gone}
  masked = apply(params, VIDEO, SIGMA, cond | masks)
  left = {k: v for k, v in cond.items() if k.split('_')[0] not in gone}
  absent = apply(params, VIDEO, SIGMA, left)
  np.testing.assert_allclose(absent, masked, atol=2e-5 * np.abs(masked).max())


def test_reference_tokens_are_modulated_as_clean(joint):
  """So they need no flag where the video is clean, too."""
  apply, params = joint
  cfg = dataclasses.replace(CFG, reference_sigma_zero=False)
  noisy, cond = make(cfg)[0], make_cond()
  clean = jnp.zeros(2)
  a, b = (f(params, VIDEO, clean, cond) for f in (apply, noisy))
  np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())
  a, b = (f(params, VIDEO, SIGMA, cond) for f in (apply, noisy))
  assert np.abs(a - b).max() > 1e-3 * np.abs(b).max()


def test_only_relative_time_counts(joint):
  apply, params = joint
  # Each stream learns its own frequencies: this holds within the video stream.
  cond = {k: v for k, v in make_cond().items() if 'reference' in k}
  base = apply(params, VIDEO, SIGMA, cond | {'video_start': jnp.zeros(2)})
  start = jnp.array([50.0, 100.0])
  late = cond | {'video_start': start}
  moved = apply(params, VIDEO, SIGMA, late)
  assert np.abs(moved - base).max() > 1e-3  # the reference is further away
  late['reference_time'] = cond['reference_time'] + start[:, None] / 5
  again = apply(params, VIDEO, SIGMA, late)
  np.testing.assert_allclose(again, base, atol=1e-4 * np.abs(base).max())


def test_a_fresh_model_predicts_zero():
  apply, _, fresh = make(CFG)
  velocity = apply(fresh, VIDEO, SIGMA, make_cond())
  assert velocity.shape == VIDEO.shape and velocity.dtype == jnp.float32
  assert not np.any(velocity)


def test_a_predicted_data_latent_becomes_the_velocity_towards_it():
  _, params, _ = make(SMALL)
  cond = {'audio': make_cond()['audio']}
  model = dit.Mirage(dataclasses.replace(SMALL, prediction='data'))
  sigma = jnp.array([0.9, 0.01])
  got = model.apply({'params': params}, VIDEO, sigma, cond)
  same = dit.Mirage(SMALL).apply({'params': params}, VIDEO, sigma, cond)
  least = np.array([0.9, dit.MIN_SIGMA]).reshape(2, 1, 1, 1, 1)
  np.testing.assert_allclose(got, (same - VIDEO) / least, atol=1e-4)


@pytest.mark.parametrize('cfg', [CFG, CROSS], ids=['joint', 'cross'])
def test_aligned_video_hears_its_own_time(cfg):
  cfg = dataclasses.replace(cfg, text=None, text_vocab=0, head_dim=48)
  changes = {}
  for alignment in (0.0, 4.0):
    model = dit.Mirage(dataclasses.replace(cfg, time_alignment=alignment))
    audio = jax.random.normal(jax.random.key(1), (2, 25, 5))
    video = jax.random.normal(jax.random.key(0), (2, 5, 4, 4, 3))
    fresh = nn.unbox(
      model.init(jax.random.key(2), video, SIGMA, {'audio': audio})
    )['params']
    opened = jax.tree_util.tree_map_with_path(_open_gates, fresh)
    apply = jax.jit(functools.partial(model.apply, {'params': opened}))
    base = apply(video, SIGMA, {'audio': audio})
    # The sound of frames 7 to 12, which are latent 2.
    poked = apply(video, SIGMA, {'audio': audio.at[:, 7:13].add(3.0)})
    change = np.square(poked - base).mean(axis=(0, 2, 3, 4))
    changes[alignment] = change[2] / np.delete(change, 2).max()
  assert changes[0.0] < 2 < changes[4.0], changes


def _open_gates(path, x):
  """Nothing gets through a fresh model: its gates and last layer are zero."""
  name = jax.tree_util.keystr(path)
  if 'modulation' in name and 'bias' in name:
    return x + 0.5
  if "'out'" in name and 'kernel' in name and not np.any(x):
    return jax.random.normal(jax.random.key(3), x.shape)
  return x


@pytest.mark.full
def test_remat_changes_no_gradient():
  _, params, _ = make(SMALL)
  cond = {'audio': make_cond()['audio']}

  def grads(**changes):
    model = dit.Mirage(dataclasses.replace(SMALL, **changes))

    def total(params):
      velocity = model.apply({'params': params}, VIDEO, SIGMA, cond)
      return jnp.mean(jnp.square(velocity))

    return jax.jit(jax.grad(total))(params)

  want, got = grads(), grads(remat='dots', attention='recompute')
  pairs = zip(
    jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True
  )
  for (path, a), b in pairs:
    at, largest = jax.tree_util.keystr(path), np.abs(b).max()
    assert largest > 0, f'{at} has no gradient'
    np.testing.assert_allclose(a, b, atol=1e-4 * largest, err_msg=at)


def test_bfloat16_is_near_float32():
  apply, params, _ = make(SMALL)
  cond = {'audio': make_cond()['audio']}
  want = apply(params, VIDEO, SIGMA, cond)
  got = make(dataclasses.replace(SMALL, dtype='bfloat16'))[0](
    params, VIDEO, SIGMA, cond
  )
  assert got.dtype == jnp.float32
  error = np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))
  assert 1e-4 < error < 0.05  # 2 ** -8 a rounding, over three blocks


def test_sharded_equals_unsharded(joint):
  apply, params = joint
  want = apply(params, VIDEO, SIGMA, make_cond())
  axes = ('data', 'fsdp', 'context', 'tensor')
  auto = (jax.sharding.AxisType.Auto,) * 4
  mesh = jax.make_mesh((1, 2, 2, 2), axes, axis_types=auto)
  model = dit.Mirage(CFG)
  key = jax.random.key(0)
  boxed = jax.eval_shape(model.init, key, VIDEO, SIGMA, make_cond())
  shardings = nn.logical_to_mesh_sharding(
    nn.get_partition_spec(boxed), mesh, sharding.AXIS_RULES
  )['params']
  spec = shardings['blocks']['video']['qkv']['kernel'].spec
  assert spec == jax.P(None, 'fsdp', None, 'tensor', None)
  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.AXIS_RULES):
    placed = jax.device_put(params, shardings)
    compiled = (
      jax.jit(model.apply)
      .lower({'params': placed}, VIDEO, SIGMA, make_cond())
      .compile()
    )
    got = compiled({'params': placed}, VIDEO, SIGMA, make_cond())
  np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
  # Constraints vanish without a word when mesh or rules are out of scope.
  assert 'all-reduce' in compiled.as_text()


def test_ids_and_features_do_not_mix(joint):
  cond = make_cond() | {'text': jnp.zeros((2, 3, 8))}
  with pytest.raises(ValueError, match='text is float32.*text_vocab is 11'):
    joint[0](joint[1], VIDEO, SIGMA, cond)


def test_a_model_refuses_streams_it_lacks():
  cond = {'audio': jnp.zeros((2, 10, 5))}
  cfg = dataclasses.replace(CFG, audio=None)
  with pytest.raises(ValueError, match='no audio stream'):
    jax.eval_shape(dit.Mirage(cfg).init, jax.random.key(0), VIDEO, SIGMA, cond)


def test_cross_can_spend_as_many_parameters_as_joint():
  """Widths free audio's MLP and queries: the ablation's budgets agree."""
  common = dict(
    depth=8,
    num_heads=4,
    head_dim=64,
    text=STREAM(64, 176, in_dim=64),
    latent_channels=3,
    text_vocab=11,
  )
  joint = config.MirageConfig(
    video=STREAM(256, 680), audio=STREAM(192, 512, in_dim=5), **common
  )
  cross = config.MirageConfig(
    video=STREAM(256, 976),
    audio=STREAM(256, 0, in_dim=5),
    audio_fusion='cross',
    **common,
  )
  sizes = []
  for cfg in (joint, cross):
    shapes = jax.eval_shape(
      dit.Mirage(cfg).init, jax.random.key(0), VIDEO, SIGMA, make_cond()
    )
    sizes.append(dit.count_params(shapes))
  assert abs(sizes[0] / sizes[1] - 1) < 0.01, sizes
