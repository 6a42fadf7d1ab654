import functools

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mirage_jax import config, flow

KEY = jax.random.key(0)


def test_linear_quadratic_has_mochis_steps():
  sigmas = flow.linear_quadratic(64, 0.025)
  steps = -np.diff(sigmas)
  assert sigmas[0] == 1 and abs(sigmas[-1]) < 1e-6
  np.testing.assert_allclose(sigmas[32], 0.975, rtol=1e-6)
  np.testing.assert_allclose(steps[:32], 0.025 / 32, rtol=1e-3)
  np.testing.assert_allclose(steps[-1], 0.059, atol=5e-4)
  # Quadratic: the second difference is constant, and the slope continuous.
  bend = np.diff(steps[32:])
  np.testing.assert_allclose(bend, bend[0], rtol=1e-2)
  np.testing.assert_allclose(steps[32] - bend[0] / 2, 0.025 / 32, rtol=1e-2)


def test_linear_quadratic_of_four_steps_by_hand():
  got = flow.linear_quadratic(4, 0.1)
  np.testing.assert_allclose(got, [1, 0.95, 0.9, 0.65, 0], atol=1e-6)


def test_one_step_goes_all_the_way():
  np.testing.assert_array_equal(flow.linear_quadratic(1), [1, 0])


@pytest.mark.parametrize('jitter', [True, False])
def test_half_the_levels_are_nearly_noise(jitter):
  cfg = config.FlowConfig(jitter=jitter)
  sigma = flow.sample_sigma(KEY, (4000,), cfg)
  assert abs(np.mean(sigma > 0.975) - 0.5) < 0.03
  distinct = len(np.unique(sigma))
  assert distinct > 3000 if jitter else distinct == 64
  assert 0 < sigma.min() and sigma.max() <= 1


@pytest.mark.parametrize(
  'schedule, mean, std',
  [('uniform', 0.5, 12**-0.5), ('logit_normal', 0.5, 0.208)],
)
def test_other_schedules_have_their_moments(schedule, mean, std):
  cfg = config.FlowConfig(schedule=schedule)
  sigma = flow.sample_sigma(KEY, (4000,), cfg)
  np.testing.assert_allclose(
    [sigma.mean(), sigma.std()], [mean, std], atol=0.02
  )


def test_velocity_leads_from_noise_to_data():
  data, noise = jax.random.normal(KEY, (2, 3, 4))
  sigma = jnp.array([0.2, 0.5, 1.0])
  x = flow.interpolate(data, noise, sigma)
  np.testing.assert_allclose(x[2], noise[2])
  v = flow.velocity(data, noise)
  np.testing.assert_allclose(x + v * sigma[:, None], data, atol=1e-6)


def make_cond(batch):
  return {
    'audio': jnp.zeros((batch, 3, 1)),
    'text': jnp.zeros((batch, 2, 1)),
    'text_mask': jnp.tile(jnp.array([[True, False]]), (batch, 1)),
  }


def test_conditions_drop_alone_and_together():
  cfg = config.FlowConfig(drop_audio=0.3, drop_text=0.2, drop_all=0.1)
  got = flow.drop_conditions(KEY, make_cond(4000), cfg)
  assert set(got) == {'audio', 'text', 'text_mask', 'audio_mask'}
  audio, text = got['audio_mask'], got['text_mask']
  np.testing.assert_array_equal(audio.all(1), audio.any(1))  # whole samples
  assert not text[:, 1].any()  # what was masked stays so
  lost_audio, lost_text = ~audio[:, 0], ~text[:, 0]
  assert abs(lost_audio.mean() - (1 - 0.7 * 0.9)) < 0.03
  assert abs(lost_text.mean() - (1 - 0.8 * 0.9)) < 0.03
  both = 1 - (1 - 0.3 * 0.2) * 0.9
  assert abs((lost_audio & lost_text).mean() - both) < 0.03


def test_nothing_drops_at_rate_zero_and_all_at_one():
  none = dict(drop_audio=0.0, drop_text=0.0, drop_reference=0.0)
  cond = make_cond(50)
  kept = flow.drop_conditions(
    KEY, cond, config.FlowConfig(drop_all=0.0, **none)
  )
  np.testing.assert_array_equal(kept['text_mask'], cond['text_mask'])
  assert kept['audio_mask'].all()
  lost = flow.drop_conditions(
    KEY, cond, config.FlowConfig(drop_all=1.0, **none)
  )
  assert not lost['text_mask'].any() and not lost['audio_mask'].any()
  assert flow.drop_conditions(KEY, {}, config.FlowConfig()) == {}


def test_the_true_velocity_has_no_loss_and_others_have():
  video = jnp.full((4, 2, 2, 2, 3), 0.7)
  seen = {}

  def truth(x, sigma, cond):
    seen.update(cond=cond, sigma=sigma)
    return (video - x) / sigma[:, None, None, None, None]

  cfg = config.FlowConfig(schedule='uniform')
  loss, per_sample = flow.loss(truth, video, make_cond(4), KEY, cfg)
  assert loss < 1e-6 and per_sample['loss'].shape == (4,)
  np.testing.assert_array_equal(per_sample['sigma'], seen['sigma'])
  assert 'audio_mask' in seen['cond']
  off = lambda *args: truth(*args) + 0.5
  loss, _ = flow.loss(off, video, make_cond(4), KEY, cfg)
  np.testing.assert_allclose(loss, 0.25, rtol=1e-3)


def test_low_noise_counts_as_an_error_in_the_data():
  video = jnp.full((64, 2, 2, 2, 3), 0.7)

  def apply(x, sigma, cond):  # the data, off by 0.1
    return (video + 0.1 - x) / sigma[:, None, None, None, None]

  cfg = config.FlowConfig(schedule='uniform', full_weight_from=0.3)
  _, parts = flow.loss(apply, video, {}, KEY, cfg)
  want = (0.1 / np.maximum(parts['sigma'], 0.3)) ** 2
  np.testing.assert_allclose(parts['loss'], want, rtol=1e-3)
  assert parts['sigma'].min() < 0.1


def test_places_that_move_count_more_and_the_mean_is_one():
  rng = np.random.default_rng(0)
  video = np.zeros((2, 6, 4, 4, 3), np.float32)
  video[:, :, 1, 2] = rng.normal(size=(2, 6, 3))
  video[0] += 5.0  # A level is no motion.
  cfg = config.FlowConfig(schedule='uniform', motion_weight=3.0)
  weights = np.asarray(flow.error_weights(jnp.asarray(video), cfg))
  np.testing.assert_allclose(weights.mean((1, 2, 3, 4)), 1, rtol=1e-4)
  np.testing.assert_allclose(
    weights[:, 0, 1, 2, 0], (1 + 3 * 16) / 4, rtol=1e-4
  )
  np.testing.assert_allclose(weights[:, 0, 0, 0, 0], 1 / 4, rtol=1e-4)

  def apply(x, sigma, cond, place):  # The truth, off by 1 at one place.
    sigma = sigma[:, None, None, None, None]
    return ((video - x) / sigma).at[:, :, *place].add(1.0)

  for place, weight in (((1, 2), 49 / 4), ((0, 0), 1 / 4)):
    off = functools.partial(apply, place=place)
    loss, _ = flow.loss(off, jnp.asarray(video), {}, KEY, cfg)
    np.testing.assert_allclose(loss, weight / 16, rtol=1e-3)


def test_places_that_sound_changes_count_more_by_its_square():
  video = jnp.zeros((2, 3, 4, 4, 2))
  change = np.zeros((4, 4, 1), np.float32)
  change[2, 1], change[0, 3] = 2.0, 1.0
  cond = {
    'audio': jnp.zeros((2, 5, 1)),
    'audio_mask': jnp.array([[True] * 5, [False] * 5]),
  }

  def apply(x, sigma, cond):  # Off by 1 everywhere, and by what it hears.
    there = cond['audio_mask'].any(1).reshape(-1, 1, 1, 1, 1)
    truth = (video - x) / sigma.reshape(-1, 1, 1, 1, 1)
    return truth + 1 + there * change[None, None]

  cfg = config.FlowConfig(schedule='uniform', heard_weight=3.0)
  rows = {
    'video': video,
    'sigma': jnp.array([0.5, 0.5]),
    'noise': jax.random.normal(KEY, video.shape),
    'cond': cond,
  }
  _, parts = flow.score(apply, rows, cfg)
  share = np.square(change) / np.square(change).mean()
  want = np.mean((1 + 3 * share) / 4 * np.square(1 + change))
  # Without sound nothing is heard, and every place counts as the least.
  np.testing.assert_allclose(parts['loss'], [want, 1 / 4], rtol=1e-4)


def test_what_is_heard_only_weighs():
  video = jnp.ones((1, 2, 2, 2, 1))
  cond = {'audio': jnp.ones((1, 2, 1)), 'audio_mask': jnp.ones((1, 2), bool)}
  rows = {
    'video': video,
    'sigma': jnp.array([0.5]),
    'noise': jnp.zeros_like(video),
    'cond': cond,
  }
  cfg = config.FlowConfig(heard_weight=3.0)

  def score(gain, apply):
    return flow.score(lambda *a: apply(gain, *a), rows, cfg)[0]

  def apply(gain, x, sigma, cond):
    heard = cond['audio_mask'].any(1).reshape(-1, 1, 1, 1, 1)
    return gain * heard * jnp.arange(8.0).reshape(1, 2, 2, 2, 1)

  # The gradient is that of squares under fixed weights.
  share = np.square(np.arange(8.0)).reshape(2, 4).mean(0)
  weights = np.tile((1 + 3 * share / share.mean()) / 4, 2)
  steps = np.arange(8.0)
  want = np.mean(weights * 2 * (0.5 * steps - 1) * steps)
  got = jax.grad(score)(0.5, apply)
  np.testing.assert_allclose(got, want, rtol=1e-4)


def test_the_loss_is_float32_for_a_bfloat16_network():
  def apply(x, sigma, cond):
    return jnp.zeros_like(x, jnp.bfloat16)

  video = jnp.zeros((2, 1, 2, 2, 3), jnp.float16)
  loss, _ = flow.loss(apply, video, {}, KEY, config.FlowConfig())
  assert loss.dtype == jnp.float32 and 0.3 < loss < 3
