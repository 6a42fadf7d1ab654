"""A form that a stranger has sent -> what to make, or one line on why not."""

from collections.abc import Mapping
import dataclasses
import math
import pathlib

from PIL import Image

from launch import container, guidance_flags, media
from launch.errors import UserError
from launch.serve_jobs import Limits
from launch.settings import USUAL, Joints, Settings
from mirage_jax.guidance import NEUTRAL

FACES = ('shipped', 'none')
PIXELS = 50e6  # A larger picture is a bomb.
WORDS = ('text', 'negative_text', 'solver', 'guidance_schedule', 'skip_blocks')
NUMBERS = {guidance_flags.FLAGS[name]: name for name in (*NEUTRAL, 'rescale')}
JOINTS = ('overlap', 'reuse_noise', 'anchor')
FIELDS = ('text_to_speech', 'face', 'steps', 'seed', *WORDS, *NUMBERS, 'cache')
FIELDS += JOINTS
SWITCH = {'true': True, 'false': False}
FILES = ('audio', 'image')


@dataclasses.dataclass(frozen=True)
class Order:
  """One video to make.

  Attributes:
    text_to_speech: The words to say; '' if there is a sound.
    audio: The sound, or None.
    image: The face, or None.
    face: Without an image: 'shipped' for the model's own, or 'none'.
    text: What is to be seen.
    settings: How to sample.
  """

  text_to_speech: str
  audio: pathlib.Path | None
  image: pathlib.Path | None
  face: str
  text: str
  settings: Settings


def read_order(
  fields: Mapping[str, str],
  files: Mapping[str, pathlib.Path],
  limits: Limits,
  usual: Settings = USUAL,
) -> Order:
  """Checks everything that can be checked without the model.

  Args:
    fields: by the names of launch.sample's flags; all but the sound have
      defaults.
    files: 'audio' and 'image', those that are there.
    limits: of steps, letters and seconds.
    usual: the defaults of sampling.

  Raises:
    UserError: it names the field.
  """
  for name in fields:
    if name not in FIELDS:
      raise UserError(f'{name[:40]}: unknown; there are {", ".join(FIELDS)}')
  says = fields.get('text_to_speech', '').strip()
  if bool(says) == ('audio' in files):
    raise UserError('give either audio, a file, or text_to_speech')
  if len(says) > limits.letters:
    raise UserError(
      f'text_to_speech: has {len(says)} letters, at most {limits.letters} are '
      'spoken; say less'
    )
  face = fields.get('face', FACES[0])
  if face not in FACES:
    raise UserError(f'face={face[:40]}: give one of {", ".join(FACES)}')
  order = Order(
    says,
    files.get('audio'),
    files.get('image'),
    face,
    fields.get('text', ''),
    read_settings(fields, limits, usual),
  )
  if order.audio:
    check_sound(order.audio, limits.seconds)
  if order.image:
    check_picture(order.image)
  return order


def read_settings(
  fields: Mapping[str, str], limits: Limits, usual: Settings = USUAL
) -> Settings:
  """How the fields want it sampled; UserError names one that is wrong."""
  weights = {
    field: str(usual.guidance.weight(name).value)
    for field, name in NUMBERS.items()
    if name in NEUTRAL
  }
  numbers = {
    name: _number(field, value)
    for field, name in NUMBERS.items()
    if (value := fields.get(field, weights.get(field)))
  }
  guidance = guidance_flags.make_guidance(
    fields.get('guidance_schedule') or 'constant',
    fields.get('skip_blocks', ''),
    **numbers,
  )
  steps = _whole('steps', fields.get('steps') or str(usual.steps))
  if steps > limits.steps:
    raise UserError(f'steps={steps}: at most {limits.steps} are taken')
  return Settings(
    steps,
    guidance,
    _whole('seed', fields.get('seed') or '0'),
    fields.get('solver') or 'euler',
    fields.get('negative_text', ''),
    guidance_flags.make_caching(fields.get('cache') or 'none'),
    _read_joints(fields),
  )


def _read_joints(fields):
  found = {}
  for name in JOINTS:
    if not (value := fields.get(name)):
      continue
    if name == 'overlap':
      found[name] = _whole(name, value)
    elif value not in SWITCH:
      raise UserError(f'{name}={value[:40]}: give one of {", ".join(SWITCH)}')
    else:
      found[name] = SWITCH[value]
  return Joints(**found)


def check_sound(path: pathlib.Path, seconds: float) -> None:
  """Decodes no more than the time that is allowed.

  The header of a file may promise anything, and a small file unpack to days.

  Raises:
    UserError: there is no sound in it, or too much.
  """
  with container.opened(path) as source:
    stream = source.audio()
    if stream is None:
      raise UserError(f'{path}: has no audio; give a file with sound')
    first, heard = None, 0.0
    for frame in source.decode(stream):
      heard += frame.samples / frame.sample_rate
      time = heard
      if frame.time is not None:
        first = frame.time if first is None else first
        time = max(heard, frame.time - first)
      if time > seconds + 0.1:
        raise UserError(
          f'{path}: is longer than {seconds:g} s, the longest video made here; '
          'cut it'
        )
  if not heard:
    raise UserError(f'{path}: no sound can be decoded; re-encode it')


def check_picture(path: pathlib.Path) -> None:
  """Raises UserError for what is no picture, or far too large a one."""
  try:
    with Image.open(path) as header:  # Decodes nothing.
      width, height = header.size
  except Image.DecompressionBombError as error:
    raise UserError(f'{path}: has too many pixels; scale it down') from error
  except (Image.UnidentifiedImageError, OSError):
    width = height = 0  # Of a kind that only PyAV knows, or no picture.
  if width * height > PIXELS:
    raise UserError(f'{path}: has {width} x {height} pixels; scale it down')
  media.read_image(path)


def _number(name, text):
  try:
    value = float(text)
  except ValueError as error:
    raise UserError(f'{name}={text[:40]}: must be a number') from error
  if not math.isfinite(value):
    raise UserError(f'{name}={text[:40]}: must be a number')
  return value


def _whole(name, text):
  try:
    return int(text)
  except ValueError as error:
    raise UserError(f'{name}={text[:40]}: must be a whole number') from error
