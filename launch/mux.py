"""Writes video with sound, and still images."""

from collections.abc import Iterable
import fractions
import itertools
import os

import av
from jaxtyping import Float, UInt8
import numpy as np

from launch.atomic import replacing

AAC_FRAME = 1024
CRF = 18  # x264's quality.


def write_video(
  path: str | os.PathLike,
  frames: Iterable[UInt8[np.ndarray, 'H W 3']],
  wave: Float[np.ndarray, 'S'] | None,
  fps: float = 25,
  rate: int = 16000,
  crf: int = CRF,
) -> None:
  """H.264 (yuv420p) with AAC; frame 0 and sample 0 at the same time.

  The AAC encoder puts 1,024 samples of priming before the sound. Frames with
  explicit times let it place them before zero, where the edit list hides them;
  without, the sound comes 64 ms late.

  Args:
    path: .mp4 or .mov; appears only when it is complete.
    frames: an array uint8[N H W 3] or a stream of frames, even H and W.
    wave: float32 mono in [-1, 1], or None for a silent file.
    fps: frames per second.
    rate: samples per second of `wave`.
    crf: x264's quality, lower is better; 18 is visually lossless.

  Raises:
    ValueError: no frames, odd sizes, or a wave that is not finite and mono.
    UserError: the disk is full or the folder is not writable.
  """
  first, frames = _peek(frames)
  if wave is not None and (wave.ndim != 1 or not np.isfinite(wave).all()):
    raise ValueError(f'{path}: the wave must be finite and mono: {wave.shape}')
  with replacing(path) as half:
    options = {'movflags': '+faststart'}
    with av.open(str(half), 'w', options=options) as container:
      picture = picture_stream(container, first.shape, fps, crf)
      sound = None
      if wave is not None:
        sound = sound_stream(container, rate)
      sent = 0
      for n, pixels in enumerate(frames):
        show(container, picture, pixels, n)
        if sound is not None:
          upto = int((n + 1) / fps * rate)
          sent = send(container, sound, wave, sent, upto, rate)
      if sound is not None:
        send(container, sound, wave, sent, len(wave) + AAC_FRAME, rate)
        container.mux(sound.encode(None))
      container.mux(picture.encode(None))


def write_image(
  path: str | os.PathLike, image: UInt8[np.ndarray, 'H W 3']
) -> None:
  """A PNG; appears only when it is complete.

  Raises:
    UserError: the disk is full or the folder is not writable.
  """
  codec = av.CodecContext.create('png', 'w')
  codec.height, codec.width = image.shape[:2]
  codec.pix_fmt, codec.time_base = 'rgb24', fractions.Fraction(1)
  frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), 'rgb24')
  packets = codec.encode(frame) + codec.encode(None)
  with replacing(path) as half:
    half.write_bytes(b''.join(bytes(p) for p in packets))


def _peek(frames):
  frames = iter(frames)
  first = next(frames, None)
  if first is None:
    raise ValueError('there are no frames to write')
  if first.dtype != np.uint8 or first.ndim != 3 or first.shape[2] != 3:
    raise ValueError(f'frames must be uint8[H W 3]: {first.dtype}{first.shape}')
  if first.shape[0] % 2 or first.shape[1] % 2:
    raise ValueError(f'yuv420p needs even height and width: {first.shape[:2]}')
  return first, itertools.chain([first], frames)


def picture_stream(container, shape, fps, crf, **options):
  """An H.264 stream of pictures; `options` are x264's."""
  rate = fractions.Fraction(fps).limit_denominator(1001)
  stream = container.add_stream('libx264', rate=rate)
  stream.height, stream.width = shape[:2]
  stream.codec_context.time_base = 1 / rate
  stream.pix_fmt = 'yuv420p'
  stream.options = {'crf': str(crf)} | options
  # The matrix that swscale uses; players would guess BT.709 for large frames.
  stream.codec_context.colorspace = 6  # SMPTE 170M
  stream.codec_context.color_range = 1  # limited
  return stream


def sound_stream(container, rate):
  """An AAC stream of mono sound."""
  # 16 kHz mono AAC cannot hold more than about 96 kbit/s.
  return container.add_stream(
    'aac', rate=rate, layout='mono', bit_rate=6 * rate
  )


def show(container, stream, pixels, number):
  """Encodes one picture at its place."""
  frame = av.VideoFrame.from_ndarray(pixels, format='rgb24')
  frame.pts, frame.time_base = number, stream.codec_context.time_base
  container.mux(stream.encode(frame))


def send(container, stream, wave, start, stop, rate):
  """Encodes whole AAC frames of wave[start:stop]; the first sample left."""
  while start + AAC_FRAME <= stop and start < len(wave):
    chunk = np.clip(wave[start : start + AAC_FRAME], -1, 1)
    frame = av.AudioFrame.from_ndarray(
      chunk[None].astype(np.float32), format='fltp', layout='mono'
    )
    frame.sample_rate = rate
    frame.pts, frame.time_base = start, fractions.Fraction(1, rate)
    container.mux(stream.encode(frame))
    start += AAC_FRAME
  return start
