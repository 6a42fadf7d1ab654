"""One opened media file: its streams, decoding, and the checks on them."""

from collections.abc import Iterator
import contextlib
import os
import pathlib

import av

from launch.errors import UserError

LONGEST_GAP = 60.0  # Seconds; a longer jump is a broken timestamp.
CUT_SHORT = 0.5  # Seconds that may be missing from what the header promises.


class MediaError(UserError):
  """A file that cannot be used as media: one line, file first, then remedy."""


@contextlib.contextmanager
def opened(
  path: str | os.PathLike,
  tolerant: bool = False,
  wanted: str = 'media that can be decoded; re-encode it',
) -> Iterator['Source']:
  """Opens `path`; every failure of PyAV becomes a MediaError that names it.

  Args:
    path: file of any container that PyAV reads.
    tolerant: skip damaged packets instead of raising.
    wanted: ends the line "`path`: is not ...".
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise MediaError(f'{path}: no such file')
  if not file.stat().st_size:
    raise MediaError(f'{path}: is empty (0 bytes); copy it again')
  try:
    # The protocol is spelt out, for names with a colon in them.
    with av.open(f'file:{file}') as container:
      yield Source(path, container, tolerant)
  except av.FFmpegError as error:
    raise MediaError(f'{path}: is not {wanted} ({error.strerror})') from error


class Source:
  """Streams of an opened file; made by `opened`."""

  def __init__(self, path, container, tolerant):
    self._path = path
    self._container = container
    self._tolerant = tolerant
    self.kind = container.format.name

  def video(self) -> av.VideoStream | None:
    """The first video stream; cover art in a sound file is none."""
    cover = av.stream.Disposition.attached_pic
    streams = self._container.streams.video
    return next((s for s in streams if not s.disposition & cover), None)

  def audio(self) -> av.AudioStream | None:
    return next(iter(self._container.streams.audio), None)

  def decode(self, stream: av.VideoStream | av.AudioStream) -> Iterator:
    """Frames in order of presentation, edit list applied by the demuxer."""
    if stream.type == 'video':
      stream.thread_type = 'AUTO'
    for packet in self._container.demux(stream):
      try:
        frames = packet.decode()
      except av.FFmpegError as error:
        if not self._tolerant:
          raise self._damaged(stream, packet) from error
        continue
      for frame in frames:
        if frame.is_corrupt and not self._tolerant:
          raise self._damaged(stream, frame)
        yield frame

  def end(self, stream: av.VideoStream | av.AudioStream) -> float | None:
    """Seconds at which the edit list ends `stream`; None if there is none.

    Only the MP4 family writes durations that can be relied on.
    """
    if not stream.duration or 'mov' not in self.kind:
      return None
    ticks = (stream.start_time or 0) + stream.duration
    return float(ticks * stream.time_base)

  def check_end(
    self, stream: av.VideoStream | av.AudioStream, end: float
  ) -> None:
    """A file cut short decodes without an error: compare with its header."""
    promised = self.end(stream)
    if not self._tolerant and promised and end < promised - CUT_SHORT:
      raise MediaError(
        f'{self._path}: is cut short: {stream.type} ends at {end:.2f} s of'
        f' {promised:.2f} s; copy it again'
      )

  def check_gap(self, before: float, after: float) -> None:
    if after - before > LONGEST_GAP:
      raise MediaError(
        f'{self._path}: timestamps jump from {before:.2f} s to {after:.2f} s;'
        ' re-encode it'
      )

  def _damaged(self, stream, at):
    time = float(at.pts * at.time_base) if at.pts is not None else 0.0
    return MediaError(
      f'{self._path}: damaged {stream.type} at {time:.2f} s; re-encode it, or'
      ' keep what can be read with --tolerant of launch.prepare'
    )


def first_frame_time(
  path: str | os.PathLike, tolerant: bool = False
) -> float | None:
  """Seconds of the first video frame; None for a file without video."""
  with opened(path, tolerant) as source:
    stream = source.video()
    if stream is None:
      return None
    frame = next(source.decode(stream), None)
    return None if frame is None else frame.time or 0.0
