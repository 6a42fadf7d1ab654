import fractions
import resource

import av
import numpy as np
import pytest

from launch import media
from launch.errors import UserError

RATE = 16000
CLICKS = (3, 10, 24, 37)  # Frames that are white and begin with a click.


def clip(num_frames=40, rate=RATE, clicks=CLICKS):
  """Frames and wave with a flash and a click at each of `clicks`."""
  frames = np.full((num_frames, 32, 48, 3), 40, np.uint8)
  wave = np.zeros(num_frames * rate // 25, np.float32)
  for n in clicks:
    frames[n] = 255
    wave[n * rate // 25] = 0.9
  return frames, wave


def mux(
  path, frames, wave, video_start=0, audio_start=0, audio='aac', times=None
):
  """Any container and start times; `times` are the frames', in 1/25 s."""
  with av.open(str(path), 'w') as out:
    video = out.add_stream('libx264', rate=25, options={'crf': '10'})
    video.height, video.width = frames.shape[1:3]
    video.pix_fmt = 'yuv420p'
    layout = {1: 'mono', 2: 'stereo', 6: '5.1'}[len(np.atleast_2d(wave))]
    sound = out.add_stream(audio, rate=RATE, layout=layout)
    video.codec_context.time_base = tick = fractions.Fraction(1, 12800)
    for n, pixels in enumerate(frames):
      frame = av.VideoFrame.from_ndarray(pixels, 'rgb24')
      at = video_start + (n if times is None else times[n]) / 25
      frame.pts, frame.time_base = round(at / tick), tick
      out.mux(video.encode(frame))
    out.mux(video.encode(None))
    for n in range(0, wave.shape[-1], 1024):
      part = np.atleast_2d(wave)[:, n : n + 1024]
      form = 's16' if audio.startswith('pcm') else 'fltp'
      if form == 's16':
        part = np.round(part * 32767).astype(np.int16).T.reshape(1, -1)
      frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(part), form, layout
      )
      frame.sample_rate, frame.pts = RATE, n + round(audio_start * RATE)
      frame.time_base = fractions.Fraction(1, RATE)
      out.mux(sound.encode(frame))
    out.mux(sound.encode(None))


def loudest(wave, sample, reach=400):
  low = max(sample - reach, 0)
  return low + int(np.argmax(np.abs(wave[low : sample + reach])))


def white(frames):
  return [n for n, f in enumerate(frames) if f.mean() > 180]


def test_clicks_are_where_they_were_written(tmp_path):
  frames, wave = clip(41)  # Not a whole number of AAC frames.
  path = tmp_path / 'a.mp4'
  media.write_video(path, frames, wave)
  read = media.read_audio(path)
  assert len(read) == len(wave)
  plain = np.zeros(len(wave) + 2048, np.float32)
  with av.open(str(path)) as container:
    for f in container.decode(audio=0):
      start = round(f.pts * f.time_base * RATE)
      plain[start : start + f.samples] = f.to_ndarray()[0]
  for n in CLICKS:
    sample = n * RATE // 25
    assert abs(loudest(read, sample) - sample) <= RATE // 1000
    assert abs(loudest(plain, sample) - sample) <= RATE // 1000
  assert white(media.read_video(path).frames) == list(CLICKS)


def test_write_takes_streams_other_rates_and_no_sound(tmp_path):
  frames, wave = clip(rate=48000)
  path = tmp_path / 'a.mp4'
  media.write_video(path, iter(frames), wave, rate=48000)
  read = media.read_audio(path)
  for n in CLICKS:
    assert abs(loudest(read, n * 640) - n * 640) <= 16
  media.write_video(path, frames, None)
  with pytest.raises(media.MediaError, match=r'a\.mp4: has no audio'):
    media.read_audio(path)


@pytest.mark.parametrize(
  'name,audio,video_start,audio_start',
  [
    ('late_sound.mp4', 'aac', 0, 0.3),
    ('late_sound.mkv', 'pcm_s16le', 0, 0.3),
    ('late_picture.mp4', 'aac', 0.4, 0),
    ('late_picture.mkv', 'aac', 0.4, 0),
    ('early_sound.mp4', 'aac', 0, -0.3),
    ('both.mov', 'pcm_s16le', 1.0, 0.9),
    ('both.ts', 'mp2', 5.0, 5.08),
  ],
)
def test_streams_share_a_clock(tmp_path, name, audio, video_start, audio_start):
  frames, wave = clip()
  path = tmp_path / name
  # The click of frame n is sounded when frame n is shown.
  delay = video_start - audio_start
  moved = np.zeros_like(wave)
  for n in CLICKS:
    if 0 <= (at := round(n * 640 + delay * RATE)) < len(moved):
      moved[at] = 0.9
  mux(path, frames, moved, video_start, audio_start, audio)
  video, read = media.read_video(path), media.read_audio(path)
  assert white(video.frames) == list(CLICKS)
  heard = 0
  for n in CLICKS:
    if 0 <= round(n * 640 + delay * RATE) < len(moved):
      assert abs(loudest(read, n * 640) - n * 640) <= 16
      heard += 1
  assert heard >= 2


def test_edit_list_cuts_the_picture(tmp_path):
  frames, wave = clip()
  path = tmp_path / 'a.mp4'
  # Times before zero are coded but, by the edit list, not shown.
  mux(path, frames, wave, video_start=-0.2, audio_start=-0.2)
  video, read = media.read_video(path), media.read_audio(path)
  assert white(video.frames) == [n - 5 for n in CLICKS if n >= 5]
  for n in CLICKS[1:]:
    assert abs(loudest(read, (n - 5) * 640) - (n - 5) * 640) <= 16


def test_hole_in_the_sound_becomes_silence(tmp_path):
  path = tmp_path / 'a.mkv'
  with av.open(str(path), 'w') as out:
    sound = out.add_stream('pcm_s16le', rate=RATE, layout='mono')
    for start in (0, 16000):
      data = np.full((1, 8000), 9000, np.int16)
      frame = av.AudioFrame.from_ndarray(data, 's16', 'mono')
      frame.sample_rate, frame.pts = RATE, start
      frame.time_base = fractions.Fraction(1, RATE)
      out.mux(sound.encode(frame))
    out.mux(sound.encode(None))
  wave = media.read_audio(path)
  assert len(wave) == 24000
  assert np.abs(wave[8100:15900]).max() < 1e-3 < wave[16100:].min()


@pytest.mark.parametrize(
  'times,expected',
  [
    # 12.5 frames per second, 50, and a variable rate.
    ([0, 2, 4, 6], [0, 0, 1, 1, 2, 2, 3]),
    ([0, 0.5, 1, 1.5, 2, 2.5], [0, 2, 4]),
    ([0, 1, 4, 5], [0, 1, 1, 2, 2, 3]),
  ],
)
def test_frames_are_nearest_in_time(tmp_path, times, expected):
  frames = np.zeros((len(times), 32, 48, 3), np.uint8)
  frames += (np.arange(len(times)) * 40).astype(np.uint8)[:, None, None, None]
  path = tmp_path / 'a.mkv'
  mux(path, frames, np.zeros(RATE, np.float32), times=times)
  read = media.read_video(path).frames
  levels = np.round(read.mean(axis=(1, 2, 3)) / 40).astype(int)
  assert list(levels[: len(expected)]) == expected
  assert len(levels) - len(expected) in (0, 1)  # How long the last one lasts.


@pytest.mark.parametrize('channels', [1, 2, 6])
def test_any_layout_becomes_mono(tmp_path, channels):
  frames, _ = clip()
  time = np.arange(25600) / RATE
  tone = np.sin(2 * np.pi * 300 * time).astype(np.float32) * 0.5
  path = tmp_path / 'a.mkv'
  mux(path, frames, np.tile(tone, (channels, 1)), audio='pcm_s16le')
  read = media.read_audio(path)
  assert read.dtype == np.float32 and read.shape == tone.shape
  np.testing.assert_allclose(read, tone, atol=2e-3)


def test_centre_counts_more_than_front_and_bass_not_at_all(tmp_path):
  frames, _ = clip()
  levels = []
  for channel in range(4):  # FL, FR, FC, LFE.
    wave = np.zeros((6, 6400), np.float32)
    wave[channel] = 0.5
    mux(tmp_path / 'a.mkv', frames, wave, audio='pcm_s16le')
    levels.append(media.read_audio(tmp_path / 'a.mkv')[3200])
  left, right, centre, bass = levels
  assert left == pytest.approx(right, abs=1e-4)
  assert centre == pytest.approx(left * 2**0.5, rel=1e-2)
  assert bass == pytest.approx(0, abs=1e-4)


def test_rotation_turns_the_picture_upright(tmp_path):
  frames, wave = clip(4, clicks=())
  frames[:, :16] = 250  # The upper half.
  path = tmp_path / 'a.mp4'
  media.write_video(path, frames, wave)
  data = bytearray(path.read_bytes())
  at = data.index(b'tkhd') + 44  # The matrix in the header of the first track.
  turn = np.zeros(9, '>i4')  # A quarter clockwise, as phones write it.
  turn[1], turn[3], turn[8] = 1 << 16, -(1 << 16), 1 << 30
  data[at : at + 36] = turn.tobytes()
  path.write_bytes(data)
  read = media.read_video(path).frames
  assert read.shape == (4, 48, 32, 3)
  assert read[:, :, 20:].mean() > 240 > 60 > read[:, :, :12].mean()


def test_damage_is_told_or_tolerated(tmp_path):
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 255, (60, 32, 48, 3), dtype=np.uint8)
  path = tmp_path / 'a.mp4'
  noise = rng.normal(0, 0.2, 38400).astype(np.float32)
  media.write_video(path, frames, noise)
  data = bytearray(path.read_bytes())
  middle = slice(len(data) // 2, len(data) // 2 + 4000)
  data[middle] = bytes(len(data[middle]))
  path.write_bytes(data)
  with pytest.raises(media.MediaError, match=r'a\.mp4: damaged video at'):
    media.read_video(path)
  assert len(media.read_video(path, tolerant=True).frames) >= 30
  path.write_bytes(data[: len(data) // 2])
  with pytest.raises(media.MediaError, match=r'a\.mp4: is cut short'):
    media.read_audio(path)


def test_unusable_files_are_told_in_one_line(tmp_path):
  for name, content in (('empty', b''), ('text', b'hello ' * 100)):
    (tmp_path / name).write_bytes(content)
  for read in (media.read_video, media.read_audio, media.read_image):
    for name in ('none', 'empty', 'text'):
      with pytest.raises(media.MediaError, match=name) as caught:
        read(tmp_path / name)
      assert '\n' not in str(caught.value)


def test_image_round_trip_and_not_an_image(tmp_path):
  frames, wave = clip()
  image = np.arange(32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3)
  media.write_image(tmp_path / 'a.png', image)
  np.testing.assert_array_equal(media.read_image(tmp_path / 'a.png'), image)
  media.write_video(tmp_path / 'a.mp4', frames, wave)
  with pytest.raises(media.MediaError, match='not an image; give a PNG'):
    media.read_image(tmp_path / 'a.mp4')
  with pytest.raises(ValueError, match='even height and width'):
    media.write_video(tmp_path / 'b.mp4', frames[:, 1:], wave)
  assert not (tmp_path / 'b.mp4').exists()


def test_full_disk_leaves_the_old_file_and_no_half(tmp_path):
  frames = np.random.default_rng(0).integers(
    0, 255, (20, 64, 64, 3), dtype=np.uint8
  )
  path = tmp_path / 'a.mp4'
  path.write_text('old')
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  # Python ignores SIGXFSZ: past the limit, a write fails as on a full disk.
  resource.setrlimit(resource.RLIMIT_FSIZE, (20000, before[1]))
  try:
    with pytest.raises(UserError, match=r'a\.mp4: the disk is full'):
      media.write_video(path, frames, None)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert path.read_text() == 'old' and len(list(tmp_path.iterdir())) == 1
