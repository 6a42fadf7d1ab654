"""Video files -> verdicts on their sync."""

from collections.abc import Callable, Iterator
import itertools
import os
from typing import NamedTuple

import jax
from jaxtyping import Float, UInt8
import numpy as np
from PIL import Image

from infomax_jax.sync import Sync, Track, config, log_mel, mouth_frames, offsets
from infomax_jax.sync.sound import FPS, RATE
from launch import faces, media, sync_faces
from launch.errors import UserError
from launch.sync_weights import SyncWeights

PART = 100  # Frames that are encoded at once.
LARGEST = 720  # Pixels; larger pictures are halved while they are read.
SILENCE = 1e-3  # Of full scale.
REACH = 15  # Frames; the largest offset that is looked for.


class SyncError(UserError):
  """A video that cannot be judged: one line, file first, then why."""


class FileVerdict(NamedTuple):
  """The verdict on the face that fits best, and how it was seen.

  Attributes:
    verdict: on that face.
    seconds: for which it is seen.
    faces: how many there are in the video.
  """

  verdict: offsets.Verdict
  seconds: float
  faces: int


class People:
  """Faces told apart from part to part by where they are."""

  def __init__(self):
    self.scores: list[list[np.ndarray]] = []  # Of each part of each face.
    self.seen: list[int] = []  # Frames.
    self._last: list[np.ndarray] = []

  def add(
    self,
    track: Float[np.ndarray, 'N 3'],
    scores: Float[np.ndarray, 'T T'],
    fresh: int,
  ) -> None:
    """A face of the next part; one that is where none was is new.

    Args:
      track: where it is.
      scores: of the sound with it.
      fresh: how many frames no earlier part had.
    """
    at = sync_faces.nearest(self._last, track[0])
    if at is None:
      at = len(self._last)
      self.scores.append([])
      self.seen.append(0)
      self._last.append(track[-1])
    self.scores[at].append(scores)
    self.seen[at] += fresh
    self._last[at] = track[-1]


class Judge:
  """The two encoders with weights, compiled for parts of `PART` frames."""

  def __init__(self, weights: SyncWeights, reach: int = REACH):
    """`reach` is the largest offset that is looked for, in frames."""
    self.reach = reach
    self.weights = weights
    model = Sync(weights.model)
    variables = {'params': weights.params}
    self._hear = jax.jit(
      lambda x: model.apply(variables, x, method=lambda m, x: m.audio(x))
    )
    self._see = jax.jit(
      lambda x: model.apply(variables, x, method=lambda m, x: m.video(x))
    )

  @property
  def shortest(self) -> int:
    """Frames that it takes to look for every offset."""
    return 2 * self.reach + config.REACH

  def hear(
    self, wave: Float[np.ndarray, 'S'], frames: int
  ) -> Float[np.ndarray, 'T C']:
    """Vectors of the sound of up to `PART` frames."""
    mels = log_mel(wave, frames)
    mels = np.pad(mels, ((0, 4 * (PART - frames)), (0, 0)))
    return self._whole(self._hear(mels[None]), frames)

  def see(
    self, crops: UInt8[np.ndarray, 'N S S 3']
  ) -> Float[np.ndarray, 'T C']:
    """Vectors of the sight of up to `PART` face crops."""
    mouth = mouth_frames(crops)
    pad = ((0, PART - len(mouth)), (0, 0), (0, 0))
    return self._whole(self._see(np.pad(mouth, pad)[None]), len(crops))

  def _whole(self, track: Track, frames: int):
    # Padding is seen by none of the vectors that stay.
    return np.asarray(track.whole[0, : frames - config.REACH + 1])

  def scores(
    self, sound: Float[np.ndarray, 'T C'], sight: Float[np.ndarray, 'T C']
  ) -> Float[np.ndarray, 'T T']:
    """Of every frame's sound (rows) with every frame's sight."""
    return np.asarray(offsets.products(sound, sight, self.weights.clip))

  def verdict(self, parts: list[Float[np.ndarray, 'T T']]) -> offsets.Verdict:
    """On a clip of which `parts` are the scores."""
    curve = offsets.curve(parts, self.reach)
    return offsets.judge(curve, self.weights.calibration)

  def judge_file(
    self,
    path: str | os.PathLike,
    advance: Callable[[], None] = lambda: None,
    tolerant: bool = False,
  ) -> FileVerdict:
    """The verdict on a video file: on the face that fits the sound best.

    Args:
      path: any file that PyAV opens.
      advance: called after each part.
      tolerant: leave out what is damaged instead of raising.

    Raises:
      SyncError: no face, a silent sound, or too short.
      MediaError: no such file, no picture, no sound, or damaged.
    """
    wave = media.read_audio(path, RATE, tolerant)
    if not len(wave) or np.max(np.abs(wave)) < SILENCE:
      raise SyncError(f'{path}: is silent; give a video in which one speaks')
    people, total = People(), 0
    for start, frames in parts(path, tolerant):
      fresh = start + len(frames) - total
      total += fresh
      if total >= self.shortest:
        self._add_part(people, frames, wave[start * RATE // FPS :], fresh)
      advance()
    if total < self.shortest:
      raise SyncError(
        f'{path}: is too short: {total / FPS:.1f} of {self.shortest / FPS:.1f} '
        's that it takes to look for offsets; lower --reach'
      )
    if not people.scores:
      raise SyncError(f'{path}: shows no face from the front; nothing to judge')
    # Who is seen for less than half as long as another is not the speaker.
    longest = max(map(len, people.scores))
    verdicts = [
      FileVerdict(self.verdict(scores), seen / FPS, len(people.scores))
      for scores, seen in zip(people.scores, people.seen, strict=True)
      if 2 * len(scores) >= longest
    ]
    return max(verdicts, key=lambda found: found.verdict.confidence)

  def _add_part(self, people, frames, wave, fresh):
    detect = faces.default_mesh().detect
    heard = self.hear(wave, len(frames))
    for track in sync_faces.tracks(frames, detect):
      seen = self.see(sync_faces.crops(frames, track))
      people.add(track, self.scores(heard, seen), fresh)


def parts(
  path: str | os.PathLike, tolerant: bool = False
) -> Iterator[tuple[int, UInt8[np.ndarray, 'N H W 3']]]:
  """First frame and frames of each part; the last one overlaps if it must."""
  frames = (
    _shrunk(frame) for frame in media.iterate_video(path, FPS, tolerant)
  )
  last: list[np.ndarray] = []
  for n in itertools.count():
    rest = list(itertools.islice(frames, PART))
    if not rest:
      break
    start = n * PART - (PART - len(rest) if last else 0)
    yield start, np.stack([*last[len(rest) :], *rest] if last else rest)
    last = rest


def count_parts(path: str | os.PathLike) -> int:
  """How many `parts` there are, as far as the header tells; 1 or more."""
  with media.container.opened(path) as source:
    stream = source.video()
    length = (stream and stream.container.duration) or 0
  return max(-(-length * FPS // (PART * 1_000_000)), 1)


def _shrunk(frame):
  factor = -(-max(frame.shape[:2]) // LARGEST)
  if factor < 2:
    return frame
  return np.asarray(Image.fromarray(frame).reduce(factor))
