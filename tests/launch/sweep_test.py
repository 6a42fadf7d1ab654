"""A sweep over drawn clips with a model that errs as it is told."""

import json
from typing import ClassVar

import numpy as np
import pytest

from launch import bundle, evaluation, faces, generate
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


class Model:
  """Follows the loudness, but for noise that falls with steps and weight."""

  made: ClassVar = []

  def __init__(self, weights):
    pass

  def windows(self, wave, image, text, settings, stage):
    weight = settings.guidance.weight('audio').value
    Model.made.append((settings.solver, settings.steps, weight))
    mouth = loudness(wave)
    rng = np.random.default_rng(settings.seed)
    noise = rng.uniform(-1, 1, len(mouth)) * 2 / settings.steps / weight
    with stage('sample'):
      yield draw_clip(np.clip(mouth + noise, 0, 1))


@pytest.fixture
def sweep(binary, tmp_path, monkeypatch):
  (tmp_path / 'clips').mkdir()
  write_clips(tmp_path / 'clips')
  weights = bundle.Bundle({'data': {'size': SIZE}}, {}, {})
  monkeypatch.setattr(bundle, 'load', lambda path: weights)
  monkeypatch.setattr(generate, 'Generator', Model)
  monkeypatch.setattr(faces, 'default_mesh', DrawnFaces)
  monkeypatch.setattr(evaluation, 'make_rebuild', lambda weights: rebuild)
  Model.made = []

  def run(*arguments):
    given = [f'--data={tmp_path}/clips', f'--out={tmp_path}/out']
    return binary('sweep')(*given, '--solvers=euler', *arguments)

  return run


@pytest.mark.full
def test_every_combination_is_judged_and_a_second_run_adds_to_it(
  sweep, tmp_path
):
  grid = '--audio_cfgs=1,2'
  assert sweep(grid, '--steps=2,8') == 0
  assert len(Model.made) == 3 * 4
  assert set(Model.made) == {('euler', s, w) for s in (2, 8) for w in (1, 2)}
  rows = json.loads((tmp_path / 'out/sweep.json').read_text())['rows']
  names = ['truth', 'rebuilt']
  names += ['euler_2_1', 'euler_2_2', 'euler_8_1', 'euler_8_2']
  assert [row['row'] for row in rows] == names
  found = {row['row']: row['mouth_correlation'] for row in rows}
  assert found['truth'] == pytest.approx(1)
  assert found['euler_2_1'] < found['euler_2_2'] < found['euler_8_2'] < 1
  table = (tmp_path / 'out/sweep.md').read_text()
  assert f'| euler | 8 | 2 | **{found["euler_8_2"]:.3f}** |' in table
  assert '| ground truth |  |  | 1.000 |' in table
  assert (tmp_path / 'out/sweep.png').stat().st_size > 10_000

  Model.made = []
  assert sweep(grid, '--steps=2,4') == 0  # 2 steps are there already.
  assert set(Model.made) == {('euler', 4, 1), ('euler', 4, 2)}


def test_what_is_wrong_is_named(sweep, one_error):
  for arguments, said in (
    (['--steps=x'], '--steps=x --audio_cfgs=1,2,3,4: give numbers'),
    (['--audio_cfgs=99'], '--audio_cfg=99: must lie between 0 and 30'),
    (['--solvers=rk4'], '--solver=rk4: there is no such solver'),
  ):
    assert sweep(*arguments) == 1
    assert said in one_error()


def test_another_seed_is_another_sweep(sweep, one_error):
  assert sweep('--steps=2', '--audio_cfgs=1', '--limit=2') == 0
  assert sweep('--steps=2', '--audio_cfgs=1', '--limit=2', '--seed=1') == 1
  assert 'give another --out or remove it' in one_error()


def test_other_weights_of_the_same_name_are_another_run(
  sweep, one_error, monkeypatch
):
  assert sweep('--steps=2', '--audio_cfgs=1', '--limit=2') == 0
  other = bundle.Bundle(
    {'data': {'size': SIZE}}, {'kernel': np.ones(1, np.float32)}, {}
  )
  monkeypatch.setattr(bundle, 'load', lambda path: other)
  assert sweep('--steps=2', '--audio_cfgs=1', '--limit=2') == 1
  assert 'give another --out or remove it' in one_error()
