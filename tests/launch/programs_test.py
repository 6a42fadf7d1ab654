import jax
import pytest

from launch import programs


@pytest.fixture(autouse=True)
def config():
  names = [
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
    'jax_persistent_cache_min_entry_size_bytes',
  ]
  before = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_programs_are_kept_where_the_user_says(tmp_path, monkeypatch):
  usual = jax.config.jax_compilation_cache_dir  # Of the environment.
  assert str(programs.keep()) == usual
  assert programs.keep(tmp_path / 'a') == tmp_path / 'a'
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'a')
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
  jax.config.update('jax_compilation_cache_dir', None)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert programs.keep() == tmp_path / 'mirage_infomax/programs'
