"""The judge of sync: sound, mouths, encoders, objective and offsets."""

import io

from array_record.python import array_record_module
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from infomax_jax.sync import (
  Sync,
  SyncConfig,
  Track,
  by_offset,
  data,
  infomax,
  log_mel,
  mouth,
  mouth_frames,
  offsets,
  sound,
)
from infomax_jax.sync.config import LossConfig

TINY = SyncConfig(dim=8, stem=4, trunk=4, hidden=8)
FRAMES = 14


def tone(hz, frames=20):
  return np.sin(2 * np.pi * hz * np.arange(frames * 640) / 16000)


def test_mel_filters_are_even_triangles_on_the_mel_scale():
  filters = sound.mel_filters()
  assert filters.shape == (40, 257)
  htk = lambda hz: 1127.01048 * np.log(1 + hz / 700)
  hz = np.arange(257) * 16000 / 512
  # From one peak to the next, falling and rising sides add up to one.
  between = (hz > 350) & (hz < 6800)
  np.testing.assert_allclose(filters.sum(0)[between], 1, atol=1e-5)
  peaks = htk(hz[filters[20:].argmax(1)])
  step = (htk(7600.0) - htk(80.0)) / 41
  want = htk(80.0) + step * np.arange(21, 41)
  np.testing.assert_allclose(peaks, want, atol=step / 2)


def test_a_window_has_its_centre_in_the_middle_of_its_ten_milliseconds():
  for frame, ms in ((0, 5), (7, 15), (19, 35)):
    wave = np.zeros(20 * 640, np.float32)
    wave[frame * 640 + ms * 16] = 1
    mels = log_mel(wave, 20)
    assert mels.shape == (86, 40)
    loudest = mels.sum(1).argmax()
    assert loudest == sound.CONTEXT + 4 * frame + ms // 10


def test_loudness_cancels_out_and_a_warp_moves_the_voice():
  rng = np.random.default_rng(0)
  # Tones that come and go, for a mean over time takes out what stays.
  wave = tone(1000) * (np.arange(20 * 640) % 6400 < 3200)
  wave = (wave + 1e-3 * rng.standard_normal(len(wave))).astype(np.float32)
  mels = log_mel(wave, 20)
  np.testing.assert_allclose(log_mel(wave * 7, 20), mels, atol=1e-4)
  np.testing.assert_allclose(mels.mean(0), 0, atol=1e-5)
  higher = (tone(1250) * (np.arange(20 * 640) % 6400 < 3200)).astype(np.float32)
  peak = lambda x: x.std(0).argmax()
  assert peak(log_mel(wave, 20, warp=1.25)) == peak(log_mel(higher, 20))
  assert peak(log_mel(wave, 20)) < peak(log_mel(higher, 20))
  with pytest.raises(ValueError, match='mono and finite'):
    log_mel(np.full(640, np.nan), 1)


def test_another_room_does_not_move_the_sound():
  rng = np.random.default_rng(1)
  wave = np.repeat(rng.random(100) > 0.6, 320) * rng.standard_normal(32000)
  energy = lambda x: np.square(x).reshape(-1, 160).mean(1)
  for _ in range(8):
    changed = sound.change_wave(wave, rng)
    assert changed.shape == wave.shape and changed.dtype == np.float32
    lags = range(-4, 5)
    fits = [
      np.corrcoef(energy(wave), np.roll(energy(changed), k))[0, 1] for k in lags
    ]
    assert lags[int(np.argmax(fits))] == 0


def test_the_mouth_is_sampled_where_scipy_samples_it():
  rng = np.random.default_rng(0)
  crops = rng.integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
  crops = ndimage.gaussian_filter(crops, (0, 2, 2, 0))
  look = mouth.Look(down=0.1, right=-0.05, zoom=1.2, turn=0.3)
  got = mouth._sample(crops.astype(np.float32) @ mouth.GREY, look)
  u = (np.arange(40) + 0.5) / 40 - 0.5
  down, right = np.meshgrid(u, u, indexing='ij')
  turned = (down + 1j * right) * np.exp(-0.3j)  # From down towards right.
  size = 0.46 * 96 / 1.2
  rows = 0.73 * 96 - 0.5 + size * (turned.real + 0.1)
  columns = 0.5 * 96 - 0.5 + size * (turned.imag - 0.05)
  for frame, patch in zip(crops, got, strict=True):
    grey = frame.astype(np.float64) @ mouth.GREY
    want = ndimage.map_coordinates(
      grey, [rows, columns], order=1, mode='nearest'
    )
    # Sampling stops one pixel before the edge.
    inside = (rows < 94) & (columns < 94)
    np.testing.assert_allclose(patch[inside], want[inside], atol=0.05)


def test_what_stays_the_same_in_a_clip_is_not_seen():
  rng = np.random.default_rng(0)
  still = rng.integers(0, 256, (1, 96, 96, 3), dtype=np.uint8).repeat(5, 0)
  np.testing.assert_allclose(mouth_frames(still), 0, atol=1e-3)
  moving = rng.integers(0, 200, (5, 96, 96, 3), dtype=np.uint8)
  seen = mouth_frames(moving)
  np.testing.assert_allclose(mouth_frames(moving + 50), seen, atol=1e-3)
  assert seen.std() == pytest.approx(1, abs=1e-4)
  mirrored = mouth_frames(moving[:, :, ::-1], mouth.Look(flip=True))
  np.testing.assert_allclose(mirrored, seen, atol=1e-3)


def flash(at, total=75):
  """A clip whose mouth lights up and whose sound clicks in the same frames."""
  rng = np.random.default_rng(0)
  frames = rng.integers(100, 110, (total, 32, 32, 3), dtype=np.uint8)
  wave = 1e-3 * rng.standard_normal(total * 640).astype(np.float32)
  frames[at.start : at.stop] += 100
  burst = slice(at.start * 640, at.stop * 640)
  wave[burst] += 0.3 * rng.standard_normal(len(wave[burst]))
  return {'id': 'x', 'frames': frames, 'wave': wave}


def middle(x):
  """Of the time in which x is high, in steps."""
  return np.mean(np.flatnonzero(x > (x.max() + x.min()) / 2)) + 0.5


def test_changes_keep_sound_and_sight_together(monkeypatch):
  monkeypatch.setattr(sound, 'change_wave', lambda wave, rng: wave)
  cfg = data.DataConfig('', '', num_frames=55)
  record, starts = flash(range(34, 40)), set()
  for seed in range(20):
    got = data.changed_window(record, np.random.default_rng(seed), cfg)
    assert got['mels'].shape == (226, 40) and got['mouth'].shape == (55, 40, 40)
    seen = middle(got['mouth'].mean((1, 2)))
    heard = (middle(got['mels'].sum(1)) - sound.CONTEXT) / 4
    assert abs(seen - heard) < 1.3  # A camera of 10 Hz is 1.25 off.
    starts.add(round(heard))
  assert len(starts) > 5
  plain = data.plain_window(record, cfg)
  assert middle(plain['mouth'].mean((1, 2))) == 37 - 10
  with pytest.raises(ValueError, match='clip x has 75 frames, a window 80'):
    data.plain_window(record, data.DataConfig('', '', num_frames=80))


@pytest.fixture(scope='module')
def model():
  """A tiny model, its variables, and its jitted apply."""
  net = Sync(TINY)
  mels = jnp.zeros((1, 4 * FRAMES + 6, sound.MELS))
  mouths = jnp.zeros((1, FRAMES, mouth.SIZE, mouth.SIZE))
  variables = jax.jit(net.init)(jax.random.key(0), mels, mouths)
  return net, variables, jax.jit(net.apply)


def test_a_vector_is_of_eleven_frames_and_their_sound(model):
  _, variables, apply = model
  rng = np.random.default_rng(0)
  mels = rng.standard_normal((1, 4 * FRAMES + 6, 40)).astype(np.float32)
  mouths = rng.standard_normal((1, FRAMES, 40, 40)).astype(np.float32)
  heard, seen = apply(variables, mels, mouths)
  count = FRAMES - 10
  assert heard.whole.shape == seen.whole.shape == (1, count, TINY.dim)
  assert heard.local.shape == (1, count, 4, TINY.dim)
  assert seen.local.shape == (1, count, 16, TINY.dim)
  changed = lambda a, b: {
    name: np.abs(getattr(a, name) - getattr(b, name)).max((0, -1)) > 0
    for name in ('whole', 'local')
  }
  for frame in (0, 6, 13):
    other = mouths.copy()
    other[:, frame] += rng.standard_normal((40, 40))
    moved = changed(seen, apply(variables, mels, other)[1])
    at = np.arange(count)
    near = (at <= frame) & (frame <= at + 10)
    np.testing.assert_array_equal(moved['whole'], near)
    near = np.abs(at + 5 - frame) <= 1
    np.testing.assert_array_equal(moved['local'].any(-1), near)
  for window in (0, 30, 61):
    other = mels.copy()
    other[:, window] += rng.standard_normal(40)
    moved = changed(heard, apply(variables, other, mouths)[0])
    near = (4 * at <= window) & (window <= 4 * (at + 10) + 9)
    np.testing.assert_array_equal(moved['whole'], near)
    near = (4 * (at + 5) <= window) & (window <= 4 * (at + 5) + 9)
    np.testing.assert_array_equal(moved['local'].any(-1), near)


def test_sound_and_sight_of_different_lengths_are_refused(model):
  net, variables, _ = model
  mouths = jnp.zeros((1, FRAMES, 40, 40))
  with pytest.raises(ValueError, match='60 mel windows and 14 frames'):
    net.apply(variables, jnp.zeros((1, 60, 40)), mouths)
  with pytest.raises(ValueError, match='and 11 frames'):
    net.apply(variables, jnp.zeros((1, 46, 40)), mouths[:, :10])


def test_negatives_are_other_frames_of_the_clip_and_other_clips():
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32) * 2
  tracks = [Track(draw(2, 3, 8), draw(2, 3, 5, 8)) for _ in range(2)]
  cfg = LossConfig(clip=3.0, reg_weight=0.1, local_weight=0.5, block=4)
  loss, parts = jax.jit(infomax, static_argnums=2)(*tracks, cfg)

  def reference(source, target):
    """Softmax of one positive against the rows of all other frames."""
    source = source.reshape(6, 8).astype(np.float64)
    target = target.reshape(6, -1, 8).astype(np.float64)
    raw = np.einsum('ic,jlc->ijl', source, target) / np.sqrt(8)
    scores, fit = 3 * np.tanh(raw / 3), []
    for i in range(6):
      others = np.exp(np.delete(scores[i], i, 0)).sum()
      for positive in np.exp(scores[i, i]):
        fit.append(np.log(positive / (positive + others)))
    return -np.mean(fit), np.mean(raw**2)

  pairs = [(tracks[0], tracks[1]), (tracks[1], tracks[0])]
  whole = np.mean([reference(a.whole, b.whole) for a, b in pairs], 0)
  local = np.mean([reference(a.whole, b.local) for a, b in pairs], 0)
  assert parts['whole'] == pytest.approx(whole[0], rel=1e-5)
  assert parts['local'] == pytest.approx(local[0], rel=1e-5)
  assert parts['reg'] == pytest.approx(0.1 * (whole[1] + local[1]), rel=1e-5)
  assert loss == pytest.approx(
    whole[0] + 0.5 * local[0] + 0.1 * (whole[1] + local[1]), rel=1e-5
  )


def test_offsets_pair_later_sound_with_earlier_sight():
  scores = np.random.default_rng(0).standard_normal((2, 9, 9))
  got = by_offset(scores, 3)
  for k, d in enumerate(range(-3, 4)):
    pairs = [scores[:, t + d, t] for t in range(9) if 0 <= t + d < 9]
    np.testing.assert_allclose(got[:, k], np.mean(pairs, 0), rtol=1e-5)


def synthetic(rng, offset, related=True, noise=1.5):
  """Scores of two parts of a clip whose sound is `offset` frames late."""
  parts = []
  for _ in range(2):
    truth = rng.standard_normal((80, 16))
    sight = truth[20:60] + noise * rng.standard_normal((40, 16))
    heard = truth[20 - offset : 60 - offset] if related else truth[:40] * 0
    heard = heard + noise * rng.standard_normal((40, 16))
    parts.append(offsets.products(heard, sight, 20.0))
  return [np.asarray(p) for p in parts]


def test_the_judge_finds_planted_offsets_and_doubts_unrelated_sound():
  rng = np.random.default_rng(0)
  blank = offsets.Calibration(0.0, 0.0)
  verdict = lambda *args: offsets.judge(
    offsets.curve(synthetic(rng, *args), 12), blank
  )
  together = [verdict(d) for d in range(-10, 11)]
  assert [v.offset for v in together] == list(range(-10, 11))
  apart = [verdict(0, False) for _ in range(20)]
  fitted = offsets.calibrate(together, apart)
  sure = [offsets.judge(v.curve, fitted).confidence for v in together]
  unsure = [offsets.judge(v.curve, fitted).confidence for v in apart]
  assert min(sure) > 0.5 > max(unsure)
  with pytest.raises(ValueError, match='40 frames have no offset of 40'):
    offsets.curve(synthetic(rng, 0), 40)


def test_evidence_is_the_information_of_a_gaussian_channel():
  # For correlated Gaussians the density ratio is known, so is its mean.
  rng, rho, count = np.random.default_rng(0), 0.9, 3000
  x = rng.standard_normal(count)
  y = rho * x + np.sqrt(1 - rho**2) * rng.standard_normal(count)
  exponent = rho * (2 * x[:, None] * y - rho * (x[:, None] ** 2 + y**2))
  ratio = exponent / (2 * (1 - rho**2))  # Up to a constant.
  got = np.diagonal(offsets.information(ratio)).mean()
  assert got == pytest.approx(-0.5 * np.log(1 - rho**2), rel=0.03)


def test_batches_repeat_and_no_two_epochs_are_alike(tmp_path):
  writer = array_record_module.ArrayRecordWriter(
    str(tmp_path / '0.array_record'), 'group_size:1'
  )
  for k in range(3):
    buffer = io.BytesIO()
    np.savez(buffer, **(flash(range(20 + k, 30)) | {'caption': 'x'}))
    writer.write(buffer.getvalue())
  writer.close()
  cfg = data.DataConfig(str(tmp_path), str(tmp_path), num_frames=30)
  take = lambda n: [
    b for _, b in zip(range(n), data.windows(cfg, 3, 7), strict=False)
  ]
  first, again = take(2), take(2)
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert first[0]['mels'].shape == (3, 126, 40)
  assert first[0]['mouth'].shape == (3, 30, 40, 40)
  assert not np.array_equal(first[0]['mouth'], first[1]['mouth'])
  (plain,) = data.plain(cfg, 2)  # What fills no batch is left out.
  record = data.open_clips(str(tmp_path))[1]
  want = data.plain_window(record, cfg)
  np.testing.assert_array_equal(plain['mels'][1], want['mels'])
  np.testing.assert_array_equal(plain['mouth'][1], want['mouth'])
  with pytest.raises(FileNotFoundError, match='launch.prepare --stage clips'):
    data.open_clips(str(tmp_path / 'none'))
  with pytest.raises(ValueError, match='num_frames must be 22 or more'):
    data.DataConfig('', '', num_frames=20)
