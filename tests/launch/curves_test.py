"""Curves of several runs, one after the other where one led to another."""

import json

import pytest

from launch.errors import UserError


@pytest.fixture
def curves(binary):
  with binary('curves').loaded() as module:
    yield module


def run(folder, source='', steps=(2, 4), saved=4, scale=1.0, **config):
  (folder / 'checkpoints' / str(saved)).mkdir(parents=True)
  config['init_from'] = str(source)
  (folder / 'config.json').write_text(json.dumps(config))
  rows = [{'step': s, 'time': 0, 'eval/loss': scale / s} for s in steps]
  rows.insert(1, {'step': 3, 'time': 0, 'loss': 7.0, 'eval/loss': None})
  text = '\n'.join(json.dumps(row) for row in rows)
  (folder / 'metrics.jsonl').write_text(text + '\n{"step": 9, "eval')
  return folder


def test_a_curve_leaves_out_what_is_not_there(curves, tmp_path):
  first = run(tmp_path / 'a')
  assert curves.read_curve(first, 'eval/loss') == [(2, 0.5), (4, 0.25)]
  with pytest.raises(UserError, match='no eval/lips; .* eval/loss, loss'):
    curves.read_curve(first, 'eval/lips')
  with pytest.raises(UserError, match='not found'):
    curves.read_curve(tmp_path, 'loss')


def test_steps_add_up_from_run_to_run(curves, tmp_path):
  a = run(tmp_path / 'a')
  b = run(tmp_path / 'b', a, saved=6)
  c = run(tmp_path / 'c', b)
  assert [curves.steps_before(x) for x in (a, b, c)] == [0, 4, 10]
  d = run(tmp_path / 'd', tmp_path / 'weights.safetensors')
  assert curves.steps_before(d) == 0
  run(tmp_path / 'e', tmp_path / 'f')
  f = run(tmp_path / 'f', tmp_path / 'e')
  with pytest.raises(UserError, match='start from each other'):
    curves.steps_before(f)


def test_the_binary_plots_them(binary, tmp_path, capsys, one_error):
  pytest.importorskip('matplotlib')
  a = run(tmp_path / 'a')
  b = run(tmp_path / 'b', a)
  out = tmp_path / 'curves.png'
  with binary('curves').loaded(f'--out={out}') as module:
    module.main(['curves', str(a), str(b)])
  assert out.read_bytes().startswith(b'\x89PNG')
  assert 'b: eval/loss 0.25 at step 8' in capsys.readouterr().out
  with binary('curves').loaded() as module, pytest.raises(SystemExit):
    module.main(['curves', str(a)])
  assert '--out' in one_error()


def score(folder, value, row='generated'):
  folder.mkdir(parents=True)
  mean = {row: {'mouth_correlation': value}}
  (folder / 'scores.json').write_text(json.dumps({'mean': mean}))


def test_lips_stand_beside_the_loss(binary, tmp_path, capsys, one_error):
  pytest.importorskip('matplotlib')
  a = run(tmp_path / 'a')
  b = run(tmp_path / 'b', a)
  scores, out = tmp_path / 'lips', tmp_path / 'curves.png'
  score(scores / 'b/4', 0.7)
  score(scores / 'b/2', 0.5)
  flags = f'--out={out}', '--scores=lips'
  with binary('curves').loaded(*flags) as module:
    assert module.read_lips('lips', b) == [(2, 0.5), (4, 0.7)]
    assert module.read_lips('lips', a) == []
    module.main(['curves', str(a), str(b)])
  assert out.read_bytes().startswith(b'\x89PNG')
  assert "b: mouth opening, r with the true clip's 0.7 at step 8" in (
    capsys.readouterr().out
  )
  with binary('curves').loaded(*flags) as module, pytest.raises(SystemExit):
    module.main(['curves', str(a)])
  assert 'has NAME/STEP/scores.json of one' in one_error()
  score(scores / 'a/last', 0.5)
  with binary('curves').loaded(*flags) as module, pytest.raises(SystemExit):
    module.main(['curves', str(a)])
  assert 'must lie in a folder named by the step' in one_error()
  score(scores / 'a/4', 0.5, row='rebuilt')
  (scores / 'a/last/scores.json').unlink()
  with binary('curves').loaded(*flags) as module, pytest.raises(SystemExit):
    module.main(['curves', str(a)])
  assert 'launch.evaluate of a transformer' in one_error()


def test_seeds_are_one_line(binary, tmp_path, capsys, monkeypatch):
  pytest.importorskip('matplotlib')
  runs = [
    run(tmp_path / f'{n}/a', scale=n, steps=(2, 4, 4 + n), seed=n, rate=1)
    for n in (1, 3)
  ]
  other = run(tmp_path / '5/a', seed=5, rate=2)
  score(tmp_path / '1/lips/a/4', 0.7)
  score(tmp_path / '3/lips/a/4', 0.5)
  out, drawn = tmp_path / 'curves.png', {}
  with binary('curves').loaded(f'--out={out}', '--scores=lips') as module:
    save = module.save_plot
    monkeypatch.setattr(
      module, 'save_plot', lambda path, x: save(path, x) or drawn.update(x)
    )
    module.main(['curves', *map(str, [*runs, other])])
    loss = drawn['eval/loss']
    title = f'{runs[0]}, 2 seeds'
    assert list(loss) == [title, str(other)]
    assert module.mean(loss[title]) == [(2, 1.0), (4, 0.5)]
    assert module.mean(drawn[module.LIPS][title]) == [(4, pytest.approx(0.6))]
    assert list(module.by_seed(map(str, runs))) == ['a, 2 seeds']
  assert f'{title}: eval/loss 0.5 at step 4' in capsys.readouterr().out
