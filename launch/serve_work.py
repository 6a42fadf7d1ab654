"""The work of a server: an order -> sound, frames, video, curves."""

import dataclasses
import time

from absl import logging
import jax
from jaxtyping import Float, UInt8
import numpy as np

from launch import bundle, clip_scores, faces, generate, media, speech, talk
from launch.errors import UserError
from launch.serve_jobs import Job, Limits
from launch.stopwatch import Stopwatch
from mirage_jax.audio import RATE, TOKEN_RATE

COLUMNS = 600  # Of a waveform.
# Solver, terms of guidance and caching are compiled in: so many ways to sample
# are kept.
WAYS = 16
FACE = bundle.DEFAULT.with_name('face.png')


class Studio:
  """Makes the video of a job: `studio(job)`; for one thread.

  Args:
    generator: the model.
    engine: speaks.
    limits: of the length of a video.
  """

  def __init__(
    self,
    generator: generate.Generator,
    engine: speech.Engine,
    limits: Limits,
  ):
    self._generator, self._engine, self._limits = generator, engine, limits
    self._ways = set()
    face = media.read_image(FACE)
    self._face = face if face.shape[0] == generator.size else None
    try:
      self._mesh = faces.default_mesh()
    except faces.FaceModelError as error:
      logging.warning('no mouth curves: %s', error)
      self._mesh = None

  @property
  def measures_lips(self) -> bool:
    """Whether jobs get a mouth curve."""
    return self._mesh is not None

  @property
  def has_face(self) -> bool:
    """Whether the shipped face is one for this model."""
    return self._face is not None

  def warm_up(self) -> None:
    """Compiles, or loads, what a job with the usual settings needs."""
    frames = self._generator.window_frames + 1  # A second window, too.
    wave = np.zeros(frames * RATE // TOKEN_RATE, np.float32)
    image = np.zeros((self._generator.size, self._generator.size, 3), np.uint8)
    settings = self._generator.usual
    if not self._generator.own_steps:
      settings = dataclasses.replace(settings, steps=2)  # As good as more.
    self._generator(wave, image, '', settings)

  def __call__(self, job: Job) -> None:
    """Fills the job's folder with video.mp4 and, from the start, live.mp4.

    Raises:
      UserError: it cannot be made.
      Cancelled: it need not be.
    """
    begun = time.monotonic()
    with Stopwatch() as watch:
      try:
        self._make(job, watch, begun)
      finally:
        job.took = {k: round(v, 2) for k, v in watch.seconds.items()}

  def _make(self, job, watch, begun):
    order, settings = job.order, job.order.settings
    self._make_room(settings)
    wave = self._hear(order, watch)
    job.check()
    with watch('read'):
      image = self._look(order)
    job.seconds, job.wave = len(wave) / RATE, outline(wave)
    overlap = settings.joints.overlap
    job.steps = self._generator.num_windows(len(wave), overlap) * settings.steps
    windows = self._generator.windows(
      wave, image, order.text, settings, job.advance, watch
    )

    def see(frames):
      if job.first_frame is None:
        job.first_frame = round(time.monotonic() - begun, 2)
      with watch('mouth'):
        job.mouth += self._mouth(frames)
      job.frames += len(frames)

    with watch('write'), (job.folder / 'live.mp4').open('wb') as live:
      talk.film(job.folder / 'video.mp4', windows, wave, see, live)

  def _make_room(self, settings):
    # Weights are not.
    terms = jax.tree.structure(settings.guidance)
    way = terms, settings.solver, settings.caching
    if way not in self._ways and len(self._ways) >= WAYS:
      jax.clear_caches()
      self._ways.clear()
    self._ways.add(way)

  def _hear(self, order, watch) -> Float[np.ndarray, 'S']:
    if order.audio:
      with watch('read'):
        wave = talk.read_wave(order.audio)
    else:
      with watch('speech'):
        wave = self._engine(order.text_to_speech).wave
    if len(wave) / RATE > self._limits.seconds + 0.1:
      raise UserError(
        f'this would be {len(wave) / RATE:.0f} s long, at most '
        f'{self._limits.seconds:g} s are made here; say less'
      )
    return wave

  def _look(self, order):
    if order.image:
      return talk.read_face(order.image, self._generator.size)
    return self._face if order.face == 'shipped' else None

  def _mouth(self, frames: UInt8[np.ndarray, 'N H W 3']) -> list[float | None]:
    if self._mesh is None:
      return []
    try:
      mouth = clip_scores.look(frames, self._mesh).mouth
    except faces.NoFaceError:
      return [None] * len(frames)
    return [round(float(value), 4) for value in mouth]


def outline(wave: Float[np.ndarray, 'S']) -> list[tuple[float, float]]:
  """Lowest and highest sample of each of up to COLUMNS parts of a wave."""
  edges = np.linspace(0, len(wave), min(COLUMNS, len(wave)), endpoint=False)
  edges = edges.astype(int)
  low, high = (f.reduceat(wave, edges) for f in (np.minimum, np.maximum))
  return np.stack([low, high], 1).round(4).tolist()
