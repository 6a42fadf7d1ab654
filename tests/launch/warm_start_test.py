"""config.init_from: another run's average, a fresh optimizer, step 0."""

import jax
import numpy as np
import pytest

from launch import bundle, checkpoint, loop, warm_start
from launch.errors import UserError
from tests.launch import toy_config


def test_a_run_starts_from_the_average_of_another(tmp_path):
  first = loop.train(toy_config.plain(num_steps=6), tmp_path / 'first')
  config = toy_config.plain(num_steps=1, toy__learning_rate=0.0)
  config['init_from'] = str(tmp_path / 'first')
  second = loop.train(config, tmp_path / 'second')
  _, average = checkpoint.restore_params(tmp_path / 'first')
  jax.tree.map(np.testing.assert_array_equal, second.params, average)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), first.params, average)
  assert max(jax.tree.leaves(moved)) > 0  # The average is not the last step.
  assert int(second.step) == 1


def test_another_model_is_refused(tmp_path, monkeypatch):
  loop.train(toy_config.plain(num_steps=3), tmp_path / 'first')
  config = toy_config.plain()
  config['init_from'] = str(tmp_path / 'first')
  monkeypatch.setattr(
    warm_start, 'restore_params', lambda workdir: ({}, {'w': np.zeros(3)})
  )
  with pytest.raises(UserError, match=r'init_from=.*first: .* another model'):
    loop.train(config, tmp_path / 'second')
  assert not list((tmp_path / 'second').glob('checkpoints/*'))


def test_a_bundle_gives_the_part_that_fits(tmp_path):
  first = loop.train(toy_config.plain(num_steps=3), tmp_path / 'first')
  _, average = checkpoint.restore_params(tmp_path / 'first')
  stats = {'mean': np.zeros(1), 'std': np.ones(1)}
  window = {'size': 8, 'num_chunks': 1, 'text_length': 1, 'past': 0}
  config = {'vae': {'latent_channels': 1}, 'dit': {}, 'data': window}
  path = tmp_path / 'weights.safetensors'
  other = {'kernel': np.zeros((2, 2))}
  bundle.save(path, bundle.Bundle(config, other, stats, average))
  fresh = jax.tree.map(np.zeros_like, first.params)
  fresh = jax.tree.map(jax.numpy.asarray, fresh)
  state = first.replace(params=fresh)
  started = warm_start.load(state, path, warm_start.same_model)
  half = jax.tree.map(lambda x: x.astype(np.float16), average)
  jax.tree.map(np.testing.assert_array_equal, started.params, half)


def test_weights_of_half_precision_become_the_state_s_own(
  tmp_path, monkeypatch
):
  first = loop.train(toy_config.plain(num_steps=3), tmp_path / 'first')
  half = jax.tree.map(lambda x: np.asarray(x, np.float16), first.params)
  monkeypatch.setattr(warm_start, 'restore_params', lambda workdir: ({}, half))
  started = warm_start.load(first, tmp_path, warm_start.same_model)
  jax.tree.map(np.testing.assert_array_equal, started.params, half)
  for tree in (started.params, started.ema):
    assert {x.dtype for x in jax.tree.leaves(tree)} == {np.dtype('float32')}
