"""Eyelids from MediaPipe's iris network (Ablavatski et al., arXiv 2006.11341).

The face mesh alone barely moves its lids when eyes shut (on GRID its eye
curve spans 0.29 to 0.32); this network sees one eye at 64 pixels and follows
a blink down to 0.05, on 96-pixel faces too.
"""

import math

from jaxtyping import Float, UInt8
import numpy as np

from launch import face_models

EYE_MODEL = 'iris_landmark.tflite'
# Mesh indices of the network's first 16 points, from the outer corner along
# the lower lid to the inner corner, then along the upper lid the same way.
LEFT_CONTOUR = (33, 7, 163, 144, 145, 153, 154, 155, 133)
LEFT_CONTOUR += (246, 161, 160, 159, 158, 157, 173)
RIGHT_CONTOUR = (263, 249, 390, 373, 374, 380, 381, 382, 362)
RIGHT_CONTOUR += (466, 388, 387, 386, 385, 384, 398)
# The network was trained on squares of this many eye widths.
EYE_MARGIN = 2.3


class EyeNetwork:
  """Replaces the mesh's eye contours by finer ones."""

  def __init__(self, threads: int = 1):
    self._network = face_models.Network(EYE_MODEL, threads)

  def refine(
    self,
    image: UInt8[np.ndarray, 'H W 3'],
    landmarks: Float[np.ndarray, '468 3'],
  ) -> Float[np.ndarray, '468 3']:
    """A copy of `landmarks` (pixels of `image`) with new eye contours x y."""
    refined = landmarks.copy()
    tilt = landmarks[RIGHT_CONTOUR[0], :2] - landmarks[LEFT_CONTOUR[0], :2]
    angle = math.atan2(tilt[1], tilt[0])
    for contour, mirrored in ((LEFT_CONTOUR, False), (RIGHT_CONTOUR, True)):
      outer, inner = landmarks[contour[0], :2], landmarks[contour[8], :2]
      middle = (outer + inner) / 2
      # A degenerate mesh (no face in the region) must not yield an empty one.
      width = max(float(np.linalg.norm(outer - inner)), 1.0)
      roi = face_models.Roi(
        float(middle[0]), float(middle[1]), EYE_MARGIN * width, angle
      )
      points = self._contour(image, roi, mirrored)
      matrix = face_models.roi_matrix(roi, self._network.size)
      refined[list(contour), :2] = points @ matrix[:, :2].T + matrix[:, 2]
    return refined

  def _contour(
    self, image: np.ndarray, roi: face_models.Roi, mirrored: bool
  ) -> Float[np.ndarray, '16 2']:
    """The 16 contour points in patch pixels; the network knows left eyes."""
    size = self._network.size
    patch = face_models.roi_patch(image, roi, size).astype(np.float32) / 255
    if mirrored:
      patch = np.ascontiguousarray(patch[:, ::-1])
    points = self._network(patch)[0].reshape(71, 3)[:16, :2].copy()
    if mirrored:
      points[:, 0] = size - points[:, 0]
    return points
