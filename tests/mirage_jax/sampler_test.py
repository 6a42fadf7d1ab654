import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mirage_jax import flow, sampler

NOISE = jax.random.normal(jax.random.key(0), (2, 3, 2, 2, 1))
SIGMAS = flow.linear_quadratic(8)
COND = {
  'audio': jnp.zeros((2, 4, 1)),
  'text': jnp.zeros((2, 5, 1)),
  'text_mask': jnp.ones((2, 5), bool),
  'video_start': jnp.asarray(3),
}


def towards(data):
  """The exact velocity of a flow whose data is one point."""
  return lambda x, sigma, cond: (data - x) / sigma[:, None, None, None, None]


def by_masks(x, sigma, cond):
  """A field made of 1 + 10 for audio + 100 for text, per sample."""
  parts = jnp.ones(x.shape[0])
  for name, size in (('audio', 10.0), ('text', 100.0)):
    mask = cond.get(f'{name}_mask', jnp.ones(cond[name].shape[:2], bool))
    parts = parts + size * mask.any(1)
  return jnp.broadcast_to(parts[:, None, None, None, None], x.shape)


def test_straight_paths_are_integrated_exactly():
  data = jnp.full(NOISE.shape, 0.3)
  got = jax.jit(lambda x: sampler.sample(towards(data), {}, x, SIGMAS))(NOISE)
  np.testing.assert_allclose(got, data, atol=1e-5)


def test_a_linear_field_gives_eulers_product():
  field = lambda x, sigma, cond: -2.0 * x
  got = sampler.sample(field, {}, NOISE, SIGMAS)
  steps = -np.diff(SIGMAS.astype(np.float64))
  np.testing.assert_allclose(got, NOISE * np.prod(1 - 2 * steps), rtol=1e-5)


def test_a_python_loop_over_steps_is_the_same():
  step = jax.jit(sampler.make_step(towards(jnp.ones(NOISE.shape)), {}, NOISE))
  x = NOISE
  for sigma, after in zip(SIGMAS[:-1], SIGMAS[1:], strict=True):
    x = step(x, sigma, after)
  want = sampler.sample(towards(jnp.ones(NOISE.shape)), {}, NOISE, SIGMAS)
  np.testing.assert_allclose(x, want, atol=1e-6)


@pytest.mark.parametrize(
  'guidance, want',
  [
    (sampler.Guidance(), 111),
    (sampler.Guidance(audio=3.0), 111 + 2 * 10),
    (sampler.Guidance(audio=3.0, text=0.5), 111 + 2 * 10 - 0.5 * 100),
    (sampler.Guidance(audio=0.0, text=0.0), 1),
    (sampler.Guidance(reference=7.0), 111),
  ],
)
def test_guidance_weighs_each_condition(guidance, want):
  batches = []

  def spy(x, sigma, cond):
    batches.append(x.shape[0])
    assert all(v.shape[0] in (x.shape[0], 1) for v in cond.values() if v.ndim)
    return by_masks(x, sigma, cond)

  got = sampler.guided(spy, guidance)(NOISE, jnp.ones(2), COND)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  active = sum(w not in (1.0, 7.0) for w in vars(guidance).values())
  assert batches == [2 * (1 + active)]  # one forward; weight 1 costs nothing


def test_one_condition_gives_classifier_free_guidance():
  cond = {'audio': COND['audio'], 'text': COND['text']}
  got = sampler.guided(by_masks, sampler.Guidance(text=6.0))
  without, full = 11.0, 111.0
  want = without + 6.0 * (full - without)
  np.testing.assert_allclose(got(NOISE, jnp.ones(2), cond), want)


def test_known_frames_follow_their_own_path():
  known = jnp.full(NOISE.shape, 5.0)
  mask = jnp.array([[True, False, False], [False, False, True]])
  seen = []

  def field(x, sigma, cond):
    seen.append(x)
    return towards(jnp.ones(NOISE.shape))(x, sigma, cond)

  step = sampler.make_step(field, {}, NOISE, known=known, known_mask=mask)
  x = NOISE
  for sigma, after in zip(SIGMAS[:-1], SIGMAS[1:], strict=True):
    x = step(x, sigma, after)
    path = (1 - sigma) * known + sigma * NOISE
    np.testing.assert_allclose(seen[-1][mask], path[mask], rtol=1e-6)
  np.testing.assert_array_equal(x[mask], known[mask] + SIGMAS[-1] * NOISE[mask])
  np.testing.assert_allclose(x[~mask], 1, atol=1e-5)


def test_known_needs_its_mask():
  with pytest.raises(ValueError, match='together'):
    sampler.make_step(by_masks, COND, NOISE, known=NOISE)
