"""How a long video keeps who it shows, its colours, its detail and its lips."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import UInt8
import numpy as np

from launch import clip_scores, evaluation, faces, media
from launch.errors import UserError
from mirage_jax import evals, evals_image
from mirage_jax.audio import RATE, TOKEN_RATE

LIPS = 3  # Seconds that a correlation of the lips spans.
ENDS = 10  # Seconds, at most, that stand for the beginning and for the end.


def measure(
  load: Callable[[int], evaluation.Clip],
  count: int,
  seconds: int,
  generate: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
  rebuild: Callable[[np.ndarray], np.ndarray],
  mesh: faces.FaceMesh,
) -> dict[str, Any]:
  """Makes one video of the speech of clips, one after the other.

  Args:
    load: the clip of that number; the first gives the face.
    count: how many there are; they are repeated if they are too short.
    seconds: length of the video.
    generate: (wave, image, seed) -> frames.
    rebuild: frames of whole chunks through the autoencoder alone.
    mesh: finds the landmarks.

  Returns:
    Per second, against the first one: 'identity', PSNR in dB of the mean face
    without the mouth, laid onto the first one's; 'colour', RMS change in 8-bit
    levels; 'sharpness', ratio. 'lips': correlation with the true curve over the
    3 seconds that end there. 'mouth', 'true_mouth': the curves. 'noise': what
    the autoencoder alone does to identity and colour, of real frames.

  Raises:
    UserError: no clip can be used.
  """
  first = None
  waves, mouths, left = [], [], seconds * TOKEN_RATE
  number = 0
  while left > 0:
    if number == count and first is None:
      raise UserError('no clip can be used, see above; give others')
    try:
      clip = load(number % count)
      rois = mesh.clip_rois(clip.frames)
    except (media.MediaError, faces.NoFaceError):
      number += 1
      continue
    first = first or clip
    mouth = clip_scores.look(clip.frames, mesh, rois).mouth[:left]
    mouths.append(mouth)
    waves.append(clip.wave[: len(mouth) * RATE // TOKEN_RATE])
    left, number = left - len(mouth), number + 1
  wave, true = np.concatenate(waves), np.concatenate(mouths)
  frames = generate(wave, first.frames[0], 0)
  rois = mesh.clip_rois(first.frames[:1])
  seen = clip_scores.look(frames, mesh, rois * len(frames))
  return curves(seen, true) | {
    'mouth': seen.mouth.tolist(),
    'true_mouth': true.tolist(),
    'noise': autoencoder_noise(first.frames, rebuild, mesh),
  }


def autoencoder_noise(
  frames: UInt8[np.ndarray, 'N H W 3'],
  rebuild: Callable[[np.ndarray], np.ndarray],
  mesh: faces.FaceMesh,
) -> dict[str, float]:
  """What is lost between a real second and itself, rebuilt.

  Returns:
    'identity' and 'colour', as of the curves of `measure`.
  """
  second = frames[:TOKEN_RATE]
  both = np.concatenate([second, rebuild(second)])
  landmarks = mesh.landmarks_clip(second, mesh.clip_rois(second))
  # The real landmarks serve both: nothing moves.
  seen = clip_scores.Look(
    both,
    np.concatenate([landmarks, landmarks]),
    *[np.zeros(len(both))] * 2,
    True,
  )
  found = curves(seen, np.zeros(len(both)))
  return {name: found[name][1] for name in ('identity', 'colour')}


def curves(seen: clip_scores.Look, true: np.ndarray) -> dict[str, list[float]]:
  """The curves of `measure`; there are as many frames as `true` has values."""
  fps, frames = TOKEN_RATE, seen.frames
  # The first second's pose, for all time.
  pose = np.repeat(seen.landmarks[:fps].mean(axis=0)[None], len(frames), axis=0)
  aligned, mask = clip_scores.align(seen, seen._replace(landmarks=pose))
  still = evals_image.mouth_static(pose, *frames.shape[1:3])
  mask &= still & clip_scores.face_mask(seen._replace(landmarks=pose))
  face = lambda k: aligned[k * fps : (k + 1) * fps].mean(axis=0)[None]
  found = {'identity': [], 'colour': [], 'sharpness': [], 'lips': []}
  for k in range(len(frames) // fps):
    part = frames[k * fps : (k + 1) * fps]
    both = np.concatenate([frames[:fps], part])
    found['identity'].append(
      evals_image.psnr(face(k).round().astype(np.uint8), _first(face), mask)
    )
    found['colour'].append(evals_image.drift(both, fps))
    found['sharpness'].append(
      evals_image.sharpness(part) / evals_image.sharpness(frames[:fps])
    )
    span = slice(max(k + 1 - LIPS, 0) * fps, (k + 1) * fps)
    found['lips'].append(evals.pearson(seen.mouth[span], true[span]))
  return {name: [float(x) for x in curve] for name, curve in found.items()}


def _first(face):
  return face(0).round().astype(np.uint8)


def summarise(drift: Mapping[str, Any], window: int) -> dict[str, Any]:
  """Figures for a row: lips in the first window and after it; ends and trends.

  A trend is the change a minute of the line of least squares, and its standard
  error, as if seconds had errors of their own. The beginning begins with the
  second second: the first one is the measure.

  Args:
    drift: as `measure` returns it.
    window: frames of the first window.
  """
  mouth, true = np.array(drift['mouth']), np.array(drift['true_mouth'])
  found = {
    'mouth_correlation': evals.pearson(mouth, true),
    'first_window': evals.pearson(mouth[:window], true[:window]),
    'after_it': evals.pearson(mouth[window:], true[window:]),
    'sharpness': drift['sharpness'][-1],
  }
  for name in ('identity', 'colour'):
    curve = drift[name][1:]
    span = min(ENDS, -(-len(curve) // 2))
    found[f'{name}_begin'] = float(np.mean(curve[:span]))
    found[f'{name}_end'] = float(np.mean(curve[-span:]))
    found[f'{name}_noise'] = drift['noise'][name]
    if len(curve) > 2:
      line, covariance = np.polyfit(
        np.arange(len(curve)) / 60, curve, 1, cov=True
      )
      found[f'{name}_trend'] = float(line[0])
      found[f'{name}_trend_error'] = float(np.sqrt(covariance[0, 0]))
  return found
