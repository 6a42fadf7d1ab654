"""Any sound in, a video with that sound out; what is wrong takes one line."""

import errno
import os
import pathlib
import re
import subprocess
import sys
import types

import av
import numpy as np
import pytest
import soundfile

from launch import (
  faces,
  generate,
  guidance_flags,
  media,
  mux,
  steps_bar,
  talk,
)
from launch.stopwatch import Stopwatch
from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]


def write_sound(path, rate, channels, codec, seconds=1.3):
  """A container of sound, by PyAV."""
  wave = np.interp(
    np.arange(round(seconds * rate)) / rate,
    np.arange(round(seconds * 16000)) / 16000,
    tiny.speech(seconds),
  )
  layout = 'stereo' if channels == 2 else 'mono'
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=rate, layout=layout)
    frame = av.AudioFrame.from_ndarray(
      np.repeat(wave[None], channels, 0).astype(np.float32), 'fltp', layout
    )
    frame.sample_rate, frame.pts = rate, 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


@pytest.mark.parametrize(
  ('name', 'rate', 'channels', 'codec'),
  [
    ('a.wav', 44100, 2, 'pcm_s16le'),
    ('a.flac', 8000, 1, 'flac'),
    ('a.mka', 48000, 2, 'libopus'),
    ('a.m4a', 22050, 2, 'aac'),
  ],
)
def test_any_sound_becomes_a_video_with_it(
  sample, face, tmp_path, name, rate, channels, codec
):
  write_sound(tmp_path / name, rate, channels, codec)
  out = tmp_path / 'deep/er/out.mp4'
  code = sample(f'--audio={tmp_path / name}', f'--image={face}', f'--out={out}')
  assert code == 0
  wave = media.read_audio(tmp_path / name)
  made = media.read_video(out)
  assert len(made.frames) == generate.num_frames(len(wave))
  assert made.fps == 25 and made.frames.shape[1:] == (16, 16, 3)
  heard = media.read_audio(out)
  assert abs(len(heard) - len(wave)) <= 1
  common = min(len(heard), len(wave))
  assert np.corrcoef(heard[:common], wave[:common])[0, 1] > 0.8
  assert [p.name for p in out.parent.iterdir()] == ['out.mp4']


def test_it_tells_how_far_it_is_and_where_the_time_went(
  sample, wav, tmp_path, capsys
):
  out = tmp_path / 'o.mp4'
  assert sample(f'--audio={wav}', f'--out={out}') == 0
  said = capsys.readouterr()
  assert said.err.splitlines()[-1] == 'o.mp4: step 2/2, 0 s left'
  assert said.out.startswith(f'{out}: read ')
  for stage in ('sample', 'decode', 'write'):
    assert f', {stage} ' in said.out


def test_of_long_work_it_tells_soon(monkeypatch, capsys):
  now = iter(range(0, 9000, 40))  # A step takes 40 s.
  clock = types.SimpleNamespace(monotonic=lambda: next(now))
  monkeypatch.setattr(steps_bar, 'time', clock)
  with steps_bar.StepsBar('a/o.mp4', 100) as advance:
    for _ in range(13):
      advance()
  said = capsys.readouterr().err.splitlines()
  assert said[0] == 'o.mp4: step 2/100, 3920 s left'
  assert said[-1] == 'o.mp4: step 13/100, 3480 s left'


def test_it_plays_while_it_is_being_made(
  sample, wav, face, tmp_path, capsysbinary
):
  flags = [f'--audio={wav}', f'--image={face}', f'--out={tmp_path}/o.mp4']
  assert sample(*flags, f'--stream={tmp_path}/live') == 0
  live = (tmp_path / 'live').read_bytes()
  said = capsysbinary.readouterr()
  assert re.search(rb'; first frame after \d+\.\d s\n$', said.out)
  assert sample(*flags, '--stream=-') == 0
  said = capsysbinary.readouterr()
  assert said.out == live and b'; first frame after' in said.err
  assert len(media.read_video(tmp_path / 'live').frames) == 13


def test_the_seed_and_the_text_count(sample, wav, tmp_path):
  def made(*flags):
    assert sample(f'--audio={wav}', f'--out={tmp_path}/o.mp4', *flags) == 0
    return (tmp_path / 'o.mp4').read_bytes()

  plain = made()
  assert made() == plain
  assert plain != made('--seed=3') != made('--text=red') != plain


def test_every_flag_arrives(binary, wav, tmp_path, tiny_file, monkeypatch):
  jobs = []
  monkeypatch.setattr(
    talk,
    'make_video',
    lambda _, job, settings, *rest: jobs.append((job, settings)) or [0.0],
  )
  flags = dict(audio=wav, image='i', text='t', out=f'{tmp_path}/o.mp4', seed=7)
  numbers = dict(audio=2.0, text=3.0, reference=4.0, joint=5.0, skip=6.0)
  numbers |= dict(rescale=0.5)
  flags |= {guidance_flags.FLAGS[name]: n for name, n in numbers.items()}
  flags |= dict(guidance_schedule='audio=cosine', skip_blocks='0,1')
  flags |= dict(sequential_guidance=1, solver='heun', negative_text='n')
  flags |= dict(steps=9, checkpoint=tiny_file)
  assert binary('sample')(*(f'--{k}={v}' for k, v in flags.items())) == 0
  ways = ('audio=cosine', '0,1', True)
  guidance = guidance_flags.make_guidance(*ways, **numbers)
  assert jobs == [
    (
      talk.Job(str(wav), f'{tmp_path}/o.mp4', 'i', 't'),
      generate.Settings(9, guidance, 7, 'heun', 'n'),
    )
  ]


def test_settings_out_of_range_are_one_line(sample, wav, tmp_path, one_error):
  out = tmp_path / 'o.mp4'
  for flags, said in (
    (['--joint_cfg=-2'], '--joint_cfg=-2: must lie between 0 and 30'),
    (
      ['--solver=rk4'],
      '--solver=rk4: there is no such solver; give one of eul',
    ),
    (['--seed=-1'], '--seed=-1: must lie between 0 and 2147483647'),
    ([f'--seed={2**70}'], f'--seed={2**70}: must lie between 0'),
    (['--negative_text=a'], '--negative_text: has no effect without guidance'),
    (['--skip_cfg=1', '--skip_blocks=2'], '--skip_blocks: there is no block 2'),
  ):
    assert sample(f'--audio={wav}', f'--out={out}', *flags) == 1
    assert one_error().startswith(said)
    assert not out.exists()


def damaged(tmp_path):
  """Sounds that cannot be used, and what must be said of each."""
  good = tmp_path / 'good.wav'
  soundfile.write(good, tiny.speech(1), 16000)
  soundfile.write(tmp_path / 'silent.wav', np.zeros(16000), 16000)
  nan = np.full(16000, np.nan, np.float32)
  soundfile.write(tmp_path / 'nan.wav', nan, 16000, subtype='FLOAT')
  (tmp_path / 'empty.wav').touch()
  (tmp_path / 'corrupt.wav').write_bytes(bytes(range(256)) * 40)
  (tmp_path / 'header.wav').write_bytes(good.read_bytes()[:44])
  frames = np.zeros((5, 16, 16, 3), np.uint8)
  media.write_video(tmp_path / 'mute.mp4', frames, None)
  media.write_image(tmp_path / 'picture.png', tiny.picture())
  return (
    ('nowhere.wav', 'no such file'),
    ('empty.wav', 'is empty (0 bytes); copy it again'),
    ('corrupt.wav', 'is not media that can be decoded; re-encode it'),
    ('header.wav', 'no sound can be decoded; re-encode it'),
    ('nan.wav', 'has samples that are no numbers; write it anew'),
    ('silent.wav', 'is silent, nothing to speak; give another sound'),
    ('mute.mp4', 'has no audio; give a file with sound'),
    ('picture.png', 'has no audio; give a file with sound'),
    ('.', 'no such file'),
  )


def test_bad_sound_is_one_line_and_nothing_is_written(
  sample, tmp_path, one_error
):
  out = tmp_path / 'out/o.mp4'
  for name, said in damaged(tmp_path):
    assert sample(f'--audio={tmp_path / name}', f'--out={out}') == 1
    assert one_error().startswith(f'{tmp_path / name}: {said}'), name
    assert not list(out.parent.iterdir())


def test_bad_pictures_are_one_line(
  sample, wav, tmp_path, one_error, monkeypatch
):
  class Blind:
    def detect(self, image):
      return []

  monkeypatch.setattr(faces, 'default_mesh', Blind)
  (tmp_path / 'empty.png').touch()
  (tmp_path / 'text.png').write_text('a face')
  media.write_image(tmp_path / 'wall.png', tiny.picture(size=40))
  whole = (tmp_path / 'wall.png').read_bytes()
  (tmp_path / 'cut.png').write_bytes(whole[: len(whole) // 2])
  for name, said in (
    ('none.png', 'no such file'),
    ('empty.png', 'is empty (0 bytes)'),
    ('text.png', ''),
    ('a.wav', 'is not an image; give a PNG or JPEG'),
    ('cut.png', ''),
    ('wall.png', 'no face is found in it; give a picture of a face'),
  ):
    picture = tmp_path / name
    flags = [f'--audio={wav}', f'--image={picture}', f'--out={tmp_path}/o.mp4']
    assert sample(*flags) == 1
    assert one_error().startswith(f'{picture}: {said}'), name
  assert not (tmp_path / 'o.mp4').exists()


def test_the_face_of_any_picture_is_cut_out(tmp_path, monkeypatch):
  class Spotter:
    """Says that the brightest square is the face."""

    def detect(self, image):
      y, x = np.argwhere(image.min(-1) == 255)[[0, -1]].T
      box = np.array([x[0], y[0], x[1] + 1, y[1] + 1], float)
      points = np.stack([box[[0, 2]], box[[1, 1]]], -1)[[0, 1, 0, 0, 0, 0]]
      return [faces.Face(box, points, 0.9)]

  monkeypatch.setattr(faces, 'default_mesh', Spotter)
  picture = np.zeros((120, 200, 3), np.uint8)
  picture[50:80, 120:150] = 255
  media.write_image(tmp_path / 'p.png', picture)
  crop = talk.read_face(tmp_path / 'p.png', 16)
  assert crop.shape == (16, 16, 3)
  assert crop[8, 8].min() == 255 and crop[0].max() < 20
  media.write_image(tmp_path / 'same.png', picture[:16, :16])
  np.testing.assert_array_equal(  # No face is looked for.
    talk.read_face(tmp_path / 'same.png', 16), picture[:16, :16]
  )


def test_where_no_video_can_be_is_said_before_the_work(
  sample, wav, tmp_path, one_error
):
  (tmp_path / 'file').touch()
  (tmp_path / 'dir.mp4').mkdir()
  for name, said in (
    ('o.avi', 'the video is an .mp4'),
    ('out', 'the video is an .mp4'),
    ('dir.mp4', 'is a folder'),
    ('file/o.mp4', 'its folder cannot be made'),
  ):
    assert sample(f'--audio={wav}', f'--out={tmp_path / name}') == 1
    assert one_error().startswith(f'--out={tmp_path / name}: {said}')


def test_a_full_disk_leaves_the_old_video(
  sample, wav, tmp_path, one_error, monkeypatch
):
  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  out = tmp_path / 'o.mp4'
  out.write_text('old')
  monkeypatch.setattr(mux, 'send', full)
  assert sample(f'--audio={wav}', f'--out={out}') == 1
  assert one_error() == (
    f'{out}: the disk is full; nothing was written: make room there'
  )
  assert out.read_text() == 'old'
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a.wav', 'o.mp4']


def test_checkpoints_that_cannot_speak_are_one_line(
  binary, wav, tiny_file, tmp_path, one_error, monkeypatch
):
  cut = tmp_path / 'cut.safetensors'
  cut.write_bytes(tiny_file.read_bytes()[:5000])
  run = tmp_path / 'run'
  (run / 'checkpoints').mkdir(parents=True)
  (run / 'config.json').write_text('{"model": {}}')
  for checkpoint, said in (
    (tmp_path / 'none', 'none: no such checkpoint'),
    (cut, f'{cut}: is cut short'),
    (tmp_path, 'config.json not found'),
    (run, 'checkpoints holds no checkpoint: train first'),
  ):
    flags = [f'--audio={wav}', f'--checkpoint={checkpoint}']
    assert binary('sample')(*flags, f'--out={tmp_path}/o.mp4') == 1
    assert said in one_error()
  flags = [f'--audio={wav}', f'--checkpoint={tiny_file}', '--vae=x']
  assert binary('sample')(*flags, f'--out={tmp_path}/o.mp4') == 1
  assert '--vae goes with a workdir' in one_error()


def test_the_shipped_model_is_the_default(monkeypatch, tiny_file):
  monkeypatch.setattr(talk.bundle, 'DEFAULT', tiny_file)
  assert talk.load_generator(None).size == 16


def test_flags_that_do_not_fit_together(sample, wav, tmp_path, one_error):
  manifest = tmp_path / 'jobs.jsonl'
  manifest.write_text('{"audio": "a", "out": "b.mp4"}')
  for flags, said in (
    ([], 'give either --audio or --manifest'),
    ([f'--audio={wav}', f'--manifest={manifest}'], 'give either'),
    ([f'--audio={wav}', '--text_to_speech=a'], 'give either'),
    ([f'--manifest={manifest}', '--stream=-'], '--stream shows one video'),
    ([f'--audio={wav}', f'--stream={tmp_path}'], 'cannot be written (Is a d'),
    ([f'--audio={wav}', f'--stream={tmp_path}/no/x'], 'no/x: cannot be writ'),
    (['--request=a'], '--request: needs --script_endpoint, or $OPENAI'),
    (['--text_to_speech=a', '--speech_engine=say'], '--speech_engine=say: giv'),
    ([f'--manifest={manifest}', '--text=red'], '--text goes with --audio'),
    ([f'--manifest={tmp_path}/no'], 'no: no such file'),
    ([f'--manifest={tmp_path}'], 'is no text that can be read'),
  ):
    assert sample(*flags) == 1
    assert said in one_error()


def test_words_and_requests_become_videos(
  sample, face, tmp_path, capsys, chat, talker
):
  flags = [f'--image={face}', f'--speech_engine={talker}']
  out = tmp_path / 'o.mp4'
  assert sample('--text_to_speech=ab cd', f'--out={out}', *flags) == 0
  assert len(media.read_video(out).frames) == 5  # 40 ms a letter
  assert f'{out}: read ' in capsys.readouterr().out
  chat.answers.append(chat.good(script='abcdefghij'))
  flags += [f'--script_endpoint={chat.url}', '--script_model=m']
  assert sample('--request=greet', f'--out={out}', *flags) == 0
  assert len(media.read_video(out).frames) == 10
  said = capsys.readouterr().out
  assert said.startswith(
    'it says: abcdefghij\nit shows: An old man. He smiles.'
  )
  assert 'reads 8 bytes of text, not the 44 of the prompt: it is left' in said
  assert chat.asked[0]['messages'][1]['content'][0]['text'] == 'greet'


def test_stages_add_up_and_compiling_is_told_apart():
  import jax

  with Stopwatch() as watch:
    with watch('outer'):
      with watch('inner'):
        jax.jit(lambda x: jax.numpy.tanh(x * 7.3))(1.0)
      jax.jit(lambda x: jax.numpy.cosh(x * 7.3))(1.0)
  assert set(watch.seconds) == {'outer', 'inner', 'compile'}
  before = dict(watch.seconds)
  jax.jit(lambda x: jax.numpy.sinh(x * 7.3))(1.0)  # No longer listened to.
  assert watch.seconds == before
  assert before['compile'] > 0 and min(before.values()) >= 0


@pytest.mark.full
def test_from_the_command_line(wav, face, tiny_file, tmp_path):
  """The one test in a process of its own."""
  command = [sys.executable, '-m', 'launch.sample', f'--audio={wav}']
  command += [f'--checkpoint={tiny_file}', '--steps=2', f'--image={face}']
  done = subprocess.run(
    [*command, f'--out={tmp_path}/o.mp4'],
    cwd=ROOT,
    env=os.environ,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(f'{tmp_path}/o.mp4: read ')
  assert len(media.read_video(tmp_path / 'o.mp4').frames) == 13
