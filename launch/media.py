"""Reads and writes video, sound and images: any container that PyAV opens.

One clock for both streams: time 0 is the first video frame's own timestamp,
after the container's edit list. Sound that starts before it is cut, sound that
starts after it is padded with silence, so sample `s` of `read_audio` belongs to
time s / rate and frame `n` of `read_video` to time n / fps of one clock. A file
without video starts at its first sample.
"""

from collections.abc import Iterator
import os
from typing import NamedTuple

from jaxtyping import Float, UInt8
import numpy as np
import soxr

from launch import container, sound
from launch.container import MediaError
from launch.mux import write_image, write_video

__all__ = (
  'MediaError',
  'Video',
  'iterate_video',
  'read_audio',
  'read_image',
  'read_video',
  'write_image',
  'write_video',
)


class Video(NamedTuple):
  frames: UInt8[np.ndarray, 'N H W 3']
  fps: float
  start: float  # Seconds of frame 0 on the container's own clock.


def read_video(
  path: str | os.PathLike, fps: float = 25, tolerant: bool = False
) -> Video:
  """The whole video at a constant `fps`; see `iterate_video` for long ones.

  Raises:
    MediaError: no such file, no picture in it, or damaged data.
  """
  frames = list(iterate_video(path, fps, tolerant))
  start = container.first_frame_time(path, tolerant)
  return Video(np.stack(frames), fps, start)


def iterate_video(
  path: str | os.PathLike, fps: float = 25, tolerant: bool = False
) -> Iterator[UInt8[np.ndarray, 'H W 3']]:
  """Frames at times 0, 1/fps, 2/fps..., each the nearest in time in the file.

  Turned upright by the container's rotation, scaled to square pixels. The
  number of frames is the duration times fps, rounded.

  Args:
    path: any file that PyAV opens.
    fps: frames per second of the result.
    tolerant: go on after damaged packets instead of raising.

  Raises:
    MediaError: no such file, no picture in it, or damaged data.
  """
  with container.opened(path, tolerant) as source:
    stream = source.video()
    if stream is None:
      raise MediaError(f'{path}: has no video; give a file with a picture')
    period = float(1 / (stream.average_rate or fps))
    zero = shown = pixels = None
    time, n = 0.0, 0
    for frame in source.decode(stream):
      if shown is None:
        zero, size = frame.time or 0.0, _square_size(frame, stream)
      else:
        after = time + period if frame.time is None else frame.time - zero
        if after <= time:
          continue  # Two frames at one time: a broken muxer; keep the first.
        source.check_gap(time, after)
        pixels = None
        while n / fps <= (time + after) / 2 + 1e-6:
          pixels = _upright(shown, size) if pixels is None else pixels
          yield pixels
          n += 1
        time = after
      shown = frame
    if shown is None:
      raise MediaError(f'{path}: no frame can be decoded; re-encode it')
    end = time + (float(shown.duration * shown.time_base) or period)
    source.check_end(stream, zero + end)
    pixels = _upright(shown, size)
    for _ in range(n, max(round(end * fps), 1)):
      yield pixels


def read_audio(
  path: str | os.PathLike, rate: int = 16000, tolerant: bool = False
) -> Float[np.ndarray, 'S']:
  """The first sound stream, mono, from the time of the first video frame.

  Any layout is mixed with the weights of ITU-R BS.775 (centre 1, front and
  surround 0.71, no LFE) scaled to sum to 1; any rate is resampled by soxr.
  Holes in the timestamps become silence, overlaps are cut.

  Returns:
    float32 in about [-1, 1]; it may be shorter or longer than the video.

  Raises:
    MediaError: no such file, no sound in it, or damaged data.
  """
  zero = container.first_frame_time(path, tolerant)
  with container.opened(path, tolerant) as source:
    stream = source.audio()
    if stream is None:
      raise MediaError(f'{path}: has no audio; give a file with sound')
    parts, resample = [], None
    for native, wave in sound.on_clock(source, stream, zero):
      if resample is None:
        resample = soxr.ResampleStream(native, rate, 1, dtype='float32')
        started = native
      if native != started:
        raise MediaError(f'{path}: sample rate changes midway; re-encode it')
      parts.append(resample.resample_chunk(wave))
    if resample is None:
      raise MediaError(f'{path}: no sound can be decoded; re-encode it')
    parts.append(resample.resample_chunk(np.zeros(0, np.float32), last=True))
  return np.concatenate(parts)


def read_image(path: str | os.PathLike) -> UInt8[np.ndarray, 'H W 3']:
  """A PNG, JPEG, WebP, BMP... picture as RGB, upright; alpha is dropped.

  Raises:
    MediaError: no such file, or it is not a still image.
  """
  wanted = 'an image; give a PNG or JPEG'
  with container.opened(path, wanted=wanted) as source:
    stream = source.video()
    still = source.kind.endswith('_pipe') or source.kind.startswith('image2')
    if stream is None or not still:
      raise MediaError(f'{path}: is not {wanted} ({source.kind})')
    try:
      frame = next(source.decode(stream), None)
    except MediaError as error:
      raise MediaError(f'{path}: is damaged, or not {wanted}') from error
    if frame is None:
      raise MediaError(f'{path}: is not {wanted}')
    return _upright(frame, (frame.width, frame.height))


def _square_size(frame, stream):
  aspect = float(stream.sample_aspect_ratio or 1)
  return round(frame.width * aspect) or frame.width, frame.height


def _upright(frame, size):
  pixels = frame.to_ndarray(format='rgb24', width=size[0], height=size[1])
  turns = round(frame.rotation / 90) % 4
  return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
