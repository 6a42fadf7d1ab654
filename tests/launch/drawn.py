"""Clips of a drawn face whose mouth is known, and who finds it."""

import numpy as np

from launch import clip_scores, faces, media

SIZE = 32


class DrawnFaces:
  """Stands for FaceMesh: knows where `draw_clip` put the face and its lips."""

  def detect(self, image):
    side = image.shape[0] / faces.CROP_MARGIN
    middle = image.shape[0] / 2
    box = np.array([middle - side / 2] * 2 + [middle + side / 2] * 2)
    box[[1, 3]] += faces.CROP_RISE * side
    return [faces.Face(box, np.zeros((6, 2)), 0.9)] if image.any() else []

  def clip_rois(self, frames):
    if not frames.any():
      raise faces.NoFaceError('no face')
    return [faces.Roi(16, 16, 20, 0)] * len(frames)

  def landmarks_clip(self, frames, rois):
    assert len(rois) == len(frames)
    points = np.zeros((len(frames), 468, 3))
    points[:, :, :2] = 16, 12
    still = [[6, 10], [12, 10], [26, 10], [20, 10]]
    points[:, [33, 133, 263, 362], :2] = still
    points[:, [2, 152, 61, 291], :2] = [[16, 18], [16, 30], [12, 24], [20, 24]]
    corners = [[4, 4], [28, 4], [28, 30], [4, 30]] * 9
    points[:, list(clip_scores.OVAL), :2] = corners
    mouth = frames[:, 22:26, 14:18].mean(axis=(1, 2, 3))
    for upper, lower in faces.MOUTH_PAIRS:
      points[:, lower, 1] = points[:, upper, 1] + mouth / 255
    for lids, _ in faces.EYES:
      for upper, lower in lids:
        points[:, upper, 1], points[:, lower, 1] = 9, 11
    return points


def draw_clip(mouth):
  """A textured still face whose mouth's brightness is `mouth` (0 to 1)."""
  texture = np.random.default_rng(0).integers(60, 180, (SIZE, SIZE, 3))
  frames = np.repeat(texture[None], len(mouth), axis=0).astype(np.uint8)
  frames[:, 21:27, 12:20] = (mouth * 255).astype(np.uint8)[:, None, None, None]
  return frames


def write_clips(folder):
  """Three 27-frame files whose loudness is the opening of the mouth."""
  for seed, name in enumerate('abc'):
    mouth = np.random.default_rng(seed).uniform(0, 1, 27)
    tone = np.sin(np.arange(27 * 640) * 0.3)
    wave = (0.8 * np.repeat(mouth, 640) * tone).astype(np.float32)
    media.write_video(folder / f'{name}.mp4', draw_clip(mouth), wave)
  return folder


def loudness(wave):
  """The mouth's opening that `write_clips` made so loud."""
  loud = np.abs(wave).reshape(-1, 640).max(axis=1)
  return np.clip(loud / 0.8, 0, 1)


def rebuild(frames):
  assert len(frames) % 25 == 0
  return frames ^ 1
