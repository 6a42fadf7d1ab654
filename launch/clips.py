"""Video files -> square talking-face clips with their sound."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
import itertools
import os
import pathlib
from typing import Any

from jaxtyping import Float, UInt8
import numpy as np

from launch import colours, faces, media, shards
from launch.errors import UserError
from mirage_jax import audio

FPS = audio.TOKEN_RATE
# What lies beside videos in data sets: not tried, not reported.
NOT_VIDEO = {
  *('.align', '.csv', '.flac', '.jpeg', '.jpg', '.json', '.jsonl', '.lab'),
  *('.md', '.mp3', '.npy', '.npz', '.pdf', '.png', '.py', '.srt', '.textgrid'),
  *('.tsv', '.txt', '.vtt', '.wav', '.xml', '.yaml', '.yml', '.zip'),
}
SHORTEST = 25  # Frames: one chunk of the VAE.


@dataclasses.dataclass(frozen=True)
class ClipSettings:
  """What the content of a clip depends on.

  Attributes:
    size: side of the square in pixels.
    face_crop: cut around the face; otherwise the largest centred square.
    max_seconds: longer files become several clips.
    captions: 'auto' (see `colours.wall_caption`), 'none' or a JSON file of
      id -> caption.
    tolerant: keep files with damaged packets, without these.
  """

  size: int = 96
  face_crop: bool = True
  max_seconds: float = 10.0
  captions: str = 'auto'
  tolerant: bool = False


def find_videos(
  folder: str | os.PathLike, subset: Sequence[str] | None = None
) -> dict[str, pathlib.Path]:
  """id -> file, in order of id; the id is the path without its suffix.

  Args:
    folder: searched recursively; hidden files and obvious non-videos are not.
    subset: ids to take; None takes all. Those without a file are kept, to be
      quarantined.

  Raises:
    UserError: no folder, no file, or two files of one id.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise UserError(f'{folder}: no such folder; give --input a folder of clips')
  found: dict[str, pathlib.Path] = {}
  for path in sorted(folder.rglob('*')):
    inside = path.relative_to(folder)
    hidden = any(part.startswith('.') for part in inside.parts)
    if hidden or path.suffix.lower() in NOT_VIDEO or not path.is_file():
      continue
    clip = inside.with_suffix('').as_posix()
    if clip in found:
      raise UserError(f'{path}: same name as {found[clip]}; rename one')
    found[clip] = path
  if subset is not None:
    found = {k: found.get(k, folder / f'{k}.*') for k in subset}
  if not found:
    raise UserError(f'{folder}: holds no video')
  return dict(sorted(found.items()))


def fingerprint(videos: Mapping[str, pathlib.Path]) -> str:
  """Of names and sizes: tells a folder that has changed."""
  digest = hashlib.sha256()
  for clip, path in videos.items():
    size = path.stat().st_size if path.exists() else -1
    digest.update(f'{clip}\t{size}\n'.encode())
  return digest.hexdigest()[:16]


def read_captions(
  settings: ClipSettings, ids: Sequence[str]
) -> dict[str, str] | None:
  """The caption file's content; None unless `captions` names a file.

  Raises:
    UserError: no such file, or an id that is not in it.
  """
  if settings.captions in ('auto', 'none'):
    return None
  captions = shards.read_json(settings.captions)
  missing = [i for i in ids if not isinstance(captions.get(i), str)]
  if missing:
    raise UserError(
      f'{settings.captions}: no caption for {missing[0]!r} ({len(missing)} are'
      ' missing); add them'
    )
  return captions


def clip_outcomes(
  clip: str,
  path: pathlib.Path,
  settings: ClipSettings,
  captions: Mapping[str, str] | None = None,
) -> Iterator[shards.Outcome]:
  """The clips of one file, `max_seconds` in memory at a time.

  Records hold `id`, `caption`, `frames` uint8[N size size 3] at 25 per second
  and `wave` float32[N * 640] at 16 kHz. Several clips of one file are called
  `clip`_0000, `clip`_0001... A rest shorter than 25 frames is dropped.
  """
  try:
    wave = media.read_audio(path, tolerant=settings.tolerant)
    frames = media.iterate_video(path, FPS, settings.tolerant)
    step = round(settings.max_seconds * FPS)
    part = list(itertools.islice(frames, step))
    for n in itertools.count():
      rest = list(itertools.islice(frames, step))
      name = f'{clip}_{n:04}' if n or len(rest) >= SHORTEST else clip
      sound = wave[n * step * audio.HOP * 4 :]
      caption = None if captions is None else captions[clip]
      yield _outcome(name, np.stack(part), sound, settings, caption)
      if len(rest) < SHORTEST:
        break
      part = rest
  except media.MediaError as error:
    yield shards.Outcome(clip, None, str(error))


def _outcome(
  name: str,
  frames: UInt8[np.ndarray, 'N H W 3'],
  wave: Float[np.ndarray, 'S'],
  settings: ClipSettings,
  caption: str | None,
) -> shards.Outcome:
  count = len(frames)
  length = count * audio.RATE // FPS
  wave = wave[:length]
  if count < SHORTEST:
    return shards.Outcome(name, None, f'too short: {count} of 25 frames')
  if len(wave) < length / 2:
    heard, seen = len(wave) / audio.RATE, count / FPS
    reason = f'sound of {heard:.2f} s for {seen:.2f} s of video'
    return shards.Outcome(name, None, reason)
  if audio.is_silent(wave):
    return shards.Outcome(name, None, 'silent: the sound is below -60 dB')
  box = centre_box(*frames.shape[1:3])
  if settings.face_crop:
    try:
      box = faces.face_crop_box(frames)
    except faces.NoFaceError as error:
      return shards.Outcome(name, None, str(error))
  crops = faces.crop_resize(frames, box, settings.size)
  if caption is None:
    auto = settings.captions == 'auto'
    caption = colours.wall_caption(crops[0]) if auto else ''
  wave = np.pad(wave, (0, length - len(wave)))
  record: dict[str, Any] = {'id': name, 'caption': caption}
  return shards.Outcome(name, record | {'frames': crops, 'wave': wave})


def centre_box(height: int, width: int) -> tuple[int, int, int]:
  """x0, y0 and side of the largest centred square."""
  side = min(height, width)
  return (width - side) // 2, (height - side) // 2, side
