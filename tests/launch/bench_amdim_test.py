"""Sizes and the table of launch.bench_amdim; the steps are tested elsewhere."""

import pytest

from infomax_jax import experiment
from launch.side_by_side import Result


def result(cpu, peak):
  return Result(7, 1.0, 1, cpu, cpu, 1, peak, (cpu,))


def test_every_case_is_a_config_that_builds(binary):
  with binary('bench_amdim').loaded() as bench:
    for case in bench.CASES.values():
      config = bench.make_config(case)
      experiment.make(config)
      batch = experiment.abstract_batch(config, case.batch)
      size = case.image_size
      assert batch['view1'].shape == (case.batch, size, size, 3)
      assert config['encoder']['n_depth'] == case.n_depth


def test_the_table_and_the_ratios(binary):
  with binary('bench_amdim').loaded() as bench:
    sides = {'ours': result(0.4, 600e6), 'torch': result(0.5, 800e6)}
    results = {'tiny': sides, 'deep': {'ours': result(8.0, 3e9)}}
    lines = bench.table(results)
    assert all(len(line) <= 80 for line in lines)
    numbers = ['0.40', '0.50', '0.50', '0.60', '0.80', '0.73']
    assert lines[-2].split()[-6:] == numbers
    assert lines[-1].split()[-6:] == ['8.00', '-', '8.26', '3.00', '-', '3.27']
    told = bench.summary(results)
    assert told['tiny']['cpu_ratio'] == pytest.approx(0.8)
    assert told['tiny']['memory_ratio'] == pytest.approx(0.75)
    assert 'cpu_ratio' not in told['deep']


def test_mistakes(binary, one_error):
  assert binary('bench_amdim')('--only=tiny,huge') == 1
  assert '--only=huge: there are tiny, wide' in one_error()
