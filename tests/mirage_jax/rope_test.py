import jax
from jax import numpy as jnp
import numpy as np

from mirage_jax import rope


def test_frame_time_is_the_mean_of_a_latents_frames():
  time = rope.frame_time(np.arange(25))
  assert time[0] == 0
  # Latents 1 to 4 hold frames 1-6, 7-12, 13-18, 19-24.
  np.testing.assert_allclose(
    time[1:].reshape(4, 6).mean(1), [1, 2, 3, 4], rtol=1e-6
  )
  np.testing.assert_allclose(np.diff(time[1:]), 1 / 6, rtol=1e-5)


def test_frame_time_repeats_every_chunk_and_goes_below_zero():
  frames = np.arange(-30, 60)
  np.testing.assert_allclose(
    rope.frame_time(frames + 25), rope.frame_time(frames) + 5, rtol=1e-6
  )
  assert rope.frame_time(np.array(-25)) == -5


def test_grid_positions_are_bin_centres_of_the_target_area():
  time = jnp.array([[0.0, 7.5]])
  got = rope.grid_positions(time, 2, 4, area=32.0)
  assert got.shape == (1, 16, 3)
  scale = 2.0  # 2 x 4 patches stretched to an area of 32
  edges = np.linspace(-4 * scale / 2, 4 * scale / 2, 5)
  want = (edges[:-1] + edges[1:]) / 2
  np.testing.assert_allclose(got[0, :4, 2], want)
  np.testing.assert_allclose(got[0, ::4, 1], [-1, 1, -1, 1])
  np.testing.assert_allclose(got[0, ::8, 0], [0, 7.5])


def test_attention_logits_depend_on_differences_alone():
  rng = np.random.default_rng(0)
  q, k = rng.standard_normal((2, 1, 1, 2, 12)).astype(np.float32)
  frequencies = rope.init_frequencies(jax.random.key(0), (3, 2, 6), space=True)

  def logits(where_q, where_k):
    tables = [
      rope.rotary_tables(frequencies, jnp.asarray(w, jnp.float32)[None, None])
      for w in (where_q, where_k)
    ]
    q_turned = rope.apply_rotary(q, tables[0])
    k_turned = rope.apply_rotary(k, tables[1])
    return np.einsum('BTHD,BTHD->H', q_turned, k_turned)

  a = logits([1.0, 2.0, -1.0], [0.5, 1.0, 3.0])
  b = logits([4.0, 0.0, 0.0], [3.5, -1.0, 4.0])
  c = logits([4.0, 0.0, 0.0], [3.6, -1.0, 4.0])
  np.testing.assert_allclose(a, b, atol=1e-5)
  assert np.abs(b - c).max() > 1e-3


def test_a_quarter_turn_by_hand():
  frequencies = jnp.zeros((3, 1, 2)).at[0, 0, 1].set(np.pi / 2)
  tables = rope.rotary_tables(frequencies, jnp.array([[[1.0, 5.0, 5.0]]]))
  x = jnp.array([1.0, 2.0, 3.0, 4.0])[None, None, None]
  got = rope.apply_rotary(x, tables)[0, 0, 0]
  np.testing.assert_allclose(got, [1, -4, 3, 2], atol=1e-6)


def test_streams_start_on_the_same_clock():
  shape = (3, 4, 16)
  video = rope.init_frequencies(jax.random.key(0), shape, space=True)
  audio = rope.init_frequencies(jax.random.key(1), shape, space=False)
  np.testing.assert_array_equal(video[0], audio[0])
  assert not np.any(audio[1:])
  # Beyond the pairs of time, every pair turns with space.
  size = np.hypot(video[1], video[2])
  np.testing.assert_array_equal(size[:, :6], 0)
  assert size[:, 6:].min() > 0.099 and size.max() < 1.001


def test_alignment_lets_equal_times_attend():
  frequencies = rope.init_frequencies(jax.random.key(0), (3, 2, 16), space=True)
  bias = rope.init_alignment((2, 32), 2.0)[None, None]
  time = np.linspace(-2, 2, 41)
  here = rope.rotary_tables(frequencies, jnp.zeros((1, 1, 3)))
  there = rope.rotary_tables(
    frequencies, rope.line_positions(jnp.asarray(time, jnp.float32)[None])
  )
  q = rope.apply_rotary(bias, here)
  k = rope.apply_rotary(jnp.repeat(bias, 41, axis=1), there)
  logits = np.einsum('BTHD,BSHD->HS', q, k)
  # 6 of 16 pairs turn with time alone; the second head has half the strength.
  turns = np.geomspace(*rope.TIME_RANGE, 6)
  want = 4 * np.cos(turns[:, None] * time).sum(0)
  np.testing.assert_allclose(logits[0], want, atol=1e-4)
  np.testing.assert_allclose(logits[1], want / 4, atol=1e-4)
  assert np.argmax(logits[0]) == 20
