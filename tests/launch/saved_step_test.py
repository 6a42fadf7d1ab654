"""A step that was compiled before is the one that trains."""

import jax
from jax.experimental.compilation_cache import compilation_cache
import numpy as np
import pytest

from launch import aot_compile, loop, saved_step
from launch.errors import UserError
from tests.launch import toy_config, toy_experiment


@pytest.fixture
def compiled_here():
  """Not out of JAX's cache, which `launch.aot` does without, too."""
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()
  yield
  jax.config.update('jax_enable_compilation_cache', True)
  compilation_cache.reset_cache()


@pytest.fixture
def config(monkeypatch):
  shape = lambda config, size: {
    'x': jax.ShapeDtypeStruct((size, 4, toy_experiment.WIDTH), 'float32')
  }
  monkeypatch.setattr(toy_experiment, 'abstract_batch', shape, raising=False)
  return toy_config.plain(num_steps=2, mesh__data=2, mesh__fsdp=4)


@pytest.mark.usefixtures('compiled_here')
def test_a_saved_step_trains_to_the_same_bits(config, tmp_path, monkeypatch):
  file = tmp_path / 'step'
  compiled = aot_compile.compile_step(config, jax.devices())
  saved_step.save(file, compiled.program, config)
  want = loop.train(config, tmp_path / 'plain')

  def traced(*_):
    raise AssertionError('the step is traced once more')

  monkeypatch.setattr(toy_experiment.Toy, 'train_step', traced)
  step = saved_step.load(file, config)
  got = loop.train(config, tmp_path / 'saved', step=step)
  jax.tree.map(np.testing.assert_array_equal, got, want)

  with pytest.raises(UserError, match='compiled of other batch_size, toy: '):
    other = {'batch_size': 16, 'toy': config['toy'] | {'learning_rate': 1.0}}
    saved_step.load(file, config | other)
  broken = 'deserialize_and_load'
  monkeypatch.setattr(saved_step.serialize_executable, broken, traced)
  with pytest.raises(UserError, match=r'not load on 8 x cpu \(the step is'):
    saved_step.load(file, config)


def test_any_other_file_is_refused(tmp_path):
  file = tmp_path / 'step'
  file.write_text('no step')
  with pytest.raises(UserError, match='step is no file of launch.aot --export'):
    saved_step.load(file, {})
