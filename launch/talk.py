"""One talking video: reads sound and face, draws, writes, tells how long."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import os
import pathlib
from typing import BinaryIO

from jaxtyping import Float, UInt8
import numpy as np

from launch import (
  ahead,
  bundle,
  encoder_sources,
  faces,
  generate,
  media,
  speech,
  stream,
)
from launch.errors import UserError
from launch.steps_bar import StepsBar
from launch.stopwatch import Stopwatch
from mirage_jax import audio as audio_lib, latents, quantise

SUFFIXES = ('.mp4', '.mov', '.m4v')
See = Callable[[UInt8[np.ndarray, 'N H W 3']], None]


@dataclasses.dataclass(frozen=True)
class Job:
  """One video to make; the keys of a manifest's line.

  Attributes:
    audio: File with the sound; '' if it is made from text_to_speech.
    out: The video.
    image: File with the face, or None.
    text: What is to be seen.
    text_to_speech: The words to say, if there is no sound.
  """

  audio: str
  out: str
  image: str | None = None
  text: str = ''
  text_to_speech: str = ''


def load_generator(
  path: str | os.PathLike | None,
  vae: str | os.PathLike | None = None,
  quantised: str = quantise.NONE,
  places: encoder_sources.Places = encoder_sources.AS_RECORDED,
  programs: pathlib.Path | None = None,
) -> generate.Generator:
  """The shipped model, a bundle, or the latest average of a workdir.

  Args:
    path: None, a file of `launch.export`, or a workdir of `launch.train`.
    vae: for a workdir, the bundle of its autoencoder; None is the shipped one.
    quantised: see `Generator`.
    places: where its encoders lie, if not where they were in training.
    programs: folder of `ahead.Programs`; None keeps none.

  Raises:
    UserError: nothing usable there.
  """
  run = latents.call if programs is None else ahead.Programs(programs)
  if path is None or not os.path.isdir(path):
    if vae:
      raise UserError('--vae goes with a workdir; a bundle has its own VAE')
    path = path or bundle.DEFAULT
    made = bundle.relocated(bundle.load(path), places)
    return generate.Generator(made, str(path), quantised, run)
  from launch import changes  # Brings Orbax, and Grain, which take a second.

  config, params = changes.transformer(path)
  if 'model' not in config:
    raise UserError(
      f'{path}: is no run of a transformer; give the workdir of one, or a '
      'bundle of launch.export'
    )
  try:
    joined = bundle.join(bundle.load(vae or bundle.DEFAULT), config, params)
  except UserError as error:
    raise UserError(f'--vae: {error}') from error
  joined = bundle.relocated(joined, places)
  return generate.Generator(joined, str(path), quantised, run)


def read_wave(path: str | os.PathLike) -> Float[np.ndarray, 'S']:
  """The sound of a file, 16 kHz mono; UserError if there is none in it."""
  wave = media.read_audio(path, rate=audio_lib.RATE)
  if not np.isfinite(wave).all():
    raise UserError(f'{path}: has samples that are no numbers; write it anew')
  if audio_lib.is_silent(wave):
    raise UserError(f'{path}: is silent, nothing to speak; give another sound')
  return wave


def read_face(
  path: str | os.PathLike, size: int
) -> UInt8[np.ndarray, 'size size 3']:
  """The face in a picture, cropped as the training clips were.

  A picture of exactly `size` x `size` is taken for such a crop.

  Raises:
    UserError: no picture, or no face in it.
  """
  image = media.read_image(path)
  if image.shape == (size, size, 3):
    return image
  try:
    box = faces.face_crop_box(image[None])
  except faces.NoFaceError as error:
    raise UserError(
      f'{path}: no face is found in it; give a picture of a face seen from '
      'the front'
    ) from error
  return faces.crop_resize(image[None], box, size)[0]


def check_out(path: str | os.PathLike) -> None:
  """Finds out before the work whether a video can be written there.

  Raises:
    UserError: another kind of file, or no folder can be made for it.
  """
  out = pathlib.Path(path)
  if out.suffix.lower() not in SUFFIXES:
    raise UserError(f'--out={path}: the video is an .mp4 (or .mov); name it so')
  if out.is_dir():
    raise UserError(f'--out={path}: is a folder; name a file')
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'--out={path}: its folder cannot be made ({error.strerror}); name '
      'another'
    ) from error


def make_video(
  generator: generate.Generator,
  job: Job,
  settings: generate.Settings,
  watch: Stopwatch,
  see: See = lambda frames: None,
  engine: speech.Engine = speech.synthesise,
  live: BinaryIO | None = None,
) -> Float[np.ndarray, 'S']:
  """Makes one video, window by window, so that its length costs no memory.

  Args:
    generator: the model.
    job: what to read and where to write.
    settings: how to sample.
    watch: gets the stages read, speech, sample, decode, write (and compile).
    see: called with the frames of each window, uncompressed.
    engine: speaks job.text_to_speech.
    live: gets the video, too, while it is being made; see `launch.stream`.

  Returns:
    What it speaks, 16 kHz mono.

  Raises:
    UserError: bad input or a full disk; then nothing is written.
  """
  check_out(job.out)
  with watch('read'):
    image = read_face(job.image, generator.size) if job.image else None
  if job.audio:
    with watch('read'):
      wave = read_wave(job.audio)
  else:
    with watch('speech'):
      wave = engine(job.text_to_speech).wave
  count = generator.num_windows(len(wave), settings.joints.overlap)
  total = count * settings.steps
  with StepsBar(job.out, total) as advance, watch('write'):
    windows = generator.windows(wave, image, job.text, settings, advance, watch)
    film(job.out, windows, wave, see, live)
  return wave


def film(
  out: str | os.PathLike,
  windows: Iterator[UInt8[np.ndarray, 'N H W 3']],
  wave: Float[np.ndarray, 'S'],
  see: See = lambda frames: None,
  live: BinaryIO | None = None,
) -> None:
  """Writes frames, as they come, with their sound; see `make_video`."""

  def one_by_one(*onlookers):
    for frames in windows:
      for look in onlookers:
        look(frames)
      yield from frames

  rate = audio_lib.RATE
  with contextlib.ExitStack() as stack:
    onlookers = [see]
    if live is not None:
      growing = stream.Stream(live, wave, rate=rate)
      onlookers = [stack.enter_context(growing).add, see]
    media.write_video(out, one_by_one(*onlookers), wave, fps=25, rate=rate)
