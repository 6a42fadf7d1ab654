import numpy as np
import pytest

from mirage_jax import evals_image


@pytest.fixture(scope='module')
def frames():
  """Six frames of a fixed random texture, 24 pixels high and 32 wide."""
  texture = np.random.default_rng(0).integers(40, 200, (1, 24, 32, 3))
  return np.repeat(texture, 6, axis=0).astype(np.uint8)


def test_psnr_of_a_known_error_and_of_a_mask(frames):
  changed = frames + np.uint8(5)
  known = 20 * np.log10(255 / 5)
  assert evals_image.psnr(changed, frames) == pytest.approx(known, abs=1e-4)
  assert evals_image.psnr(frames, frames) == pytest.approx(100)
  left = np.zeros((24, 32), bool)
  left[:, :16] = True
  half = frames.copy()
  half[:, :, 16:] += 30
  assert evals_image.psnr(half, frames, left) == pytest.approx(100)
  with pytest.raises(ValueError, match='compared'):
    evals_image.psnr(frames[:3], frames)


def test_ssim_orders_noise_and_respects_the_mask(frames):
  pytest.importorskip('skimage', reason='needs the eval extra')
  noise = np.random.default_rng(1).normal(size=frames.shape)
  noisy = [
    np.clip(frames + s * noise, 0, 255).astype(np.uint8) for s in (5, 20)
  ]
  scores = [evals_image.ssim(x, frames) for x in (frames, *noisy)]
  assert scores[0] == pytest.approx(1) and scores[0] > scores[1] > scores[2]
  left = np.zeros((24, 32), bool)
  left[:, :8] = True
  half = frames.copy()
  half[:, :, 20:] = 0
  assert evals_image.ssim(half, frames, left) == pytest.approx(1)


def test_flicker_ignores_steady_change_and_sees_pumping(frames):
  ramp = frames + np.arange(6, dtype=np.uint8)[:, None, None, None]
  assert evals_image.flicker(ramp) == 0
  pump = frames + np.uint8([0, 4] * 3)[:, None, None, None]
  assert evals_image.flicker(pump) == pytest.approx(8)
  with pytest.raises(ValueError, match='3 frames'):
    evals_image.flicker(frames[:2])


def test_drift_is_the_change_of_colour_over_the_clip(frames):
  assert evals_image.drift(frames, 2) == 0
  warmer = frames.copy()
  warmer[3:, ..., 0] += 6
  assert evals_image.drift(warmer, 2) == pytest.approx(6 / np.sqrt(3))


def test_sharpness_falls_with_blur_and_counts_masked_pixels(frames):
  blurred = frames.astype(np.float32)
  blurred = (blurred + np.roll(blurred, 1, 2) + np.roll(blurred, -1, 2)) / 3
  soft = blurred.astype(np.uint8)
  assert evals_image.sharpness(soft) < 0.6 * evals_image.sharpness(frames)
  flat = frames.copy()
  flat[:, :, :16] = 100
  left = np.zeros((24, 32), bool)
  left[:, :14] = True
  assert evals_image.sharpness(flat, left) == 0
  sharp = evals_image.sharpness(frames)
  assert evals_image.sharpness(flat, ~left) == pytest.approx(sharp, rel=0.2)


def test_seam_stands_out_only_at_a_jump():
  rng = np.random.default_rng(0)
  start = rng.integers(40, 200, (8, 8, 3))
  steps = rng.normal(0, 2, (30, 8, 8, 3)).cumsum(axis=0)
  clip = np.clip(start + steps, 0, 255).astype(np.uint8)
  assert evals_image.seam(clip, 15) == pytest.approx(1, abs=0.3)
  clip[15:] = np.clip(clip[15:] + 40.0, 0, 255).astype(np.uint8)
  assert evals_image.seam(clip, 15) > 5
  assert evals_image.seam(clip, 14) < 2
  with pytest.raises(ValueError, match='no seam'):
    evals_image.seam(clip, 30)


def test_mouth_static_leaves_out_one_box_for_the_whole_clip():
  landmarks = np.zeros((2, 468, 3), np.float32)
  landmarks[:, evals_image.NOSE_BASE, 1] = 10
  landmarks[:, evals_image.CHIN, 1] = 18, 20
  landmarks[:, evals_image.LIP_LEFT, 0] = 12
  landmarks[:, evals_image.LIP_RIGHT, 0] = 16, 20
  mask = evals_image.mouth_static(landmarks, 24, 32)
  rows, columns = np.nonzero(~mask)
  assert (rows.min(), rows.max()) == (10, 21)
  assert (columns.min(), columns.max()) == (8, 24)
  assert (~mask).sum() == 12 * 17
