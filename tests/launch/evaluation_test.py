import json
import shutil

import numpy as np
import pytest

from launch import clip_scores, evaluation, faces, media
from launch.errors import UserError
from tests.launch.drawn import (
  SIZE,
  DrawnFaces,
  draw_clip,
  loudness,
  rebuild,
  write_clips,
)

pytest.importorskip('matplotlib', reason='needs the eval extra')
pytest.importorskip('skimage', reason='needs the eval extra')


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
  return write_clips(tmp_path_factory.mktemp('clips'))


class Model:
  """Generates the right mouth from the loudness; counts its calls."""

  def __init__(self):
    self.calls = []

  def __call__(self, wave, image, seed):
    self.calls.append(seed)
    assert image.shape == (SIZE, SIZE, 3)
    return draw_clip(loudness(wave))


def evaluate(clips, out, model, monkeypatch, **settings):
  monkeypatch.setattr(faces, 'default_mesh', DrawnFaces)
  files = evaluation.list_clips(clips, None, 'val', settings.pop('limit', None))
  settings = {'checkpoint': 'none', 'size': SIZE} | settings
  plan = evaluation.make_plan(list(files), **settings)
  run = evaluation.Evaluation(plan, files, out, rebuild, model, num_plots=1)
  return run.run()


@pytest.fixture(scope='module')
def finished(clips, tmp_path_factory):
  out, model = tmp_path_factory.mktemp('out'), Model()
  with pytest.MonkeyPatch.context() as patch:
    summary = evaluate(clips, out, model, patch, shuffle_audio=True)
  return out, model, summary


def test_right_audio_beats_shuffled_audio(finished):
  _, _, summary = finished
  assert list(summary) == ['truth', 'rebuilt', 'generated', 'shuffled']
  assert summary['truth']['mouth_correlation'] == pytest.approx(1)
  assert summary['generated']['mouth_correlation'] > 0.95
  assert summary['generated']['best_lag'] == 0
  assert summary['shuffled']['mouth_correlation'] < 0.6
  assert summary['generated']['control_correlation'] < 0.6
  assert summary['generated']['blinks_per_minute'] == 0
  # One level off everywhere.
  known = 20 * np.log10(255)
  assert summary['rebuilt']['psnr_static_truth'] == pytest.approx(known)
  assert summary['rebuilt']['psnr_whole_truth'] == pytest.approx(known)


def test_writes_table_scores_and_pictures(finished):
  out, _, summary = finished
  table = (out / 'table.md').read_text()
  line = next(x for x in table.splitlines() if x.startswith('| mouth r'))
  assert f'{summary["generated"]["mouth_correlation"]:.3f}' in line
  assert '| PSNR | - |' in table  # The truth against itself says nothing.
  scores = json.loads((out / 'scores.json').read_text())
  assert [c['id'] for c in scores['clips']] == ['a', 'b', 'c']
  assert all(c['partner'] != c['id'] for c in scores['clips'])
  assert len(media.read_video(out / 'a.mp4').frames) == 27
  assert (out / 'a.png').exists() and (out / 'curves.png').exists()
  assert not (out / 'b.png').exists()


def test_continues_where_it_was_and_gives_the_same(
  finished, clips, tmp_path, monkeypatch
):
  out, model, summary = finished
  assert model.calls == [0, 0, 1, 1, 2, 2]
  shutil.copytree(out, tmp_path / 'out')
  (tmp_path / 'out/clips/b.json').unlink()
  again = Model()
  repeated = evaluate(
    clips, tmp_path / 'out', again, monkeypatch, shuffle_audio=True
  )
  assert again.calls == [1, 1] and repeated == summary
  with pytest.raises(UserError, match=r'plan\.json.*another --out'):
    evaluate(clips, tmp_path / 'out', again, monkeypatch, seed=1)


def test_autoencoder_alone_needs_no_model(clips, tmp_path, monkeypatch):
  summary = evaluate(clips, tmp_path, None, monkeypatch, vae_only=True, limit=2)
  assert list(summary) == ['truth', 'rebuilt']


def test_own_reference_is_the_first_frame(clips, tmp_path, monkeypatch):
  model, seen = Model(), []

  def spy(wave, image, seed):
    seen.append(image)
    return model(wave, image, seed)

  evaluate(clips, tmp_path, spy, monkeypatch, own_reference=True, limit=2)
  own = evaluation.load_clip(clips / 'a.mp4', SIZE, DrawnFaces()).frames[0]
  np.testing.assert_array_equal(seen[0], own)


def test_lost_face_is_judged_and_told(clips, tmp_path, monkeypatch):
  def black(wave, image, seed):
    return np.zeros((27, SIZE, SIZE, 3), np.uint8)

  summary = evaluate(clips, tmp_path, black, monkeypatch, limit=2)
  assert summary['truth']['face_found'] == 1
  assert summary['generated']['face_found'] == 0
  assert summary['generated']['mouth_correlation'] == 0
  with pytest.raises(faces.NoFaceError):
    clip_scores.look(black(None, None, 0), DrawnFaces())


def test_unreadable_clip_is_told_and_left_out(clips, tmp_path, monkeypatch):
  data = tmp_path / 'data'
  shutil.copytree(clips, data)
  (data / 'broken.mp4').write_bytes(b'no video')
  media.write_video(data / 'short.mp4', draw_clip(np.ones(5)), np.zeros(3200))
  summary = evaluate(data, tmp_path / 'out', None, monkeypatch, vae_only=True)
  assert summary['rebuilt']['mouth_correlation'] > 0.9
  scores = json.loads((tmp_path / 'out/scores.json').read_text())
  broken, short = scores['skipped']
  assert broken['id'] == 'broken' and 'broken.mp4' in broken['skipped']
  assert 'short.mp4: 5 frames' in short['skipped']
  assert '2 more could not be judged' in (tmp_path / 'out/table.md').read_text()


def test_bad_lists_of_clips_are_one_line_each(clips, tmp_path):
  split = tmp_path / 'split.json'
  split.write_text('{"val": ["a", "zzz"], "one": ["a"]}')
  for data, file, subset, message in (
    (tmp_path / 'none', None, 'val', 'no such folder'),
    (clips, tmp_path / 'none.json', 'val', r'none\.json.*No such file'),
    (clips, split, 'test', "a list under 'test'"),
    (clips, split, 'val', "no clip 'zzz'"),
    (clips, split, 'one', 'at least 2'),
  ):
    with pytest.raises(UserError, match=message):
      evaluation.list_clips(data, file, subset, None)


def test_similarity_recovers_turn_scale_and_shift():
  points = np.random.default_rng(0).normal(size=(8, 2))
  turn = 1.3 * np.array([[0.6, -0.8], [0.8, 0.6]])
  target = points @ turn.T + [3, -2]
  found = clip_scores.similarity(points, target)
  np.testing.assert_allclose(found[:, :2], turn, atol=1e-9)
  np.testing.assert_allclose(found[:, 2], [3, -2], atol=1e-9)


def test_align_undoes_a_shift(monkeypatch):
  frames = draw_clip(np.zeros(4))
  target = clip_scores.look(frames, DrawnFaces())
  points = target.landmarks + np.array([3, 2, 0])
  moved = target._replace(frames=np.roll(frames, (2, 3), (1, 2)))
  moved = moved._replace(landmarks=points)
  aligned, seen = clip_scores.align(moved, target)
  assert 0.7 < seen.mean() < 0.95
  difference = np.abs(aligned.astype(int) - frames)[:, seen]
  assert difference.max() <= 2
