"""Torch's side of launch.bench_amdim does the work that ours does."""

import jax
import numpy as np
import pytest

from infomax_jax import experiment
from tests.infomax_jax import golden

torch = pytest.importorskip('torch')


def test_both_sides_have_as_many_parameters(binary):
  from launch import bench_amdim_torch

  with binary('bench_amdim').loaded() as bench:
    for case in bench.CASES.values():
      config = bench.make_config(case)
      made = experiment.make(config)
      state = jax.eval_shape(made.init, jax.random.key(0))
      ours = sum(x.size for x in jax.tree.leaves(state.params))
      with torch.device('meta'):
        model = bench_amdim_torch.make_model(config['encoder'])
      assert ours == sum(p.numel() for p in model.parameters())


def test_its_objective_is_that_of_the_authors():
  from launch import bench_amdim_torch

  arrays = golden.load('nce')
  for name in ('small', 'mid', 'clip'):
    source = torch.tensor(arrays[f'{name}/src'])
    target = torch.tensor(arrays[f'{name}/trg'])
    target = target.reshape(16, 5, 3, 3).permute(1, 0, 2, 3)
    got = bench_amdim_torch.nce(source, target)
    np.testing.assert_allclose(got, arrays[f'{name}/loss'], rtol=1e-6)
