"""launch.sync on videos made here, with a tiny judge of random weights."""

import io
import json
import pathlib

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich import console

from infomax_jax.sync import Sync, SyncConfig, log_mel, mouth_frames
from infomax_jax.sync.offsets import Calibration
from launch import (
  faces,
  media,
  shards,
  sync_evaluation,
  sync_faces,
  sync_judge,
)
from launch.errors import UserError
from launch.sync_weights import SyncWeights, load, save

GRID = pathlib.Path(__file__).parents[3] / 'shared/data/grid_s1'


@pytest.fixture(scope='module')
def weights():
  cfg = SyncConfig(dim=8, stem=4, trunk=4, hidden=8)
  made = jax.jit(Sync(cfg).init)(
    jax.random.key(0), jnp.zeros((1, 50, 40)), jnp.zeros((1, 11, 40, 40))
  )
  params = jax.tree.map(np.asarray, nn.unbox(made)['params'])
  return SyncWeights(cfg, 20.0, Calibration(-4.0, 0.5), params)


@pytest.fixture(scope='module')
def weights_file(weights, tmp_path_factory):
  path = tmp_path_factory.mktemp('sync') / 'tiny.safetensors'
  save(path, weights)
  return path


@pytest.fixture(scope='module')
def judge(weights_file):
  return sync_judge.Judge(load(weights_file))


class Bright:
  """Finds a face wherever there is a square of its own colour."""

  def __init__(self, colours=None):
    self._colours = colours

  def detect(self, frame):
    if self._colours is None:  # The whole picture, if there is any.
      boxes = [] if frame.max() < 8 else [(4, 4, 44, 44)]
    else:
      boxes = []
      for colour in self._colours:
        rows, columns = np.nonzero((frame == colour).all(-1))
        if len(rows):
          corner = columns.min(), rows.min()
          boxes.append((*corner, columns.max() + 1, rows.max() + 1))
    return [
      faces.Face(np.array(b, float), np.zeros((6, 2)), 1.0) for b in boxes
    ]


@pytest.fixture(autouse=True)
def found_face(monkeypatch):
  """Finds a face in whatever is not black; the networks stay on disk."""
  monkeypatch.setattr(faces, 'default_mesh', Bright)


def test_faces_are_followed_and_cut_out_steadily():
  frames = np.zeros((30, 120, 160, 3), np.uint8)
  red, blue = (200, 0, 0), (0, 0, 200)
  for n in range(30):
    frames[n, 40 : 40 + 36, 20 + n : 56 + n] = red  # Moves to the right.
    if n < 20:
      frames[n, 10:40, 120:150] = blue
  frames[8, 40:76] = 0  # Not seen once.
  first, second = sync_faces.tracks(frames, Bright((red, blue)).detect)
  np.testing.assert_allclose(first[2:-2, 0], 38 + np.arange(2, 28), atol=2.1)
  np.testing.assert_allclose(first[:, 1:], np.tile([58, 36], (30, 1)))
  np.testing.assert_allclose(second, np.tile([135, 25, 30], (30, 1)))
  # Every crop of a face that is seen where it is shows the same.
  exact = np.stack([38 + np.arange(30), np.full(30, 58), np.full(30, 36)], -1)
  cut = sync_faces.crops(frames[10:], exact[10:].astype(float))
  assert cut.shape == (20, 96, 96, 3)
  np.testing.assert_array_equal(cut[:9], cut[:1].repeat(9, 0))
  # The face fills 1 / 1.3 of it and sits 6 % of its side low.
  rows, columns = np.nonzero(cut[0, :, :, 0] > 100)
  side = 96 / 1.3
  assert abs(columns.mean() - 47.5) < 1 and abs(len(set(columns)) - side) < 2
  assert abs(rows.mean() - 47.5 - 0.06 * side) < 1


def test_one_face_may_leave_and_few_looks_make_none():
  frames = np.zeros((30, 50, 50, 3), np.uint8)
  frames[:12, 10:30, 10:30] = 200
  assert not sync_faces.tracks(frames, Bright(((200, 200, 200),)).detect)
  frames[:18, 10:30, 10:30] = 200
  (track,) = sync_faces.tracks(frames, Bright(((200, 200, 200),)).detect)
  np.testing.assert_allclose(track, np.tile([20, 20, 20], (30, 1)))


def write(path, frames=60, wave=True, black=False):
  rng = np.random.default_rng(frames)
  pixels = rng.integers(0, 256, (frames, 48, 48, 3), dtype=np.uint8)
  sound = 0.3 * rng.standard_normal(frames * 640).astype(np.float32)
  pixels = pixels * 0 if black else pixels
  media.write_video(path, pixels, sound * 0 if wave == 'silent' else sound)
  return path


def test_weights_come_back_as_they_were_saved(weights, weights_file, tmp_path):
  back = load(weights_file)
  assert back.model == weights.model
  assert back.calibration == weights.calibration and back.clip == 20.0
  assert jax.tree.structure(back.params) == jax.tree.structure(weights.params)
  for a, b in zip(
    jax.tree.leaves(back.params), jax.tree.leaves(weights.params), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
  with pytest.raises(UserError, match='no such weights'):
    load(tmp_path / 'none.safetensors')
  half = tmp_path / 'half.safetensors'
  half.write_bytes(weights_file.read_bytes()[:1000])
  with pytest.raises(UserError, match='is cut short'):
    load(half)


def test_parts_cover_the_video_and_all_but_a_short_one_are_whole(tmp_path):
  for frames, want in (
    (60, [(0, 60)]),
    (230, [(0, 100), (100, 100), (130, 100)]),
  ):
    path = write(tmp_path / f'{frames}.mp4', frames)
    got = list(sync_judge.parts(path))
    assert [(start, len(part)) for start, part in got] == want
    assert sync_judge.count_parts(path) == len(want)
    whole = media.read_video(path).frames
    for start, part in got:
      np.testing.assert_array_equal(part, whole[start : start + len(part)])


@pytest.mark.full
def test_padding_to_a_whole_part_changes_nothing(judge):
  rng = np.random.default_rng(0)
  crops = rng.integers(0, 256, (45, 96, 96, 3), dtype=np.uint8)
  wave = rng.standard_normal(45 * 640).astype(np.float32)
  net = Sync(judge.weights.model)
  heard, seen = net.apply(
    {'params': judge.weights.params},
    log_mel(wave, 45)[None],
    mouth_frames(crops)[None],
  )
  np.testing.assert_allclose(judge.see(crops), seen.whole[0], atol=1e-5)
  np.testing.assert_allclose(judge.hear(wave, 45), heard.whole[0], atol=1e-5)


def test_one_file_gives_a_sentence_and_many_a_table(
  binary, weights_file, tmp_path, capsys
):
  one = write(tmp_path / 'one.mov')
  args = (f'--weights={weights_file}',)
  assert not run(binary, *args, one)
  said = capsys.readouterr().out
  assert said.startswith(f'{one}: ') and 'confidence 0.' in said
  assert len(said.splitlines()) == 1
  assert not run(binary, *args, '--json', one)
  row = json.loads(capsys.readouterr().out)
  assert row['milliseconds'] == row['offset'] * 40
  assert abs(row['offset']) <= 15 and 0 <= row['confidence'] <= 1
  silent = write(tmp_path / 'silent.mp4', wave='silent')
  assert run(binary, *args, '--json', one, silent) == 1
  rows = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
  assert rows[0] == row and 'is silent' in rows[1]['error']


def test_the_table_keeps_whole_names(binary):
  name = 'a/very/long/folder/of/many/' * 3 + 'clip.mp4'
  row = dict(
    offset=-3, milliseconds=-120, confidence=0.5, evidence=1, seconds=2
  )
  text = io.StringIO()
  with binary('sync').loaded() as module:
    shown = module.table([{'file': name} | row, {'file': 'b', 'error': 'why'}])
    console.Console(file=text, width=80).print(shown)
  lines = text.getvalue().splitlines()
  assert ''.join(line.split()[0] for line in lines[1:-1]) == name
  assert lines[1].split()[1:] == ['-3', '-120', '0.50', '1.00', '2.0']
  assert lines[-1].split() == ['b', *'-----']


def run(binary, *args):
  """The exit code; files go to main as absl would hand them over."""
  flags = [a for a in args if str(a).startswith('--')]
  files = [str(a) for a in args if not str(a).startswith('--')]
  with binary('sync').loaded(*flags) as module:
    try:
      module.main(['sync', *files])
    except SystemExit as exit:
      return exit.code
  return 0


@pytest.mark.parametrize(
  ('kind', 'said'),
  [
    ('silent', 'is silent; give a video in which one speaks'),
    ('mute', 'has no audio'),
    ('short', 'is too short: 1.2 of 1.6 s'),
    ('faceless', 'shows no face'),
    ('absent', 'no such file'),
    ('text', 'is not media'),
  ],
)
def test_what_cannot_be_judged_takes_one_line(
  binary, weights_file, tmp_path, one_error, kind, said
):
  path = tmp_path / f'{kind}.mp4'
  if kind == 'text':
    path.write_text('hello')
  elif kind == 'mute':
    media.write_video(path, np.full((60, 48, 48, 3), 90, np.uint8), None)
  elif kind != 'absent':
    write(
      path,
      frames=30 if kind == 'short' else 60,
      wave='silent' if kind == 'silent' else True,
      black=kind == 'faceless',
    )
  assert run(binary, f'--weights={weights_file}', path) == 1
  error = one_error()
  assert error.startswith(str(path)) and said in error


class Exact(sync_judge.Judge):
  """Its vectors are the samples themselves."""

  def hear(self, wave, frames):
    return 3 * wave.reshape(frames, 640)[5:-5, :16]


def test_evaluation_shifts_sound_and_counts(judge, tmp_path):
  rng, outcomes = np.random.default_rng(0), []
  for k in range(3):
    frames = rng.integers(0, 256, (75, 32, 32, 3), dtype=np.uint8)
    wave = rng.standard_normal(48000).astype(np.float32)
    record = {'id': f'c{k}', 'caption': '', 'frames': frames, 'wave': wave}
    outcomes.append(shards.Outcome(f'c{k}', record))
  folder = shards.ShardFolder(tmp_path / 'clips', {'stage': 'clips'}, 1)
  folder.write(0, outcomes)
  clips = sync_evaluation.read_clips(judge, tmp_path / 'clips')
  moved = sync_evaluation.shifted(clips[0].wave, 3)
  assert len(moved) == 48000 and not moved[:1920].any()
  np.testing.assert_array_equal(moved[1920:], clips[0].wave[:-1920])
  back = sync_evaluation.shifted(moved, -3)
  np.testing.assert_array_equal(back[:-1920], clips[0].wave[:-1920])
  exact = Exact(judge.weights)
  alike = [clip._replace(seen=exact.hear(clip.wave, 75)) for clip in clips]
  for offset, verdict in sync_evaluation.planted(exact, alike, (-7, 0, 4)):
    assert verdict.offset == offset
  report = sync_evaluation.evaluate(judge, tmp_path / 'clips')
  assert report['clips'] == 3 and report['planted'] == 63
  assert report['unrelated'] == 6 and 0 <= report['auc'] <= 1
  assert 'within one frame' in sync_evaluation.text(report)
  with pytest.raises(UserError, match='holds no'):
    sync_evaluation.evaluate(judge, tmp_path)


def test_the_area_under_the_curve():
  assert sync_evaluation.auc([3, 2], [1, 0]) == 1
  assert sync_evaluation.auc([1], [1]) == 0.5
  assert sync_evaluation.auc([3, 1], [2, 0]) == 0.75


@pytest.mark.full
def test_the_shipped_judge_on_real_clips(monkeypatch, tmp_path):
  monkeypatch.undo()  # Real faces.
  pytest.importorskip('ai_edge_litert')
  if not GRID.exists():
    pytest.skip(f'{GRID} is not there')
  judge = sync_judge.Judge(load())
  for name in json.loads((GRID / 'split.json').read_text())['val'][:3]:
    path = GRID / f'clips/{name}.mp4'
    wave = sync_evaluation.shifted(media.read_audio(path), 4)
    late = tmp_path / f'{name}.mov'
    media.write_video(late, media.read_video(path).frames, wave)
    found = judge.judge_file(late)
    assert abs(found.verdict.offset - 4) <= 1 and found.faces == 1
    assert found.verdict.confidence > 0.5
