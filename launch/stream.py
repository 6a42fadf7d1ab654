"""A video that can be watched while the rest of it is still being made.

A fragmented MP4: each fragment of a fifth of a second stands for itself, so what
is written so far plays, in a browser as well. It has the same frames and sound
as the file of `launch.mux`, coded faster and a little larger.
"""

import os
from typing import BinaryIO

from absl import logging
import av
from jaxtyping import Float, UInt8
import numpy as np

from launch import mux

# delay_moov waits for the first packets, whose times go into the edit list:
# without it the sound comes 64 ms late, see `mux.write_video`.
MOVFLAGS = 'frag_keyframe+delay_moov+default_base_moof'
FRAGMENT = 200_000  # Microseconds.


class Stream:
  """`with Stream(file, wave) as stream: stream.add(frames)`, again and again.

  After each `add`, all but the last fragment of its frames is in the file, with
  its sound; at the end, everything.

  Who reads a pipe may leave: the rest of the stream then goes nowhere.

  Args:
    file: open for writing; it is only ever appended to, and flushed.
    wave: the whole sound, float32 mono in [-1, 1].
    fps: frames per second.
    rate: samples per second of `wave`.
  """

  def __init__(
    self,
    file: BinaryIO,
    wave: Float[np.ndarray, 'S'],
    fps: int = 25,
    rate: int = 16000,
  ):
    self._file, self._wave, self._fps, self._rate = file, wave, fps, rate
    self._frames = self._samples = 0
    self._picture = None

  def __enter__(self) -> 'Stream':
    options = {'movflags': MOVFLAGS, 'frag_duration': str(FRAGMENT)}
    options |= {'flush_packets': '1'}
    # Only `write` is shown, so that PyAV does not take it for seekable.
    sink = _Sink(self._file)
    self._container = av.open(sink, 'w', format='mp4', options=options)
    return self

  def add(self, frames: UInt8[np.ndarray, 'N H W 3']) -> None:
    """Frames to go on with, and the sound that belongs to them."""
    if self._picture is None:
      self._start(*frames.shape[1:3])
    for pixels in frames:
      mux.show(self._container, self._picture, pixels, self._frames)
      self._frames += 1
      self._say(self._frames * self._rate // self._fps)

  def __exit__(self, kind, *_) -> None:
    if kind is None and self._picture is not None:
      self._say(len(self._wave) + mux.AAC_FRAME)
      self._container.mux(self._sound.encode(None))
      self._container.mux(self._picture.encode(None))
    self._container.close()

  def _start(self, height, width):
    # No frame waits in the encoder for the next ones.
    options = dict(preset='veryfast', tune='zerolatency', g=str(self._fps))
    self._picture = mux.picture_stream(
      self._container, (height, width), self._fps, mux.CRF, **options
    )
    self._sound = mux.sound_stream(self._container, self._rate)

  def _say(self, upto):
    """Encodes whole AAC frames up to sample `upto`."""
    self._samples = mux.send(
      self._container, self._sound, self._wave, self._samples, upto, self._rate
    )


class _Sink:
  def __init__(self, file):
    self._file = file

  def write(self, data: bytes) -> int:
    try:
      self._file.write(data)
      self._file.flush()
    except BrokenPipeError:
      logging.warning('nobody watches the stream any more; the video goes on')
      # So does what is left in a buffer, which Python would write at its end.
      with open(os.devnull, 'wb') as nowhere:
        os.dup2(nowhere.fileno(), self._file.fileno())
    return len(data)
