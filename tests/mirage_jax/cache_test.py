"""Step caching: what is used again, when, and that nothing else changes."""

import functools

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mirage_jax import cache, config, dit, flow, sampler, sharding, skip
from mirage_jax.cache import Caching, Fresh
from mirage_jax.guidance import Guidance, Weight
from mirage_jax.schedules import Window

STREAM = config.StreamConfig
MODEL = dit.Mirage(
  config.MirageConfig(
    depth=2,
    num_heads=2,
    head_dim=4,
    video=STREAM(8, 16),
    audio=STREAM(4, 8, in_dim=3),
    latent_channels=2,
    rope_area=4.0,
  )
)
NOISE = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 2))
SIGMAS = flow.linear_quadratic(8)
AUDIO = Guidance(audio=3.0)
ALL = Caching(guidance=2, attention=2, blocks=2)


def make_cond():
  keys = jax.random.split(jax.random.key(1))
  return {
    'audio': jax.random.normal(keys[0], (2, 10, 3)),
    'audio_mask': jnp.ones((2, 10), bool),
    'reference': jax.random.normal(keys[1], (2, 2, 4, 4, 2)),
    'reference_time': jnp.array([[-5.0, -1.0]] * 2),
  }


@functools.cache
def params():
  """Nowhere zero, as fresh gates are."""
  init = functools.partial(MODEL.init, jax.random.key(2))
  shapes = jax.eval_shape(init, NOISE, jnp.ones(2), make_cond())
  rng = np.random.default_rng(0)
  draw = lambda x: 0.4 * rng.standard_normal(x.shape, np.float32)
  return jax.tree.map(draw, nn.unbox(shapes)['params'])


def advance(params, x, cond, memory, fresh):
  push = cache.cached(cache.Bound(MODEL, params), AUDIO, ALL)
  return push(x, jnp.full(2, 0.7), cond, memory, fresh)


@jax.jit
def plain(params, x, cond):
  return cache.Bound(MODEL, params)(x, jnp.full(2, 0.7), cond)


fast = jax.jit(advance)


@pytest.fixture(scope='module')
def start():
  """What a step that computes everything gives: velocity, memory."""
  bound, cond = cache.Bound(MODEL, params()), make_cond()
  memory = cache.empty(bound, AUDIO, ALL, NOISE, cond)
  return fast(params(), NOISE, cond, memory, Fresh(True, True, True))


def test_a_step_that_computes_everything_is_plain_guidance(start):
  velocity, memory = start
  full = plain(params(), NOISE, make_cond())
  silent = make_cond() | {'audio_mask': jnp.zeros((2, 10), bool)}
  other = plain(params(), NOISE, silent)
  assert np.abs(full - other).max() > 0.01
  np.testing.assert_allclose(velocity, other + 3 * (full - other), atol=1e-5)
  np.testing.assert_allclose(memory.differences[0], full - other, atol=1e-5)


@pytest.mark.parametrize(
  'fresh',
  [
    Fresh(False, True, True),
    Fresh(False, False, True),
    Fresh(False, False, False),
  ],
)
def test_at_the_same_point_what_is_used_again_is_right(start, fresh):
  velocity, memory = start
  again, kept = fast(params(), NOISE, make_cond(), memory, fresh)
  np.testing.assert_allclose(again, velocity, atol=1e-5)
  for a, b in zip(*map(jax.tree.leaves, (kept, memory)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_what_is_used_again_is_what_was_kept(start):
  """Not what the step would find: other sound reaches video by attention."""
  velocity, memory = start
  cond = make_cond()
  cond['audio'] = -cond['audio']
  run = lambda fresh: fast(params(), NOISE, cond, memory, fresh)[0]
  heard = plain(params(), NOISE, cond)
  want = heard + 2 * memory.differences[0]
  np.testing.assert_allclose(run(Fresh(False, True, True)), want, atol=1e-5)
  again = run(Fresh(False, False, True))
  np.testing.assert_allclose(again, velocity, atol=1e-5)
  assert np.abs(want - velocity).max() > 0.01


def test_blocks_used_again_change_their_input_as_before(start):
  """By hand: the last block and the output, of another noise plus `change`."""
  _, memory = start
  x, cond, change = 0.5 * NOISE, make_cond(), memory.kept.change
  fresh = Fresh(False, False, False)
  got, kept = fast(params(), x, cond, memory, fresh)
  for a, b in zip(*map(jax.tree.leaves, (kept.kept, memory.kept)), strict=True):
    np.testing.assert_array_equal(a, b)
  still = cache.Bound(MODEL, skip.without_blocks(params(), [0]))
  as_before = jax.tree.map(jnp.zeros_like, change)
  run = jax.jit(lambda part: still.reuse(x, jnp.full(2, 0.7), cond, part))
  # Blocks that do nothing are blocks whose change is zero.
  np.testing.assert_allclose(
    run(as_before), still(x, jnp.full(2, 0.7), cond), atol=1e-5
  )
  want = run(change) + 2 * memory.differences[0]
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert np.abs(run(change) - run(as_before)).max() > 0.01


def test_what_is_used_again_is_not_computed():
  bound, cond = cache.Bound(MODEL, params()), make_cond()
  args = NOISE, jnp.full(2, 0.7), cond
  _, kept = jax.eval_shape(bound.keep, *args)
  flops = lambda f, *args: jax.jit(f).lower(*args).cost_analysis()['flops']
  keep = flops(bound.keep, *args)
  assert flops(bound.reuse, *args, kept.attended) < 0.7 * keep
  assert flops(bound.reuse, *args, kept.change) < 0.6 * keep
  # Kept is one array a stream and block, in the stream's width.
  blocks = kept.attended['blocks']['attended']
  assert blocks['video'].shape == (1, 2, 16, 8)
  assert blocks['audio'].shape == (1, 2, 10, 4)
  assert kept.attended['last']['attended']['video'].shape == (2, 8, 8)
  assert kept.change['change']['video'].shape == (2, 16, 8)
  empty = functools.partial(cache.empty, bound, AUDIO, Caching(2))
  assert jax.eval_shape(empty, NOISE, cond).kept == ((), ())


@pytest.mark.parametrize(
  ('caching', 'guidance', 'branches', 'attention', 'blocks'),
  [
    (cache.OFF, AUDIO, '11111111', '11111111', '11111111'),
    (Caching(guidance=4), AUDIO, '10001000', '11111111', '11111111'),
    (Caching(attention=3), AUDIO, '11111111', '11111111', '11111111'),
    (Caching(attention=3), Guidance(), '00000000', '10010010', '11111111'),
    (Caching(4, 2), AUDIO, '10001000', '10101010', '11111111'),
    (Caching(3, 2), AUDIO, '10010010', '10110110', '11111111'),
    (Caching(4, 4, last=2), AUDIO, '10001011', '10001011', '11111111'),
    (Caching(4, blocks=2), AUDIO, '10001000', '10101010', '10101010'),
    (Caching(4, 2, 3), AUDIO, '10001000', '10011001', '10011001'),
    (Caching(1, 4, 2), Guidance(), '00000000', '10001000', '10101010'),
    (
      Caching(4, 4),
      Guidance(audio=Weight(3.0, Window(0.98, 0.3))),
      '00010000',
      '10010001',
      '11111111',
    ),
  ],
)
def test_each_step_knows_what_it_computes(
  caching, guidance, branches, attention, blocks
):
  sigmas = [1.0, 0.995, 0.99, 0.975, 0.9, 0.25, 0.2, 0.1, 0.0]
  plan = cache.plan(caching, sigmas, guidance)
  shown = [''.join(str(int(x)) for x in steps) for steps in plan]
  assert shown == [branches, attention, blocks]


class Constant:
  """Sound adds 0.5 to the velocity at all times; tells which branch runs."""

  def __init__(self):
    self.ran = []

  def __call__(self, x, sigma, cond):
    there = cond['audio_mask'].any(1)[:, None, None, None, None]
    jax.debug.callback(lambda t: self.ran.append(bool(t.any())), there)
    return 0.5 * there - x


@pytest.mark.parametrize('solver', ['euler', 'dpmpp_2m'])
def test_a_constant_difference_is_cached_without_loss(solver):
  field = Constant()
  run = lambda caching: jax.jit(
    lambda x: sampler.sample(
      field, make_cond(), x, SIGMAS, AUDIO, solver=solver, caching=caching
    )
  )(NOISE)
  got = run(Caching(guidance=4))
  jax.effects_barrier()
  assert (field.ran.count(True), field.ran.count(False)) == (8, 2)
  np.testing.assert_allclose(got, run(cache.OFF), atol=1e-5)


def test_a_window_is_cached_without_loss():
  field, guidance = Constant(), Guidance(audio=Weight(3.0, Window(0.97, 0.2)))
  run = lambda caching: jax.jit(
    lambda x: sampler.sample(
      field, make_cond(), x, SIGMAS, guidance, caching=caching
    )
  )(NOISE)
  np.testing.assert_allclose(
    run(Caching(guidance=3)), run(cache.OFF), atol=1e-5
  )


def test_a_difference_is_taken_to_go_on_as_it_went():
  """By hand: the difference is sigma squared, twice seen, then not."""

  def field(x, sigma, cond):
    there = cond['audio_mask'].any(1)[:, None, None, None, None]
    return jnp.zeros_like(x) + there * _wide(sigma) ** 2

  cond = make_cond()
  push = jax.jit(cache.cached(field, Guidance(audio=2.0), Caching(guidance=2)))
  memory = cache.empty(
    field, Guidance(audio=2.0), Caching(guidance=2), NOISE, cond
  )
  got = []
  for sigma, fresh in ((0.8, True), (0.7, False), (0.6, True), (0.5, False)):
    now = Fresh(fresh, True, True)
    velocity, memory = push(NOISE, jnp.full(2, sigma), cond, memory, now)
    got.append(float(velocity.mean()))
  slope = (0.36 - 0.64) / (0.6 - 0.8)
  went = 0.36 - 0.1 * cache.TREND * slope
  want = [0.64 + 0.64, 0.49 + 0.64, 0.36 + 0.36, 0.25 + went]
  np.testing.assert_allclose(got, want, rtol=1e-5)


def _wide(sigma):
  return sigma[:, None, None, None, None]


def test_a_python_loop_over_steps_is_the_same():
  caching, cond = Caching(guidance=4), make_cond()
  field = lambda x, sigma, cond: (
    jnp.cos(3 * x) * (1 + cond['audio_mask'].any(1)[:, None, None, None, None])
  )
  want = jax.jit(
    lambda x: sampler.sample(field, cond, x, SIGMAS, AUDIO, caching=caching)
  )(NOISE)
  step = jax.jit(sampler.make_step(field, cond, NOISE, AUDIO, caching=caching))
  state = sampler.start(field, cond, NOISE, AUDIO, caching=caching)
  plan = cache.plan(caching, SIGMAS, AUDIO)
  for *sigmas, a, b, c in zip(SIGMAS[:-1], SIGMAS[1:], *plan, strict=True):
    state = step(state, *sigmas, Fresh(a, b, c))
  np.testing.assert_allclose(state.x, want, atol=1e-6)


@pytest.mark.full
def test_sharded_it_is_the_same_and_what_is_kept_is_sharded(start):
  velocity, memory = start
  auto = (jax.sharding.AxisType.Auto,) * 4
  axes = ('data', 'fsdp', 'context', 'tensor')
  mesh = jax.make_mesh((2, 1, 2, 2), axes, axis_types=auto)
  sharded = jax.jit(lambda *args: advance(*args))  # not as it was traced
  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.AXIS_RULES):
    for late in ((True, True), (False, True), (False, False)):
      fresh = Fresh(late == (True, True), *late)
      got = sharded(params(), NOISE, make_cond(), memory, fresh)
      np.testing.assert_allclose(got[0], velocity, atol=2e-5)
  kept = got[1].kept
  video = kept.attended['last']['attended']['video']
  assert video.sharding.spec[:2] == ('data', 'context')
  change = kept.change['change']['video']
  assert change.sharding.spec[:2] == ('data', 'context')


def test_heun_is_refused():
  with pytest.raises(ValueError, match='heun runs the network more than once'):
    sampler.make_step(
      Constant(), {}, NOISE, solver='heun', caching=Caching(guidance=2)
    )


@pytest.mark.parametrize(
  ('text', 'want'),
  [
    ('none', cache.OFF),
    ('fast', cache.FAST),
    ('guidance:4', Caching(guidance=4)),
    ('attention:2,last:8', Caching(attention=2, last=8)),
  ],
)
def test_caching_is_read(text, want):
  assert cache.parse(text) == want
  assert bool(want) == (text != 'none')


@pytest.mark.parametrize('text', ['', 'all', 'guidance', 'guidance:x', 'a:1'])
def test_what_is_no_caching_is_told(text):
  with pytest.raises(ValueError, match='is no caching; give none, fast, or'):
    cache.parse(text)


def test_numbers_too_small_are_told():
  with pytest.raises(ValueError, match='attention of caching must be at least'):
    cache.parse('attention:0')
