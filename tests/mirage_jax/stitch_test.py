"""New streams on old weights: exact at first, in order, and whole at last."""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.mirage import grid_stitch
from mirage_jax import config as config_lib, dit, experiment, stitch, train_step
from tests import tiny

STREAM = config_lib.StreamConfig
POSE = STREAM(8, 16, in_dim=6, name='pose')
FULL = config_lib.MirageConfig(
  depth=2,
  num_heads=2,
  head_dim=8,
  video=STREAM(16, 32),
  text=STREAM(8, 16, in_dim=8),
  audio=STREAM(8, 16, in_dim=5),
  extra=(POSE,),
  latent_channels=3,
  text_vocab=11,
  text_pool_heads=2,
  rope_area=4.0,
  time_alignment=2.0,
  attention='recompute',
)
FAST = {'xla_backend_optimization_level': 0}  # To compile.
SIGMA = jnp.array([0.9, 0.4])
VIDEO = jax.random.normal(jax.random.key(0), (2, 5, 4, 4, 3))
COND = {
  'reference': jax.random.normal(jax.random.key(1), (2, 1, 4, 4, 3)),
  'reference_time': jnp.array([[-5.0], [20.0]]),
  'text': jax.random.randint(jax.random.key(2), (2, 3), 0, 11),
  'text_mask': jnp.array([[True, True, False], [True, True, True]]),
  'audio': jax.random.normal(jax.random.key(3), (2, 25, 5)),
  'pose': jax.random.normal(jax.random.key(4), (2, 25, 6)),
}


def without(cfg, names):
  changes = {name: None for name in names if name != 'pose'}
  if 'text' in names:
    changes['text_vocab'] = 0
  return dataclasses.replace(
    cfg, **changes, extra=() if 'pose' in names else cfg.extra
  )


def present(cfg, cond=COND):
  names = ('reference', *cfg.streams())
  return {k: v for k, v in cond.items() if k.split('_')[0] in names}


@functools.cache
def shapes(cfg):
  init = functools.partial(dit.Mirage(cfg).init, jax.random.key(5))
  made = jax.eval_shape(init, VIDEO, SIGMA, present(cfg))
  return nn.unbox(made)['params']


@functools.cache
def fresh(cfg):
  init = jax.jit(dit.Mirage(cfg).init, compiler_options=FAST)
  made = init(jax.random.key(5), VIDEO, SIGMA, present(cfg))
  return nn.unbox(made)['params']


@functools.cache
def compiled(cfg):
  return jax.jit(dit.Mirage(cfg).apply, compiler_options=FAST)


def velocity(cfg, params, cond):
  return compiled(cfg)({'params': params}, VIDEO, SIGMA, present(cfg) | cond)


@pytest.mark.parametrize(
  'new',
  [('audio',), pytest.param(('text', 'pose'), marks=pytest.mark.full)],
)
def test_at_first_the_old_model_is_there_to_the_bit(new):
  old = without(FULL, new)
  cfg = stitch.StitchConfig(new=new, ramp_steps=4)
  params = tiny.filled(shapes(old))
  joined = stitch.adopt(cfg, fresh(FULL), params)
  assert jax.tree.map(np.shape, joined) == jax.tree.map(np.shape, shapes(FULL))
  want = velocity(old, params, {})
  first = velocity(FULL, joined, stitch.shares(cfg, 0))
  np.testing.assert_array_equal(first, want)
  # Zero gates alone leave the keys, which take weight from the others.
  last, plain = stitch.shares(cfg, 4), velocity(FULL, joined, {})
  assert np.abs(plain - want).max() > 1e-3
  np.testing.assert_array_equal(velocity(FULL, joined, last), plain)
  moved = [
    np.abs(velocity(FULL, joined, stitch.shares(cfg, step)) - want).max()
    for step in (1, 2, 3)
  ]
  assert 0 < moved[0] < moved[1] < moved[2]


def test_old_queries_that_get_an_alignment_start_without_it():
  """As Mochi's, which have none; with keys that have, it can be learned."""
  full = without(FULL, ('pose',))
  old = dataclasses.replace(without(full, ('audio',)), time_alignment=0.0)
  made = tiny.filled(shapes(full), seed=3)
  cfg = stitch.StitchConfig(new=('audio',))
  joined = stitch.adopt(cfg, made, tiny.filled(shapes(old)))
  assert not joined['last']['video']['q_norm']['bias'].any()
  bias = joined['blocks']['audio']['k_norm']['bias']
  assert bias is made['blocks']['audio']['k_norm']['bias']


def test_the_clock_is_the_video_s():
  old = without(FULL, ('audio',))
  params, made = tiny.filled(shapes(old)), tiny.filled(shapes(FULL), seed=3)
  for copied in (True, False):
    cfg = stitch.StitchConfig(new=('audio',), copy_clock=copied)
    got = stitch.adopt(cfg, made, params)['audio_frequencies']
    want = made['audio_frequencies']
    if copied:
      want = np.zeros_like(want)
      want[0] = params['video_frequencies'][0]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
  ('new', 'cfg', 'found', 'said'),
  [
    ((), FULL, without(FULL, ('audio',)), 'lacks .*audio.* and .* more'),
    (('audio',), FULL, without(FULL, ('audio', 'pose')), 'lacks .*pose'),
    (('audio',), without(FULL, ('text',)), FULL, 'also has .*text'),
    ((), FULL, dataclasses.replace(FULL, depth=3), r'has blocks.* not \(1, '),
  ],
)
def test_other_weights_are_refused_by_name(new, cfg, found, said):
  recipe = stitch.StitchConfig(new=new)
  with pytest.raises(ValueError, match=said):
    stitch.adopt(recipe, shapes(cfg), tiny.filled(shapes(found)))


def test_every_parameter_belongs_to_a_stream():
  flat = jax.tree_util.tree_flatten_with_path(shapes(FULL))[0]
  paths = ['/'.join(entry.key for entry in path) for path, _ in flat]
  groups = {path: stitch.group(path) for path in paths}
  assert set(groups.values()) == {'video', 'text', 'audio', 'pose'}
  assert groups['pool/out/kernel'] == groups['text_ids/table'] == 'text'
  assert groups['out/kernel'] == groups['sigma/up/kernel'] == 'video'
  assert groups['last/audio/qkv/kernel'] == groups['audio_in/bias'] == 'audio'
  assert stitch.group('blocks/cross/q/kernel') == 'audio'


OPT = train_step.OptimizerConfig(
  learning_rate=0.1, warmup_steps=2, clip_norm=1.0, weight_decay=0.3
)


def run(tx, steps, pulls=()):
  """Parameters after each step down a slope; `pulls` steepen the audio's."""
  kernel = {'qkv': {'kernel': jnp.eye(4)[None] + 0.5}}
  params = {'blocks': {'video': kernel, 'audio': kernel}, 'out': jnp.ones(3)}
  slopes = jax.tree.map(
    lambda x: jnp.cos(jnp.arange(x.size * 1.0)).reshape(x.shape), params
  )

  def loss(params, pull):
    parts = jax.tree.map(lambda p, g: (p * g).sum(), params, slopes)
    parts['blocks']['audio']['qkv']['kernel'] *= pull
    return sum(jax.tree.leaves(parts)), {}

  @jax.jit
  def step(state, pull):
    return train_step.update(state, lambda p: loss(p, pull), tx, 0.9)[0]

  states = [train_step.new_state(params, tx)]
  for pull in pulls or (1.0,) * steps:
    states.append(step(states[-1], pull))
  return [jax.device_get(s.params) for s in states]


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_the_old_wait_and_then_start_as_if_it_were_the_first_step(name):
  opt = dataclasses.replace(OPT, name=name)
  cfg = stitch.StitchConfig(new=('audio',), warmup_steps=3)
  got = run(stitch.optimizer(opt, cfg, 10), 6)
  at = lambda tree, k: tree[k]['blocks']['video']['qkv']['kernel']
  for k in range(4):
    jax.tree.map(np.testing.assert_array_equal, at(got, k), at(got, 0))
    np.testing.assert_array_equal(got[k]['out'], got[0]['out'])
  # From then on, as a run of its own on what is old: Adam's averages too.
  only = stitch.StitchConfig(new=('audio',))
  alone = run(stitch.optimizer(opt, only, 7), 3)
  for k in range(4):
    np.testing.assert_allclose(at(got, 3 + k), at(alone, k), rtol=1e-6)
    np.testing.assert_allclose(got[3 + k]['out'], alone[k]['out'], rtol=1e-6)
  assert np.abs(at(got, 6) - at(got, 3)).max() > 0.05
  new = lambda k: got[k]['blocks']['audio']['qkv']['kernel']
  assert np.abs(new(3) - new(1)).min() > 0  # The first step's rate is zero.


def test_each_group_learns_at_its_own_rate():
  cfg = stitch.StitchConfig(factors={'audio': 0.25, 'video': 2.0})
  base = run(stitch.optimizer(OPT, stitch.StitchConfig(), 10), 2)
  got = run(stitch.optimizer(OPT, cfg, 10), 2)
  first, last = base[1], base[2]
  delta = lambda a, b: jax.tree.map(np.subtract, a, b)
  plain, scaled = delta(last, first), delta(got[2], got[1])
  for name, factor in (('audio', 0.25), ('video', 2.0)):
    a, b = (d['blocks'][name]['qkv']['kernel'] for d in (scaled, plain))
    np.testing.assert_allclose(a, factor * b, rtol=1e-4)


def test_large_slopes_of_the_new_do_not_clip_the_old():
  cfg = stitch.StitchConfig(new=('audio',))
  pulls = (1.0, 1.0, 1.0), (1.0, 100.0, 1.0)
  calm, steep = (run(stitch.optimizer(OPT, cfg, 10), 3, p) for p in pulls)
  np.testing.assert_allclose(calm[3]['out'], steep[3]['out'], rtol=1e-6)
  # Under one norm they do; and where nothing waits, it is the plain optimizer.
  one = stitch.StitchConfig(new=('audio',), clip_apart=False)
  calm, steep = (run(stitch.optimizer(OPT, one, 10), 3, p) for p in pulls)
  assert np.abs(calm[3]['out'] - steep[3]['out']).max() > 1e-3
  plain = run(stitch.optimizer(OPT, stitch.StitchConfig(), 10), 3, pulls[1])
  np.testing.assert_allclose(steep[3]['out'], plain[3]['out'], rtol=1e-6)


def test_the_share_rises_as_asked():
  for ramp, want in (('linear', 0.25), ('cosine', (1 - 0.5**0.5) / 2)):
    cfg = stitch.StitchConfig(new=('audio',), ramp_steps=4, ramp=ramp)
    got = [float(stitch.shares(cfg, k)['audio_share']) for k in (0, 1, 2, 4, 9)]
    np.testing.assert_allclose(got, [0, want, 0.5, 1, 1], atol=1e-6)


def test_single_conditions_come_before_the_join():
  cfg = stitch.StitchConfig(single_steps=3)
  batch = {'video': jnp.zeros((64, 1)), 'audio': jnp.zeros((64, 5, 2))}
  mask = jnp.ones((64, 3), bool).at[:, 2].set(False)
  batch |= {'text': jnp.zeros((64, 3), int), 'text_mask': mask}
  seen = stitch.during(cfg, batch, jnp.array(2), jax.random.key(0))
  audio, text = (np.asarray(seen[f'{n}_mask']) for n in ('audio', 'text'))
  assert (audio.any(1) ^ text.any(1)).all()
  assert 16 < audio.all(1).sum() < 48
  np.testing.assert_array_equal(text.any(1), text[:, :2].all(1))
  assert not text[:, 2].any()
  after = stitch.during(cfg, batch, jnp.array(3), jax.random.key(0))
  np.testing.assert_array_equal(after['text_mask'], mask)
  assert after['audio_mask'].all()


def tiny_config(variant):
  made = grid_stitch.get_config(variant)
  made.update(dict(batch_size=2, latent_size=(2, 2)))
  made.data.text_length = 8
  made.model.update({k: v for k, v in tiny.DIT.items() if k in made.model})
  return tiny.plain(made)


def random_batch(config):
  shapes = experiment.abstract_batch(config, 2)
  return {
    name: jax.random.normal(jax.random.key(6), x.shape)
    if x.dtype == jnp.float32
    else jnp.ones(x.shape, x.dtype)
    for name, x in shapes.items()
  }


@pytest.fixture(scope='module')
def experiments():
  return {n: experiment.make(tiny_config(n)) for n in ('silent', 'attach')}


def test_a_silent_model_has_batches_without_sound():
  batch = experiment.abstract_batch(tiny_config('silent'), 2)
  names = {'reference', 'reference_time', 'reference_mask', 'text', 'text_mask'}
  assert set(batch) == names | {'video'}
  both = experiment.abstract_batch(tiny_config('attach'), 2)
  assert set(both) == set(batch) | {'audio'}


@pytest.mark.full
def test_the_silent_run_goes_on_as_the_stitched_one(experiments):
  """The held-out loss before the first step is the old run's last one."""
  batch = random_batch(tiny_config('attach'))
  make = lambda name: nn.unbox(
    jax.eval_shape(experiments[name].init, jax.random.key(0))
  )
  old = jax.tree.map(jnp.asarray, tiny.filled(make('silent').params))
  state = make('attach')
  empty = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), state)
  state = experiments['attach'].adopt(empty.replace(step=0), old)
  silent = {k: v for k, v in batch.items() if k != 'audio'}
  key = jax.random.key(1)
  before = make('silent').replace(ema=old, step=600)
  args = (before.replace(params=(), opt_state=()), silent, key)
  want = jax.jit(experiments['silent'].eval_step)(*args)
  evaluate = jax.jit(experiments['attach'].eval_step)
  state = state.replace(opt_state=(), params=())
  assert evaluate(state, batch, key)['loss'] == want['loss']
  later = evaluate(state.replace(step=50), batch, key)
  assert later['loss'] != want['loss']


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    (dict(new=('sound',)), r"new has \['sound'\]; .* video, text, audio"),
    (dict(factors={'pose': 1.0}), r"factors has \['pose'\]"),
    (dict(warmup_steps=600), 'none of num_steps 600'),
    (dict(new=('video',)), 'cannot be new'),
    (dict(new=()), 'name them'),
    (dict(ramp_steps=-1), 'ramp_steps must not be negative'),
    (dict(ramp='steep'), "ramp is 'linear' or 'cosine', not 'steep'"),
    (dict(factors={'text': -1.0}), 'factors.text must not be negative'),
    (dict(warm_up=3), "'warm_up'; did you mean 'warmup_steps'"),
  ],
)
def test_a_recipe_that_does_not_fit_is_told(changes, said):
  wrong = tiny_config('attach')
  wrong['stitch'].update(changes)
  with pytest.raises(ValueError, match=said):
    experiment.make(wrong)


def test_a_pose_joins_a_model_that_hears():
  """Another modality: six lines of config, and a batch that has it."""
  hears, key = tiny_config('scratch'), jax.random.key(1)
  made = tiny_config('scratch') | {'num_steps': 10}
  made['model']['extra'] = [dict(name='pose', width=8, mlp_dim=16, in_dim=6)]
  made['stitch'] = dict(new=['pose'], warmup_steps=2, ramp_steps=2)
  made['optimizer'] |= dict(name='adamw', warmup_steps=1)
  exp, batch = experiment.make(made), random_batch(made)
  assert batch['pose'].shape == (2, 25, 6)
  old = experiment.make(hears)
  init = lambda key: nn.unbox(exp.init(key))
  state = jax.jit(init, compiler_options=FAST)(key)
  params = tiny.filled(nn.unbox(jax.eval_shape(old.init, key)).params)
  state = jax.tree.map(jnp.asarray, exp.adopt(state, params))
  without = {k: v for k, v in batch.items() if k != 'pose'}
  silent = state.replace(ema=jax.tree.map(jnp.asarray, params), opt_state=())
  first, want = (
    jax.jit(e.eval_step, compiler_options=FAST)(*args, key)['loss']
    for e, args in ((exp, (state, batch)), (old, (silent, without)))
  )
  assert first == want
  step = jax.jit(exp.train_step, compiler_options=FAST)
  states = [state]
  for _ in range(4):
    states.append(step(states[-1], batch, key)[0])
  before, warm, after = (states[k].params for k in (0, 2, 4))
  for path, x in jax.tree.leaves_with_path(before):
    names = [entry.key for entry in path]
    pick = lambda tree, names=names: functools.reduce(dict.get, names, tree)
    is_new = stitch.group('/'.join(names)) == 'pose'
    assert is_new or np.array_equal(x, pick(warm)), names
    assert is_new or not np.array_equal(x, pick(after)), names
  assert np.any(
    after['last']['pose']['qkv']['kernel']
    != before['last']['pose']['qkv']['kernel']
  )
