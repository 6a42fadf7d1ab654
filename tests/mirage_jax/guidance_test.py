"""Guidance against its algebra, in float64, and on a real small network."""

import dataclasses
import functools

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mirage_jax import config, dit, schedules
from mirage_jax.guidance import Guidance, Weight, guided
from mirage_jax.skip import without_blocks
from tests import tiny

VIDEO = jax.random.normal(jax.random.key(0), (2, 3, 2, 2, 1))
SIGMA = jnp.array([0.9, 0.4])
SIGMAS = np.linspace(1, 0, 11)
COND = {
  'audio': jnp.zeros((2, 4, 1)),
  'text': jnp.ones((2, 5), jnp.int32),
  'text_mask': jnp.ones((2, 5), bool),
  'video_start': jnp.asarray(3),
}
NEGATIVE = {
  'negative_text': jnp.full((2, 5), 7),
  'negative_text_mask': jnp.ones((2, 5), bool),
}


def by_masks(x, sigma, cond, skip_blocks=()):
  """A field of 1, + 10 for audio, + 100 for text, + 500 for a negative one.

  Each block that is skipped takes 0.25.
  """
  assert not any(k.startswith('negative') for k in cond)
  parts = jnp.ones(x.shape[0]) - 0.25 * len(skip_blocks)
  for name, size in (('audio', 10.0), ('text', 100.0)):
    if name in cond:
      mask = cond.get(f'{name}_mask', jnp.ones(cond[name].shape[:2], bool))
      parts = parts + size * mask.any(1)
      if name == 'text':
        parts = parts + 500 * (mask.any(1) & (cond['text'][:, 0] == 7))
  return jnp.broadcast_to(parts[:, None, None, None, None], x.shape)


@pytest.mark.parametrize('sequential', [False, True], ids=['batch', 'sequence'])
@pytest.mark.parametrize(
  ('weights', 'want', 'branches'),
  [
    ({}, 111, 1),
    (dict(audio=3.0), 111 + 2 * 10, 2),
    (dict(audio=3.0, text=0.5), 111 + 2 * 10 - 0.5 * 100, 3),
    (dict(audio=0.0, text=0.0), 1, 3),
    (dict(reference=7.0), 111, 1),
    (dict(joint=4.0), 1 + 4 * 110, 2),
    (dict(joint=2.0, audio=2.0), 111 + 110 + 10, 3),
    (dict(skip=2.0, skip_blocks=(1,)), 111 + 2 * 0.25, 2),
    (dict(text=3.0, skip=1.0, skip_blocks=(1, 2)), 111 + 2 * 100 + 0.5, 3),
  ],
)
def test_every_term_has_its_weight(weights, want, branches, sequential):
  samples = []

  def spy(x, sigma, cond, **options):
    jax.debug.callback(lambda: samples.append(x.shape[0]))
    assert all(v.shape[0] == len(x) for v in cond.values() if v.ndim)
    return by_masks(x, sigma, cond, **options)

  run = guided(spy, Guidance(**weights, sequential=sequential))
  np.testing.assert_allclose(run(VIDEO, SIGMA, COND), want, rtol=1e-6)
  jax.effects_barrier()
  assert sum(samples) == 2 * branches  # Neutral weights cost nothing.
  together = branches - ('skip' in weights)
  whole = [2] * together if sequential else [2 * together]
  assert samples == whole + [2] * ('skip' in weights)


def test_one_condition_gives_classifier_free_guidance():
  run = guided(by_masks, Guidance(text=6.0))
  cond = {k: COND[k] for k in ('audio', 'text')}  # no mask: all are there
  without, full = 11.0, 111.0
  want = without + 6.0 * (full - without)
  np.testing.assert_allclose(run(VIDEO, SIGMA, cond), want)


@pytest.mark.parametrize(
  ('weights', 'want'),
  [
    (dict(text=6.0), 611 + 6 * (111 - 611)),
    (dict(joint=6.0), 601 + 6 * (111 - 601)),
    (dict(text=6.0, audio=2.0), 611 + 6 * (111 - 611) + 10),
  ],
)
def test_a_negative_text_stands_where_text_is_left_out(weights, want):
  run = guided(by_masks, Guidance(**weights))
  np.testing.assert_allclose(run(VIDEO, SIGMA, COND | NEGATIVE), want)
  bare = {'negative_text': NEGATIVE['negative_text']}
  np.testing.assert_allclose(run(VIDEO, SIGMA, COND | bare), want)


def test_negative_texts_that_do_not_fit():
  for weights, cond, said in (
    (dict(audio=2.0), COND | NEGATIVE, 'a weight of text or joint'),
    (dict(text=2.0), NEGATIVE, 'it needs text in cond'),
    (
      dict(text=2.0),
      COND | {'negative_text': jnp.zeros((2, 4), jnp.int32)},
      r'negative_text has the shape \(2, 4\), text \(2, 5\)',
    ),
  ):
    with pytest.raises(ValueError, match=said):
      guided(by_masks, Guidance(**weights))(VIDEO, SIGMA, cond)


def test_schedules_at_their_ends():
  progress = jnp.array([0.0, 0.25, 0.5, 1.0])
  share = schedules.Cosine()(progress, progress)
  quarter = (1 + np.cos(np.pi / 4)) / 2
  np.testing.assert_allclose(share, [1, quarter, 0.5, 0], atol=1e-7)
  sigma = jnp.array([1.0, 0.81, 0.8, 0.5, 0.3, 0.29, 0.0])
  window = schedules.Window(0.8, 0.3)(sigma, None)
  np.testing.assert_array_equal(window, [0, 0, 1, 1, 1, 0, 0])
  np.testing.assert_array_equal(schedules.CONSTANT(sigma, None), 1)


def test_a_cosine_counts_steps_down_to_weight_1():
  weight = Weight(5.0, schedules.Cosine())
  table = np.array([1, 0.99, 0.98, 0.5, 0])  # Steps, not noise, are even.
  for sigmas in (table, np.pad(table, (0, 7))):  # More zeros are no steps.
    run = guided(by_masks, Guidance(audio=weight), jnp.asarray(sigmas))
    for done, sigma in enumerate(table):
      got = run(VIDEO, jnp.full(2, sigma, jnp.float32), COND)
      w = 1 + 4 * (1 + np.cos(np.pi * done / 4)) / 2
      np.testing.assert_allclose(got, 101 + w * 10, rtol=1e-4)
  with pytest.raises(ValueError, match='sigmas must be given'):
    guided(by_masks, Guidance(audio=weight))


def test_each_weight_and_sample_has_its_own_schedule():
  guidance = Guidance(
    audio=Weight(3.0, schedules.Window(1.0, 0.5)),
    text=Weight(3.0, schedules.Window(0.5, 0.0)),
  )
  got = guided(by_masks, guidance)(VIDEO, SIGMA, COND)
  np.testing.assert_allclose(got[0], 111 + 2 * 10)
  np.testing.assert_allclose(got[1], 111 + 2 * 100)


def test_outside_of_its_window_guidance_costs_nothing():
  ran = []

  def spy(x, sigma, cond):
    jax.debug.callback(lambda: ran.append(x.shape[0]))
    return by_masks(x, sigma, cond)

  weight = Weight(3.0, schedules.Window(0.95, 0.3))
  run = jax.jit(guided(spy, Guidance(audio=weight, rescale=0.0)))
  for sigma in (1.0, 0.6, 0.1):
    want = 131 if sigma == 0.6 else 111
    got = run(VIDEO, jnp.full(2, sigma), COND)
    np.testing.assert_allclose(got, want, rtol=1e-6)
  jax.effects_barrier()
  assert ran == [2, 4, 2]


@pytest.mark.parametrize(
  ('text', 'want'),
  [
    ('constant', schedules.Constant()),
    ('cosine', schedules.Cosine()),
    ('window:0.95:0.3', schedules.Window(0.95, 0.3)),
    ('window:1:0', schedules.Window(1.0, 0.0)),
  ],
)
def test_schedules_are_read(text, want):
  assert schedules.parse(text) == want


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('cosinus', "'cosinus' is no schedule; give constant, cosine, or window"),
    ('cosine:1', "'cosine:1' is no schedule"),
    ('window', "'window' is no schedule"),
    ('window:a:b', "'window:a:b' is no schedule"),
    ('window:0.3:0.9', '1 >= HIGH > LOW >= 0, got 0.3 and 0.9'),
    ('window:nan:0', 'HIGH > LOW'),
  ],
)
def test_what_is_no_schedule(text, said):
  with pytest.raises(ValueError, match=said):
    schedules.parse(text)


def test_rescale_is_that_of_lin_et_al():
  """Per sample, over all other axes; 1 gives back the deviation of full."""
  without = np.random.default_rng(0).normal(size=VIDEO.shape)

  def field(x, sigma, cond):
    there = cond['audio_mask'].any(1)[:, None, None, None, None]
    base = jnp.asarray(np.resize(without, x.shape), jnp.float32)
    return jnp.where(there, x, base)

  full = np.asarray(VIDEO, np.float64)
  total = full + 4 * (full - without)
  axes = dict(axis=(1, 2, 3, 4), keepdims=True)
  factor = full.std(**axes) / total.std(**axes)
  cond = {'audio': COND['audio']}
  for share in (0.7, 1.0):
    got = guided(field, Guidance(audio=5.0, rescale=share))(VIDEO, SIGMA, cond)
    want = share * total * factor + (1 - share) * total
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('weights', 'said'),
  [
    (dict(audio=-0.1), 'audio must lie in 0 to 30, got -0.1'),
    (dict(text=31.0), 'text must lie in 0 to 30, got 31'),
    (dict(reference=float('nan')), 'reference must lie in 0 to 30, got nan'),
    (dict(joint=float('inf')), 'joint must lie in 0 to 30, got inf'),
    (dict(audio=Weight(99, schedules.Cosine())), 'audio must lie .* got 99'),
    (dict(skip=11.0, skip_blocks=(1,)), 'skip must lie in 0 to 10, got 11'),
    (dict(rescale=1.5), 'rescale must lie in 0 to 1, got 1.5'),
    (dict(skip=1.0), 'skip and skip_blocks must be given together'),
    (dict(skip_blocks=(1,)), 'skip and skip_blocks must be given together'),
  ],
)
def test_numbers_out_of_range_are_refused_by_name(weights, said):
  with pytest.raises(ValueError, match=said):
    Guidance(**weights)


def test_a_network_that_cannot_skip_says_so():
  apply = lambda x, sigma, cond: by_masks(x, sigma, cond)
  run = guided(apply, Guidance(skip=1.0, skip_blocks=(0,)))
  with pytest.raises(ValueError, match='skip guidance needs an apply'):
    run(VIDEO, SIGMA, COND)

  def broken(x, sigma, cond, skip_blocks=()):
    raise TypeError('of another kind')

  run = guided(broken, Guidance(skip=1.0, skip_blocks=(0,)))
  with pytest.raises(TypeError, match='of another kind'):
    run(VIDEO, SIGMA, {})


CFG = config.build(config.MirageConfig, tiny.DIT | {'text_vocab': 11})


@functools.cache
def network():
  """A model of three blocks, its parameters and all conditions."""
  model = dit.Mirage(dataclasses.replace(CFG, depth=3))
  keys = jax.random.split(jax.random.key(1), 4)
  normal = jax.random.normal
  cond = {
    'reference': normal(keys[0], (2, 1, 2, 2, 3)),
    'reference_time': jnp.array([[-5.0], [-2.0]]),
    'audio': normal(keys[1], (2, 5, 320)),
    'text': jnp.ones((2, 8), jnp.int32),
    'text_mask': jnp.arange(8)[None] < jnp.array([[8], [3]]),
    'negative_text': jnp.full((2, 8), 7),
  }
  video = normal(keys[2], (2, 2, 2, 2, 3))
  plain = {k: v for k, v in cond.items() if not k.startswith('negative')}
  boxed = jax.eval_shape(model.init, keys[3], video, SIGMA, plain)
  params = tiny.filled(nn.unbox(boxed)['params'])
  return model, params, video, cond, plain


def bind(model, params):
  def apply(video, sigma, cond, skip_blocks=()):
    bound = without_blocks(params, skip_blocks)
    return model.apply({'params': bound}, video, sigma, cond)

  return apply


@pytest.mark.full
def test_one_batch_and_one_by_one_give_the_same_and_the_sum():
  model, params, video, cond, plain = network()
  apply = bind(model, params)
  weights = dict(audio=4.0, text=6.0, reference=0.5, joint=1.5, skip=1.0)
  guidance = Guidance(**weights, skip_blocks=(1,))
  batch = jax.jit(guided(apply, guidance))(video, SIGMA, cond)
  one_by_one = dataclasses.replace(guidance, sequential=True)
  one_by_one = jax.jit(guided(apply, one_by_one))(video, SIGMA, cond)
  np.testing.assert_allclose(one_by_one, batch, rtol=2e-5, atol=2e-5)
  once = jax.jit(apply, static_argnames='skip_blocks')

  masks = {
    name: plain.get(f'{name}_mask', jnp.ones(plain[name].shape[:2], bool))
    for name in ('audio', 'text', 'reference')
  }

  def less(*names, **changes):
    given = {f'{k}_mask': m & (k not in names) for k, m in masks.items()}
    velocity = once(video, SIGMA, plain | given | changes)
    return np.asarray(velocity, np.float64)

  full = less()
  negative = dict(text=cond['negative_text'], text_mask=jnp.ones((2, 8), bool))
  without = {
    'audio': less('audio'),
    'text': less(**negative),
    'reference': less('reference'),
    'joint': less('audio', 'reference', **negative),
    'skip': np.asarray(once(video, SIGMA, plain, skip_blocks=(1,)), np.float64),
  }
  want = full
  for name, other in without.items():
    gain = weights[name] - (name != 'skip')
    assert np.abs(full - other).max() > 1e-3, name
    want = want + gain * (full - other)
  np.testing.assert_allclose(batch, want, rtol=2e-4, atol=2e-4)


def test_a_skipped_block_is_one_that_is_not_there():
  """The same as a network of the other two blocks."""
  model, params, video, _, cond = network()
  shorter = dit.Mirage(dataclasses.replace(CFG, depth=2))
  for block, other in ((0, 1), (1, 0)):
    rest = jax.tree.map(lambda x, i=other: x[i : i + 1], params['blocks'])
    want = jax.jit(shorter.apply)(
      {'params': params | {'blocks': rest}}, video, SIGMA, cond
    )
    bound = without_blocks(params, (block,))
    got = jax.jit(model.apply)({'params': bound}, video, SIGMA, cond)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  last = without_blocks(params, (2,))['last']['video']
  assert not any(x.any() for x in jax.tree.leaves(last['modulation']))
  for wrong in (-1, 3):
    with pytest.raises(ValueError, match=f'no block {wrong}; there are 0 to 2'):
      without_blocks(params, (wrong,))


def test_a_jitted_function_is_compiled_once_for_all_weights():
  """And gives what each gives alone; neutral weights and schedules differ."""
  traces = []

  @jax.jit
  def run(guidance, video):
    traces.append(guidance)
    return guided(by_masks, guidance, jnp.asarray(SIGMAS))(video, SIGMA, COND)

  def check(**weights):
    got = run(Guidance(**weights), VIDEO)
    alone = guided(by_masks, Guidance(**weights), jnp.asarray(SIGMAS))
    np.testing.assert_allclose(got, alone(VIDEO, SIGMA, COND), rtol=1e-6)

  skip = dict(skip_blocks=(1,), rescale=0.7)
  for audio, text, scale in ((3.0, 2.0, 1.0), (0.0, 30.0, 4.0)):
    check(audio=audio, text=text, skip=scale, **skip)
  check(audio=5.0, text=0.5, skip=2.0, skip_blocks=(1,), rescale=0.1)
  assert len(traces) == 1
  check(audio=5.0, text=1.0, skip=2.0, **skip)
  assert len(traces) == 2
  for value in (3.0, 9.0):
    check(audio=Weight(value, schedules.Cosine()))
  assert len(traces) == 3
  check(audio=3.0)
  check(audio=Weight(4.0))
  assert len(traces) == 4
