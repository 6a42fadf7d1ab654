import numpy as np
import pytest

from mirage_jax import evals

FPS = 25


def speech_like(count=75, seed=0):
  noise = np.random.default_rng(seed).normal(size=count + 4)
  return np.convolve(noise, np.ones(5) / 5, 'valid')


def test_pearson_knows_sign_scale_and_frozen():
  x = speech_like()
  assert evals.pearson(x, 3 * x + 1) == pytest.approx(1)
  assert evals.pearson(x, -x) == pytest.approx(-1)
  assert evals.pearson(np.full(75, 0.1), x) == 0
  assert evals.pearson(x, speech_like(seed=1)) == pytest.approx(
    np.corrcoef(x, speech_like(seed=1))[0, 1]
  )
  with pytest.raises(ValueError, match='paired'):
    evals.pearson(x, x[:-1])


@pytest.mark.parametrize('lag', [-3, 0, 4])
def test_best_lag_is_positive_when_late(lag):
  long = speech_like(100)
  ref, curve = long[10:85], long[10 - lag : 85 - lag]
  assert evals.best_lag(curve, ref) == (lag, pytest.approx(1))
  with pytest.raises(ValueError, match='too few'):
    evals.lag_profile(curve[:11], ref[:11])


@pytest.mark.parametrize('count', [2, 3, 40])
def test_derangement_moves_everything_and_repeats(count):
  partner = evals.derangement(count, seed=3)
  assert sorted(partner) == list(range(count))
  assert (partner != np.arange(count)).all()
  np.testing.assert_array_equal(partner, evals.derangement(count, seed=3))
  with pytest.raises(ValueError, match='at least 2'):
    evals.derangement(1)


def test_blinks_are_told_from_gaze_and_from_shut_eyes():
  eye = np.full(250, 0.32) + 0.01 * speech_like(250)
  eye[20:23] = 0.08
  eye[60:66] = [0.15, 0.1, 0.05, 0.21, 0.1, 0.2]  # One: it never opened again.
  eye[100:120] = 0.25  # Looking down.
  eye[150:180] = 0.06  # Shut for more than a second.
  eye[248:] = 0.1
  found = evals.blinks(eye, FPS)
  assert found == [(20, 23), (60, 66), (248, 250)]
  assert evals.blink_rate(eye, FPS) == pytest.approx(18)
  assert evals.blinks(2 * eye, FPS) == found


def spoken(closures):
  """A mouth that opens and closes at 3 Hz; phones with /m/ at `closures`."""
  opening = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(75) / 8)
  phones = [('_', 0.0, 0.3)]
  phones += [('a', t - 0.05, t) for t in closures]
  phones += [('m', t, t + 0.04) for t in closures]
  return opening, [*phones, ('_', 2.7, 3.0)]


def test_closures_hit_at_the_dips_and_miss_at_the_peaks():
  dips = [n / FPS for n in (16, 32, 48, 64)]
  opening, phones = spoken(dips)
  right = evals.closure_hits(opening, phones, FPS)
  assert right.rate == 1 and len(right.hits) == 4
  late = [(s, a + 4 / FPS, b + 4 / FPS) for s, a, b in phones]
  assert evals.closure_hits(opening, late, FPS, tolerance=0.02).rate == 0
  # 3 of every 8 frames are closed; a window of 4 frames meets one of them in
  # 6 of 8 places.
  assert right.chance == pytest.approx(0.75, abs=0.05)
  assert right.rate > right.chance


def test_closures_need_speech_and_count_only_bilabials():
  opening, phones = spoken([0.64])
  others = [(s.replace('m', 'n'), a, b) for s, a, b in phones]
  none = evals.closure_hits(opening, others, FPS)
  assert len(none.hits) == 0 and np.isnan(none.rate) and np.isnan(none.chance)
  with pytest.raises(ValueError, match='silence'):
    evals.closure_hits(opening, [('sil', 0, 1), ('_', 1, 2), ('.', 2, 3)], FPS)
  with pytest.raises(ValueError, match='silence'):
    evals.closure_hits(opening, [('m', 4.0, 4.1)], FPS)
