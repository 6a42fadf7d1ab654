"""Decoded audio frames -> one mono wave on the clock of the video."""

from collections.abc import Iterator

import av
from jaxtyping import Float
import numpy as np

from launch.container import Source

USUAL = {3: '2.1', 4: 'quad', 5: '5.0', 6: '5.1', 8: '7.1'}


def on_clock(
  source: Source, stream: av.AudioStream, zero: float | None
) -> Iterator[tuple[int, Float[np.ndarray, 'S']]]:
  """Pieces of the wave from time `zero` on, gapless.

  Args:
    source: the opened file.
    stream: its audio stream.
    zero: container seconds of sample 0; None starts at the first sample.

  Yields:
    samples per second, mono float32[S].

  Raises:
    MediaError: damaged data, or timestamps that make no sense.
  """
  position, end = 0, 0.0
  limit = source.end(stream)
  for frame in source.decode(stream):
    rate, wave = frame.sample_rate, mono(frame)
    if frame.time is not None:
      zero = frame.time if zero is None else zero
      end = frame.time + frame.samples / rate
      if limit is not None and end > limit:
        # An edit list ends at a sample; the demuxer cuts at a packet.
        wave = wave[: max(round((limit - frame.time) * rate), 0)]
      source.check_gap(position / rate, frame.time - zero)
      wave = _placed(wave, frame, frame.time - zero, position)
    position += len(wave)
    yield rate, wave
  source.check_end(stream, end)


def mono(frame: av.AudioFrame) -> Float[np.ndarray, 'S']:
  """One frame of any layout and format, mixed after ITU-R BS.775."""
  planar = av.AudioResampler('fltp', frame.layout, frame.sample_rate)
  parts = [f.to_ndarray() for f in planar.resample(frame)]
  layout = frame.layout
  if all(c.name == 'NONE' for c in layout.channels):
    # PCM in Matroska or AVI counts channels but does not name them.
    layout = av.AudioLayout(USUAL.get(layout.nb_channels, layout.name))
  weights = np.array([_weight(c.name) for c in layout.channels])
  weights = weights if weights.any() else np.ones_like(weights)
  weights = (weights / weights.sum()).astype(np.float32)
  return weights @ np.concatenate(parts, axis=1)


def _weight(channel: str) -> float:
  if channel.startswith('LFE'):
    return 0.0
  return 1.0 if channel == 'FC' else 0.5**0.5


def _placed(wave, frame, time, position):
  """Cuts or pads `wave` so that it begins at sample `position` of the clock.

  Containers round timestamps (Matroska to 1 ms, AVI worse): a difference that
  rounding explains is no hole.
  """
  lead = round(time * frame.sample_rate) - position
  slack = 0.002 if frame.time_base <= 0.001 else 0.02
  if position and abs(lead) <= slack * frame.sample_rate:
    return wave
  if lead < 0:
    return wave[-lead:]
  return np.concatenate([np.zeros(lead, np.float32), wave])
