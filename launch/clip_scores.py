"""Scores of one clip's frames against the truth, by landmarks and pixels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np
from PIL import Image, ImageDraw

from launch import faces
from mirage_jax import evals, evals_image

# Mesh points that neither speech, blinks nor brows move: eye corners, bridge
# and base of the nose.
STILL_POINTS = (33, 133, 263, 362, 168, 6, 197, 195)
# The mesh's outline of the face, clockwise from the top of the forehead.
OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365)
OVAL += (379, 378, 400, 377, 152, 148, 176, 149, 150, 136, 172, 58, 132, 93)
OVAL += (234, 127, 162, 21, 54, 103, 67, 109)
MAX_LAG = 10


class Look(NamedTuple):
  """A clip as the measures see it; `found`: its own face told where to look."""

  frames: UInt8[np.ndarray, 'N H W 3']
  landmarks: Float[np.ndarray, 'N 468 3']
  mouth: Float[np.ndarray, 'N']
  eyes: Float[np.ndarray, 'N']
  found: bool


def look(
  frames: UInt8[np.ndarray, 'N H W 3'],
  mesh: faces.FaceMesh,
  rois: Sequence[faces.Roi] | None = None,
) -> Look:
  """Finds landmarks and curves once.

  A clip in which no face is found is judged all the same, at `rois`: leaving it
  out because its face is unrecognisable would flatter the model.

  Raises:
    NoFaceError: no face is found and `rois` is None.
  """
  found = True
  try:
    rois = mesh.clip_rois(frames)
  except faces.NoFaceError:
    if rois is None:
      raise
    found = False
  landmarks = mesh.landmarks_clip(frames, rois)
  return Look(
    frames,
    landmarks,
    faces.mouth_opening(landmarks),
    faces.eye_opening(landmarks),
    found,
  )


def score(made: Look, truth: Look, rebuilt: Look, fps: float) -> dict[str, Any]:
  """Everything that one row of the table says about one clip.

  PSNR (dB) and SSIM are taken where the mouth does not move in either clip:
  against the truth, against the autoencoder's reconstruction of it, and, within
  the face's outline, against the same reconstruction after each frame is moved,
  turned and scaled onto it by the still points of the face. A head that holds
  another pose than the true one fails the first two, however well it is drawn.

  Args:
    made: the clip to judge.
    truth: the real clip, cropped and resized alike.
    rebuilt: the truth through the autoencoder.
    fps: frames per second.

  Returns:
    Floats and lists of floats, ready for JSON.
  """
  size = truth.frames.shape[1:3]
  both = np.concatenate([made.landmarks, truth.landmarks])
  static = evals_image.mouth_static(both, *size)
  aligned, seen = align(made, rebuilt)
  seen &= static & face_mask(rebuilt)
  out = {
    'face_found': float(made.found),
    'mouth_correlation': evals.pearson(made.mouth, truth.mouth),
    'lag_profile': evals.lag_profile(made.mouth, truth.mouth, MAX_LAG).tolist(),
    'blinks': len(evals.blinks(made.eyes, fps)),
    'seconds': len(made.frames) / fps,
    'drift': evals_image.drift(made.frames, fps),
    'mouth': made.mouth.round(5).tolist(),
    'eyes': made.eyes.round(5).tolist(),
  }
  for name, frames, target, mask in (
    ('whole_truth', made.frames, truth.frames, None),
    ('static_truth', made.frames, truth.frames, static),
    ('static_rebuilt', made.frames, rebuilt.frames, static),
    ('aligned_rebuilt', aligned, rebuilt.frames, seen),
  ):
    out[f'psnr_{name}'] = evals_image.psnr(frames, target, mask)
    out[f'ssim_{name}'] = evals_image.ssim(frames, target, mask)
  for name, measure in (
    ('flicker', evals_image.flicker),
    ('sharpness', evals_image.sharpness),
  ):
    ratio = measure(made.frames, static) / max(
      measure(truth.frames, static), 1e-6
    )
    out[f'{name}_ratio'] = ratio
  return out


def similarity(
  source: Float[np.ndarray, 'P 2'], target: Float[np.ndarray, 'P 2']
) -> Float[np.ndarray, '2 3']:
  """Least-squares rotation, scale and shift that take source to target.

  A complex number is a rotation with a scale, so one division solves it.
  """
  a = source.astype(np.float64) @ (1, 1j)
  b = target.astype(np.float64) @ (1, 1j)
  middle_a, middle_b = a.mean(), b.mean()
  a, b = a - middle_a, b - middle_b
  turn = np.vdot(a, b) / max(np.vdot(a, a).real, 1e-9)
  shift = middle_b - turn * middle_a
  return np.array(
    [
      [turn.real, -turn.imag, shift.real],
      [turn.imag, turn.real, shift.imag],
    ]
  )


def align(
  made: Look, target: Look
) -> tuple[UInt8[np.ndarray, 'N H W 3'], Bool[np.ndarray, 'H W']]:
  """Frames of `made` laid onto `target`'s face, and where all of them reach.

  The still points pass a 5-frame mean first: landmark noise must not shake
  the picture.
  """
  still = list(STILL_POINTS)
  smooth = [_smooth(x.landmarks[:, still, :2]) for x in (target, made)]
  height, width = made.frames.shape[1:3]
  out = np.empty_like(made.frames)
  seen = np.ones((height, width), bool)
  white = Image.new('L', (width, height), 255)
  for n, frame in enumerate(made.frames):
    # PIL asks where each pixel of the result comes from.
    back = tuple(similarity(smooth[0][n], smooth[1][n]).ravel())
    move = (width, height), Image.Transform.AFFINE, back
    picture = Image.fromarray(frame)
    out[n] = picture.transform(*move, Image.Resampling.BICUBIC)
    seen &= np.asarray(white.transform(*move)) == 255
  return out, seen


def face_mask(seen: Look) -> Bool[np.ndarray, 'H W']:
  """True within the face's outline, at its median place in the clip."""
  height, width = seen.frames.shape[1:3]
  outline = np.median(seen.landmarks[:, list(OVAL), :2], axis=0)
  picture = Image.new('1', (width, height))
  corners = [tuple(point) for point in outline.tolist()]
  ImageDraw.Draw(picture).polygon(corners, fill=1)
  return np.asarray(picture)


def _smooth(points: Float[np.ndarray, 'N P 2']) -> Float[np.ndarray, 'N P 2']:
  return np.stack(
    [points[max(n - 2, 0) : n + 3].mean(axis=0) for n in range(len(points))]
  )
