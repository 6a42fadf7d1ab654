"""Faces in frames: where to crop, and how far mouth and eyes are open.

`FaceMesh` finds faces and 468 landmarks; the functions below it need nothing
but frames or landmarks. Mesh indices are those of MediaPipe's canonical face
model. Left and right are those of the image.
"""

from collections.abc import Sequence
import functools

from jaxtyping import Float, UInt8
import numpy as np
from PIL import Image

from launch import face_eyes, face_models
from launch.errors import UserError
from launch.face_models import Face, FaceModelError, Roi

__all__ = ['Face', 'FaceMesh', 'FaceModelError', 'NoFaceError', 'Roi']

# Pairs (upper, lower) of the inner lips' contour, middle and both sides.
MOUTH_PAIRS = ((13, 14), (82, 87), (312, 317))
# Per eye: pairs (upper, lower) of the lids, then the two corners.
EYES = (
  (((159, 145), (158, 153), (160, 144)), (33, 133)),
  (((386, 374), (385, 380), (387, 373)), (263, 362)),
)
EYE_CORNERS = (33, 263)
# The mesh is the mean over these zooms: averaging lifts the correlation of the
# mouth curve of 96-pixel crops with that of full frames from 0.96 to 0.98.
VIEW_SCALES = (1.0, 0.93, 1.07)
# The crop: side in face boxes, and how far its centre lies above the box's.
# Chosen by eye on GRID: eyes to chin large, with a rim of hair and collar.
CROP_MARGIN = 1.3
CROP_RISE = 0.06


class NoFaceError(UserError):
  """No face in an image or a clip."""


class FaceMesh:
  """Detector, landmark and eyelid networks, loaded once.

  Raises FaceModelError, naming the packages to install, if they are absent.
  """

  def __init__(self, threads: int = 1):
    self._detector = face_models.Network(face_models.DETECTOR, threads)
    self._mesh = face_models.Network(face_models.MESH, threads)
    self._eyes = face_eyes.EyeNetwork(threads)

  def detect(
    self, image: UInt8[np.ndarray, 'H W 3'], min_score: float = 0.5
  ) -> list[Face]:
    """Faces in pixels of `image`, the largest first; empty when there is none."""
    size = self._detector.size
    pixels, scale = face_models.letterbox(image, size)
    raw, logits = self._detector(pixels)
    faces = face_models.decode_faces(raw, logits, size, min_score)
    faces = [Face(f.box / scale, f.keypoints / scale, f.score) for f in faces]
    return sorted(faces, key=lambda f: f.box[0] - f.box[2])

  def landmarks(
    self, image: UInt8[np.ndarray, 'H W 3'], box: Face | Roi | None = None
  ) -> Float[np.ndarray, '468 3']:
    """Mesh points x y z in pixels of `image` (z: depth, nearer is smaller).

    Args:
      image: one frame.
      box: the face or the region to look in; None looks for the largest face.

    Raises:
      NoFaceError: `box` is None and no face is found.
    """
    if box is None:
      faces = self.detect(image)
      if not faces:
        raise NoFaceError(
          f'no face in an image of {image.shape[1]}x{image.shape[0]} pixels: '
          'give one that shows a face from the front'
        )
      box = faces[0]
    roi = face_models.mesh_roi(box) if isinstance(box, Face) else box
    views = [self._mesh_points(image, roi, scale) for scale in VIEW_SCALES]
    return self._eyes.refine(image, np.mean(views, axis=0, dtype=np.float32))

  def _mesh_points(
    self, image: np.ndarray, roi: Roi, scale: float
  ) -> Float[np.ndarray, '468 3']:
    """The mesh as seen in the region grown by `scale`, in image pixels."""
    roi = roi._replace(size=roi.size * scale)
    size = self._mesh.size
    patch = face_models.roi_patch(image, roi, size)
    points = self._mesh(patch.astype(np.float32) / 255.0)[0].reshape(468, 3)
    matrix = face_models.roi_matrix(roi, size)
    flat = points[:, :2].astype(np.float64) @ matrix[:, :2].T + matrix[:, 2]
    depth = points[:, 2:] * (roi.size / size)
    return np.concatenate([flat, depth], axis=-1)

  def clip_rois(
    self, frames: UInt8[np.ndarray, 'N H W 3'], stride: int = 5
  ) -> list[Roi]:
    """A region per frame that follows the head slowly and never jitters.

    Detections on every `stride`-th frame pass a running median over about a
    second and linear interpolation, so that what the mesh sees of a still
    head is still.

    Raises:
      NoFaceError: no sampled frame shows a face.
    """
    times, found = [], []
    for n in sample_frames(len(frames), 1 + (len(frames) - 1) // stride):
      faces = self.detect(frames[n])
      if faces:
        times.append(n)
        found.append(face_models.mesh_roi(nearest(faces, found)))
    if not found:
      raise NoFaceError(f'no face in any of {len(frames)} frames')
    rows = np.array(found)
    rows[:, 3] = np.unwrap(rows[:, 3])
    smooth = np.stack(
      [np.median(rows[max(i - 2, 0) : i + 3], axis=0) for i in range(len(rows))]
    )
    at = np.arange(len(frames))
    columns = [np.interp(at, times, smooth[:, k]) for k in range(4)]
    return [Roi(*map(float, row)) for row in np.stack(columns, axis=-1)]

  def landmarks_clip(
    self,
    frames: UInt8[np.ndarray, 'N H W 3'],
    rois: Sequence[Roi] | None = None,
  ) -> Float[np.ndarray, 'N 468 3']:
    """Landmarks of one person through a clip.

    Args:
      frames: the clip.
      rois: where to look in each frame; None finds out by `clip_rois`.

    Raises:
      NoFaceError: `rois` is None and no sampled frame shows a face.
    """
    rois = self.clip_rois(frames) if rois is None else rois
    pairs = zip(frames, rois, strict=True)
    return np.stack([self.landmarks(frame, roi) for frame, roi in pairs])


def nearest(faces: list[Face], found: list[Roi]) -> Face:
  """The face nearest to the last one found; at first, the largest."""
  if not found:
    return faces[0]
  here = np.array(found[-1][:2])
  middles = [(f.box[:2] + f.box[2:]) / 2 for f in faces]
  return faces[int(np.argmin([np.sum((m - here) ** 2) for m in middles]))]


def sample_frames(num_frames: int, samples: int) -> list[int]:
  """`samples` frame indices spread evenly, first and last included."""
  if num_frames < 1:
    raise NoFaceError('the clip has no frames')
  return sorted(
    set(np.linspace(0, num_frames - 1, samples).round().astype(int))
  )


@functools.cache
def default_mesh() -> FaceMesh:
  """The process's own FaceMesh, loaded on first use."""
  return FaceMesh()


def face_crop_box(
  frames: UInt8[np.ndarray, 'N H W 3'],
  mesh: FaceMesh | None = None,
  samples: int = 9,
) -> tuple[int, int, int]:
  """One square for the whole clip that holds hair, face and neck.

  The median over sampled frames: a frame without a face, or with a wrong one,
  does not move it. The square may leave the picture; `crop_resize` pads.

  Args:
    frames: the clip.
    mesh: detector to use; None uses the process's own.
    samples: number of frames to look at.

  Returns:
    x0, y0, size in whole pixels.

  Raises:
    NoFaceError: no sampled frame shows a face.
  """
  mesh = mesh or default_mesh()
  found, boxes = [], []
  for n in sample_frames(len(frames), samples):
    faces = mesh.detect(frames[n])
    if faces:
      face = nearest(faces, found)
      found.append(face_models.mesh_roi(face))
      boxes.append(face.box)
  if not boxes:
    raise NoFaceError(f'no face in {samples} of the {len(frames)} frames')
  x0, y0, x1, y1 = np.median(boxes, axis=0)
  side = max(x1 - x0, y1 - y0)
  size = round(CROP_MARGIN * side)
  x = (x0 + x1) / 2
  y = (y0 + y1) / 2 - CROP_RISE * side
  return round(x - size / 2), round(y - size / 2), size


def crop_resize(
  frames: UInt8[np.ndarray, 'N H W 3'], box: tuple[int, int, int], size: int
) -> UInt8[np.ndarray, 'N size size 3']:
  """Crops a square and resizes it, antialiased (Lanczos over the source).

  Args:
    frames: the clip.
    box: x0, y0, side in pixels; parts outside repeat the picture's edge.
    size: side of the result in pixels.
  """
  x0, y0, side = box
  height, width = frames.shape[1:3]
  rows = np.clip(np.arange(y0, y0 + side), 0, height - 1)
  columns = np.clip(np.arange(x0, x0 + side), 0, width - 1)
  out = np.empty((len(frames), size, size, 3), np.uint8)
  for n, frame in enumerate(frames):
    square = Image.fromarray(frame[rows[:, None], columns])
    out[n] = square.resize((size, size), Image.Resampling.LANCZOS)
  return out


def mouth_opening(
  landmarks: Float[np.ndarray, '*N 468 3'],
) -> Float[np.ndarray, '*N']:
  """Gap between the inner lips over the distance of the outer eye corners.

  Measured along the face's own vertical, so that closed lips read about 0
  and tilting the head changes nothing; mean of three pairs of points.
  """
  flat = landmarks[..., :2].astype(np.float64)
  across = flat[..., EYE_CORNERS[1], :] - flat[..., EYE_CORNERS[0], :]
  width = np.linalg.norm(across, axis=-1)
  down = np.stack([-across[..., 1], across[..., 0]], axis=-1)
  upper, lower = np.array(MOUTH_PAIRS).T
  gap = np.mean(flat[..., lower, :] - flat[..., upper, :], axis=-2)
  return np.sum(gap * down, axis=-1) / np.maximum(width**2, 1e-9)


def eye_opening(
  landmarks: Float[np.ndarray, '*N 468 3'],
) -> Float[np.ndarray, '*N']:
  """Lid gap over eye width, mean of both eyes (about 0.1 shut, 0.3 open).

  The eye aspect ratio of Soukupova and Cech 2016, with three pairs per eye.
  """
  flat = landmarks[..., :2].astype(np.float64)
  ratios = []
  for lids, (outer, inner) in EYES:
    upper, lower = np.array(lids).T
    gaps = np.linalg.norm(flat[..., upper, :] - flat[..., lower, :], axis=-1)
    width = np.linalg.norm(flat[..., outer, :] - flat[..., inner, :], axis=-1)
    ratios.append(np.mean(gaps, axis=-1) / np.maximum(width, 1e-9))
  return np.mean(ratios, axis=0)
