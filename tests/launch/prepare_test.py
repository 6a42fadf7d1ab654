import functools
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

from absl.testing import flagsaver
import jax
import numpy as np
import pytest

from launch import bundle, clips, colours, encode, media, prepare, shards
from launch.errors import UserError
from mirage_jax import audio, latents
from mirage_jax.vae import Vae, VaeConfig

ROOT = pathlib.Path(__file__).parents[2]
TINY = dict(
  encoder_channels=4,
  decoder_channels=4,
  multipliers=(1, 2, 2, 2),
  encoder_blocks=(0, 0, 1, 0, 0),
  decoder_blocks=(0, 1, 0, 0, 0),
  encoder_attention=(False,) * 5,
  latent_channels=3,
  norm_groups=2,
  head_dim=4,
)


def write_clip(path, num_frames=40, level=0.2, seed=0):
  rng = np.random.default_rng(seed)
  frames = np.zeros((num_frames, 24, 32, 3), np.uint8)
  frames[..., 2] = 240  # Blue.
  frames[:, 8:16, 8:24] = rng.integers(0, 255, 3, dtype=np.uint8)
  wave = level * np.sin(np.arange(num_frames * 640) * rng.uniform(0.1, 0.3))
  media.write_video(path, frames, wave.astype(np.float32))


def run(source, out, **values):
  defaults = dict(stage='clips', face_crop=False, size=16, workers=0)
  with flagsaver.flagsaver(
    input=str(source), out=str(out), **(defaults | {'per_shard': 2} | values)
  ):
    prepare.main([])


def content(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(folder.rglob('*'))
    if p.is_file()
  }


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
  folder = tmp_path_factory.mktemp('videos')
  for n in range(3):
    write_clip(folder / f'good{n}.mp4', seed=n)
  write_clip(folder / 'short.mp4', 20)
  write_clip(folder / 'silent.mp4', level=0)
  frames = np.zeros((30, 16, 16, 3), np.uint8)
  media.write_video(folder / 'mute.mp4', frames, None)
  (folder / 'broken.mp4').write_bytes(b'no video')
  (folder / 'words.txt').write_text('not tried')
  return folder


@pytest.fixture(scope='module')
def made(videos, tmp_path_factory):
  out = tmp_path_factory.mktemp('made') / 'clips'
  run(videos, out)
  return out


@pytest.fixture(scope='module')
def vae_file(tmp_path_factory):
  vae = Vae(VaeConfig(**TINY))
  frames = np.zeros((1, 25, 16, 16, 3), np.float32)
  init = jax.jit(functools.partial(vae.init, method='encode'))
  params = init(jax.random.key(0), frames)['params']
  stats = {'mean': np.full(3, 0.1, np.float32), 'std': np.full(3, 0.5)}
  path = tmp_path_factory.mktemp('vae') / 'vae.safetensors'
  bundle.save(
    path, bundle.Bundle({'vae': TINY, 'data': {'size': 16}}, params, stats)
  )
  return path


def all_records(folder):
  return [
    r
    for p in sorted(folder.glob('*.array_record'))
    for r in shards.read_shard(p)
  ]


def test_clips_hold_what_the_files_hold(videos, made):
  records = all_records(made)
  assert [str(r['id']) for r in records] == ['good0', 'good1', 'good2']
  for n, record in enumerate(records):
    assert record['frames'].shape == (40, 16, 16, 3)
    assert record['frames'].dtype == np.uint8
    sound = media.read_audio(videos / f'good{n}.mp4')
    np.testing.assert_array_equal(record['wave'], sound)
    assert str(record['caption']) == 'a person in front of a blue wall'


def test_unusable_files_are_quarantined_with_reasons(made):
  report = json.loads((made / 'report.json').read_text())
  reasons = report['quarantined']
  assert sorted(reasons) == ['broken', 'mute', 'short', 'silent']
  assert 'broken.mp4: is not media' in reasons['broken']
  assert 'has no audio' in reasons['mute']
  assert '20 of 25 frames' in reasons['short']
  assert 'below -60 dB' in reasons['silent']
  lines = (made / 'report.jsonl').read_text().splitlines()
  assert len(lines) == 7 and report['clips'] == 3


def test_second_run_does_nothing(videos, made, capsys):
  before = {p: p.stat().st_mtime_ns for p in made.glob('*.array_record')}
  run(videos, made)
  assert 'was ready; nothing to do' in capsys.readouterr().out
  after = {p: p.stat().st_mtime_ns for p in made.glob('*.array_record')}
  assert before == after


@pytest.mark.parametrize(
  'change,words',
  [
    (dict(size=32), 'made with size=16, not 32'),
    (dict(captions='none'), "captions='auto', not 'none'"),
    (dict(per_shard=3), 'per_shard=2, not 3'),
  ],
)
def test_other_settings_are_refused(videos, made, capsys, change, words):
  before = content(made)
  with pytest.raises(SystemExit):
    run(videos, made, **change)
  assert words in capsys.readouterr().err
  assert content(made) == before


def test_killed_run_continues_to_the_same_bytes(videos, tmp_path):
  source = tmp_path / 'many'
  source.mkdir()
  for n in range(40):
    shutil.copy(videos / f'good{n % 3}.mp4', source / f'{n:02}.mp4')
  (source / '05.mp4').write_bytes(b'broken')
  command = [sys.executable, '-m', 'launch.prepare', f'--input={source}']
  command += ['--stage=clips', '--noface_crop', '--size=16', '--per_shard=2']
  command += [f'--out={tmp_path / "killed"}', '--workers=1']
  process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
  reports = tmp_path / 'killed/report'
  try:
    while not (reports.exists() and len(os.listdir(reports)) >= 2):
      assert process.poll() is None
      time.sleep(0.002)
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  done = len(list((tmp_path / 'killed').glob('*.array_record')))
  assert done < 20
  run(source, tmp_path / 'killed')
  run(source, tmp_path / 'whole')
  assert content(tmp_path / 'killed') == content(tmp_path / 'whole')
  assert len(all_records(tmp_path / 'whole')) == 39


def test_long_videos_become_several_clips_in_step(tmp_path):
  (tmp_path / 'in').mkdir()
  frames = np.zeros((110, 16, 16, 3), np.uint8)
  wave = np.full(110 * 640, 0.01, np.float32)
  frames[60] = 255
  wave[60 * 640] = 0.9
  media.write_video(tmp_path / 'in/a.mp4', frames, wave)
  run(tmp_path / 'in', tmp_path / 'out', max_seconds=2)
  first, second = all_records(tmp_path / 'out')  # The rest is too short.
  assert [str(r['id']) for r in (first, second)] == ['a_0000', 'a_0001']
  assert len(first['frames']) == len(second['frames']) == 50
  assert np.argmax(second['frames'].mean(axis=(1, 2, 3))) == 10
  assert abs(int(np.argmax(np.abs(second['wave']))) - 6400) <= 16


def test_subset_captions_and_missing_files(videos, tmp_path, capsys):
  split = tmp_path / 'split.json'
  split.write_text(json.dumps({'val': ['good1', 'gone'], 'none': ['gone']}))
  captions = tmp_path / 'captions.json'
  captions.write_text(json.dumps({'good1': 'a man', 'gone': 'a ghost'}))
  chosen = dict(split=str(split), subset='val', captions=str(captions))
  run(videos, tmp_path / 'out', **chosen)
  (record,) = all_records(tmp_path / 'out')
  assert (str(record['id']), str(record['caption'])) == ('good1', 'a man')
  assert 'gone' in (tmp_path / 'out/report.json').read_text()
  for change, words in (
    (dict(subset='train'), "has no 'train'; it has ['none', 'val']"),
    (dict(subset=None), '--split and --subset go together'),
    (dict(subset='none'), 'not one of 1 files could be used'),
  ):
    with pytest.raises(SystemExit):
      run(videos, tmp_path / 'other', **(chosen | change))
    assert words in capsys.readouterr().err
  captions.write_text('{}')
  with pytest.raises(SystemExit):
    run(videos, tmp_path / 'third', **chosen)
  assert "no caption for 'gone' (2 are missing)" in capsys.readouterr().err


def test_latents_of_whole_chunks_at_both_offsets(made, vae_file, tmp_path):
  run(made, tmp_path / 'out', stage='latents', vae=str(vae_file), voices=2)
  records, sources = all_records(tmp_path / 'out'), all_records(made)
  weights = bundle.load(vae_file)
  vae = Vae(VaeConfig(**TINY))
  for record, source in zip(records, sources, strict=True):
    assert str(record['id']) == str(source['id'])
    assert str(record['caption']) == str(source['caption'])
    assert record['num_frames'] == 40
    assert record['offsets'].tolist() == [0, 12]
    for offset in (0, 12):
      got = record[f'latents_{offset}']
      frames = source['frames'][offset : offset + 25]
      want = latents.encode_video(vae, weights.vae, weights.stats, frames)
      assert got.shape == (5, 2, 2, 3) and got.dtype == np.float16
      np.testing.assert_allclose(got, want, atol=5e-3)
    assert record['reference_frame'].tolist() == list(range(0, 40, 6))
    want = latents.encode_image(
      vae, weights.vae, weights.stats, source['frames'][12]
    )
    np.testing.assert_allclose(record['reference'][2], want[0], atol=5e-3)
    assert record['audio'].shape == (2, 40, 320)
    clean = audio.log_mel(source['wave'], 40)
    np.testing.assert_allclose(record['audio'][0], clean, atol=5e-3)
    assert np.abs(record['audio'][1] - clean).mean() > 0.1


def test_latents_continue_to_the_same_bytes(made, vae_file, tmp_path):
  out, values = tmp_path / 'out', dict(stage='latents', vae=str(vae_file))
  run(made, out, **values)
  whole = content(out)
  next(iter(out.glob('*.array_record'))).unlink()
  next(iter(sorted((out / 'report').iterdir()))).unlink()
  (out / '.00000.7.part.array_record').write_bytes(b'half')
  run(made, out, **values)
  assert content(out) == whole


def test_latents_refuse_other_folders(videos, made, vae_file, tmp_path, capsys):
  for source, change, words in (
    (videos, {}, 'is no folder of clips'),
    (made, dict(vae=str(tmp_path / 'x')), 'no such checkpoint'),
  ):
    values = dict(stage='latents', vae=str(vae_file)) | change
    with pytest.raises(SystemExit):
      run(source, tmp_path / 'out', **values)
    assert words in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_full_disk_is_one_line_and_leaves_no_half(videos, tmp_path, capsys):
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (30000, before[1]))
  try:
    with pytest.raises(SystemExit):
      run(videos, tmp_path / 'out')
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  error = capsys.readouterr().err.strip().splitlines()
  assert 'array_record: the disk is full' in error[-1]
  assert list(content(tmp_path / 'out')) == ['manifest.json']
  run(videos, tmp_path / 'out')
  assert len(all_records(tmp_path / 'out')) == 3


def test_two_files_of_one_name_are_refused(tmp_path):
  for name in ('a.mp4', 'a.mkv'):
    (tmp_path / name).write_bytes(b'x')
  with pytest.raises(UserError, match='rename one'):
    clips.find_videos(tmp_path)
  with pytest.raises(UserError, match='no such folder'):
    clips.find_videos(tmp_path / 'none')


def test_voices_depend_on_the_id_alone():
  wave = np.sin(np.arange(16000) * 0.1).astype(np.float32)
  first = encode.voices('a', wave, 25, [wave], 2)
  np.testing.assert_array_equal(first, encode.voices('a', wave, 25, [wave], 2))
  assert np.abs(first - encode.voices('b', wave, 25, [wave], 2)).max() > 0.1


@pytest.mark.parametrize(
  'rgb,name',
  [((255, 0, 0), 'red'), ((0, 0, 128), 'navy'), ((128, 128, 128), 'gray')],
)
def test_colours_have_their_css_names(rgb, name):
  assert colours.colour_names(np.array(rgb, np.uint8)) == name
