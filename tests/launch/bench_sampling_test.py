"""Ratios and figures of ways to sample, with ways whose answers are known."""

import json
import types

import numpy as np
import pytest

from launch import (
  bench_sampling,
  bundle,
  evaluation,
  faces,
  generate,
  stopwatch,
)
from launch.bench_sampling import Clip, Way
from launch.errors import UserError
from mirage_jax.cache import Caching
from tests.launch.drawn import DrawnFaces, draw_clip, loudness, rebuild

pytest.importorskip('matplotlib', reason='needs the eval extra')
MOUTH = np.random.default_rng(0).uniform(0, 1, 27)
WAVE = np.repeat(0.8 * MOUTH, 640).astype(np.float32)
WAVE[1::2] *= -1


class Clock:
  """A time that passes when it is told to."""

  now = 0.0

  def monotonic(self):
    return self.now


CLOCK = Clock()


class Model:
  """Follows the loudness, the less the more it errs."""

  def __init__(self, error=0.0, each=4.0, quantised='none', own_steps=0):
    self.quantised, self.own_steps = quantised, own_steps
    self.usual = generate.Settings(own_steps or 8)
    self.error, self.each, self.seeds = error, each, []
    self.num_bytes = 4_000_000 if quantised == 'none' else 1_000_000

  def __call__(self, wave, image, text, settings):
    # To compile all that a round of the branches of guidance needs.
    few = max(2, min(settings.caching.guidance + 1, 4))
    assert settings.steps == (self.own_steps or few)
    self.seeds.append(None)

  def windows(self, wave, image, text, settings, stage):
    self.seeds.append(settings.seed)
    with stage('sample'):
      CLOCK.now += self.each * settings.steps
    CLOCK.now += 100  # Of decoding.
    rng = np.random.default_rng(1)
    # Seed 1 errs more than seed 0.
    noise = rng.uniform(-1, 1, len(loudness(wave)))
    noise *= self.error * (1 + settings.seed)
    yield draw_clip(np.clip(loudness(wave) + noise, 0, 1))


@pytest.fixture(scope='module', autouse=True)
def clock():
  fake = types.SimpleNamespace(monotonic=CLOCK.monotonic)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(stopwatch, 'time', fake)
    yield


@pytest.fixture(scope='module')
def ways():
  plain = generate.Settings(steps=32)
  fast = generate.Settings(steps=32, caching=Caching(3, 2))
  return {
    'plain': Way(Model(0.1), plain),
    'cached': Way(Model(0.1, each=2.0), fast),
    'few_step': Way(Model(0.4), generate.Settings(steps=4)),
  }


@pytest.fixture(scope='module')
def measured(ways):
  truth = draw_clip(MOUTH)
  clips = [Clip(WAVE, truth[0], truth)] * 2
  return bench_sampling.measure(ways, clips, DrawnFaces(), rebuild)


def test_ways_take_turns_and_are_compiled_before(ways, measured):
  assert all(way.generator.seeds == [None, 0, 1] for way in ways.values())
  assert len(measured) == 2


def test_speed_and_lips_against_the_plain_way(ways, measured):
  summary = bench_sampling.summarise(ways, measured)
  assert summary['cached_speedup'] == pytest.approx(2)
  assert summary['few_step_speedup'] == pytest.approx(8)
  assert summary['cached_lost_correlation'] == pytest.approx(0, abs=1e-6)
  figures = summary['figures']
  lost = figures['plain']['mouth_correlation']
  lost -= figures['few_step']['mouth_correlation']
  each = [
    clip['plain']['mouth_correlation'] - clip['few_step']['mouth_correlation']
    for clip in measured
  ]
  # Of two numbers, half of what lies between them.
  error = abs(each[0] - each[1]) / 2
  assert error > 0.01 and summary['few_step_lost_correlation_error'] == (
    pytest.approx(error)
  )
  assert summary['cached_lost_correlation_error'] == pytest.approx(0, abs=1e-6)
  assert figures['plain']['megabytes'] == 4
  assert summary['few_step_lost_correlation'] == pytest.approx(lost)
  assert 0.02 < lost < 0.5
  assert figures['cached']['mouth_to_plain'] == pytest.approx(1)
  assert figures['cached']['psnr_to_plain'] == pytest.approx(100)
  assert summary['against'] == 'truth' and summary['clips'] == 2
  assert list(figures) == ['truth', 'rebuilt', *ways]
  assert figures['truth']['mouth_correlation'] == pytest.approx(1)
  assert 0.99 < figures['rebuilt']['mouth_correlation']
  assert 'seconds' not in figures['truth'] and 'truth' not in summary['ways']
  table = bench_sampling.table(summary)
  row = f'truth{"-":>16}{"-":>8}{"-":>6}{1:>8.3f}{"-":>8}{"-":>7}'
  assert any(line.startswith(row) for line in table)
  assert max(map(len, table)) <= 80
  assert any('branches at every 3. step' in line for line in table)


def test_without_a_truth_the_plain_lips_are_the_measure(ways):
  clips = [Clip(WAVE, draw_clip(MOUTH)[0])]
  results = bench_sampling.measure(ways, clips, DrawnFaces(), rebuild)
  assert list(results[0]) == list(ways)
  summary = bench_sampling.summarise(ways, results)
  assert summary['against'] == 'plain'
  near = summary['figures']['few_step']['mouth_to_plain']
  assert summary['few_step_lost_correlation'] == pytest.approx(1 - near)


def test_the_command_prints_one_line(binary, monkeypatch, capsys):
  truth = draw_clip(MOUTH)
  made = lambda weights, quantised='none': Model(
    0.1, quantised=quantised, own_steps=4 if weights == 'fast' else 0
  )
  monkeypatch.setattr(bench_sampling, 'Generator', made)
  monkeypatch.setattr(bundle, 'load', str)
  monkeypatch.setattr(evaluation, 'make_rebuild', lambda weights: rebuild)
  monkeypatch.setattr(faces, 'default_mesh', DrawnFaces)
  clips = lambda count: [Clip(WAVE, truth[0], truth)] * count
  monkeypatch.setattr(bench_sampling, 'spoken_clips', clips)
  given = ['--json', '--limit=2', '--cache=guidance:3']
  given += ['--quantise=fp8,int8_weights']
  with binary('bench').loaded(*given) as bench:
    bench.sampling()
  summary = json.loads(capsys.readouterr().out)
  for name, speedup in (('cached', 1), ('few_step', 16), ('quantised', 1)):
    assert summary[f'{name}_speedup'] == pytest.approx(speedup)
    assert f'{name}_lost_correlation' in summary
  assert summary['ways']['quantised'] == '64 steps, euler, fp8 matmuls'
  assert 'int8_weights matmuls' in summary['ways']['int8_weights']
  assert summary['int8_weights_speedup'] == pytest.approx(1)
  assert 'int8_weights_lost_correlation_error' in summary
  assert summary['figures']['int8_weights']['megabytes'] == 1
  assert 'branches at every 3. step' in summary['ways']['cached']
  assert summary['ways']['few_step'] == '4 steps, euler, distilled'
  with binary('bench').loaded(*given, '--few_steps=8') as bench:
    bench.sampling()
  summary = json.loads(capsys.readouterr().out)
  assert summary['few_step_speedup'] == pytest.approx(8)
  assert summary['ways']['few_step'] == '8 steps, euler'
  with binary('bench').loaded('--quantise=fp8,fp8') as bench:
    with pytest.raises(UserError, match='--quantise: give one or more schemes'):
      bench.sampling()
