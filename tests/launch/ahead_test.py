"""Programs from files: the same results, nothing traced a second time."""

import functools
from typing import NamedTuple

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from launch import ahead, bundle, generate
from launch.guidance_flags import make_guidance
from mirage_jax.guidance import Guidance
from tests import tiny


class State(NamedTuple):
  x: jax.Array
  past: tuple = ()


@functools.partial(jax.jit, static_argnums=(0, 1))
def grow(power, name, guidance, state):
  gain = guidance.gains['audio']
  return State(state.x**power * gain, (state.x,)), {'sum': state.x.sum()}


@pytest.fixture
def traced(monkeypatch):
  """Names of functions, as often as they were traced."""
  found, export = [], ahead._export

  def count(function, *rest):
    found.append(function.__name__)
    return export(function, *rest)

  monkeypatch.setattr(ahead, '_export', count)
  return found


@pytest.fixture
def run(tmp_path):
  """run(power, weight, x) with programs that a new process would have."""

  def call(power, weight, x, name='a', programs=None):
    programs = programs or ahead.Programs(tmp_path)
    return programs(grow, (power, name), Guidance(audio=weight), State(x))

  return call


def files(folder):
  return sorted(folder.glob('*.program'))


def test_a_second_process_traces_nothing(run, tmp_path, traced):
  x = np.arange(3, dtype=np.float32)
  state, more = run(2, 4.0, x)
  assert traced == ['grow'] and len(files(tmp_path)) == 1
  state, more = run(2, 11.0, x + 1)  # Other values are the same program.
  assert traced == ['grow'] and isinstance(state, State)
  np.testing.assert_allclose(state.x, 10 * (x + 1) ** 2)
  np.testing.assert_array_equal(state.past[0], x + 1)
  assert more['sum'] == 6


def test_what_is_compiled_in_tells_files_apart(
  run, tmp_path, monkeypatch, traced
):
  x = np.ones(3, np.float32)
  programs = ahead.Programs(tmp_path)
  run(2, 4.0, x, programs=programs)
  run(3, 4.0, x, programs=programs)
  run(2, 4.0, np.ones(4, np.float32), programs=programs)
  run(2, 4.0, jnp.ones(3, jnp.bfloat16), programs=programs)
  assert len(traced) == len(files(tmp_path)) == 4
  run(2, 9.0, x, programs=programs)
  assert len(traced) == 4
  monkeypatch.setattr(ahead, '_surroundings', lambda: ('another JAX',))
  run(2, 4.0, x)
  assert len(traced) == len(files(tmp_path)) == 5


def test_files_that_cannot_be_used_are_made_again(run, tmp_path, monkeypatch):
  x = np.ones(3, np.float32)
  run(2, 4.0, x)
  (file,) = files(tmp_path)
  whole = file.read_bytes()
  for wrong in (b'', b'nonsense', whole[: len(whole) // 2]):
    file.write_bytes(wrong)
    state, _ = run(2, 4.0, x)
    np.testing.assert_allclose(state.x, 3)
    assert len(file.read_bytes()) > len(whole) / 2
  # What cannot be told in words is not kept; the oldest files go.
  run(2, 4.0, x, name=f'<model{ahead.ADDRESS}7f>')
  assert files(tmp_path) == [file]
  monkeypatch.setattr(ahead, 'MOST', 1)
  run(3, 4.0, x)
  assert len(files(tmp_path)) == 1 and not file.exists()


@pytest.mark.full
def test_a_generator_with_programs_makes_the_same_video(
  tiny_file, generator, tmp_path, traced
):
  settings = generate.Settings(2, make_guidance('cosine', audio=3.0))
  arguments = tiny.speech(1.2), tiny.picture(), '', settings
  want = generator(*arguments)
  loaded = bundle.load(tiny_file)
  for _ in range(2):
    run = ahead.Programs(tmp_path)
    made = generate.Generator(loaded, run=run)(*arguments)
    np.testing.assert_array_equal(made, want)
    assert len(traced) == len(files(tmp_path)) == 3
