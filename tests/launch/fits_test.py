"""Mochi's checkpoint in Mirage 10B on 256 devices, from headers alone."""

import functools
import re
import types

import jax
import pytest

from launch import convert_foreign, convert_mochi, convert_sink
from launch.shards import write_json
from mirage_jax import mochi_weights
from mirage_jax.encoders import names

RECIPE = 'configs/mirage/mirage_10b_stitch.py:v5p_256'


@pytest.fixture(scope='module')
def mochi(tmp_path_factory):
  """What a conversion of all of Mochi makes, before a number is written."""
  ours = convert_mochi.abstract_dit(convert_mochi.MOCHI)
  layout = mochi_weights.diffusers(convert_mochi.MOCHI)
  like = functools.partial(jax.ShapeDtypeStruct, dtype=jax.numpy.bfloat16)
  shapes = names.their_shapes(layout, ours)
  tensors = {name: like(shape) for name, shape in shapes.items()}
  source = types.SimpleNamespace(tensors=tensors, where='mochi')
  kind = convert_mochi.mochi(tensors, {})
  spelled = convert_foreign.check(source, kind)
  specs = convert_foreign.specs(source, kind, spelled, 'keep', 'ema/')
  folder = tmp_path_factory.mktemp('weights') / 'mochi'
  convert_sink.OrbaxSink(folder, specs)
  write_json(folder / 'config.json', kind.config)
  return folder


def test_all_of_mochi_on_256_devices(binary, mochi, capsys):
  size = sum(f.stat().st_size for f in mochi.rglob('*') if f.is_file())
  assert size < 1e6  # Headers.
  assert binary('fits')(f'--config={RECIPE}', f'--weights={mochi}') == 0
  first, second = capsys.readouterr().out.splitlines()
  assert first.endswith('fits; 10.023B parameters are taken, 0.708B start anew')
  numbers = [float(x) for x in re.findall(r'[\d.]+\d', second)]
  devices, held, whole, copied = numbers[:3] + numbers[-1:]
  assert devices == 256
  # Parameters, average and two moments in float32.
  assert whole == pytest.approx(10.7306 * 16, abs=0.06)
  # Nothing is split over `context`; modulations and what is small are whole.
  assert whole / 64 <= held < 1.05 * whole / 64
  assert copied < 10


def test_changes_of_mochi_on_eight_devices(binary, mochi, capsys):
  """An optimizer of the changes alone: hardly more than the base."""
  recipe = 'configs/mirage/mirage_10b_lora.py:mochi'
  assert binary('fits')(f'--config={recipe}', f'--weights={mochi}') == 0
  first, second = capsys.readouterr().out.splitlines()
  assert first.endswith('10.023B parameters are taken, 0.000B start anew')
  devices, held, whole = [float(x) for x in re.findall(r'[\d.]+\d|8', second)][
    :3
  ]
  assert devices == 8
  assert 10.023 * 4 < whole < 10.023 * 4 * 1.05
  assert held < 12


def test_another_model_is_told_before_a_pod_is_rented(
  binary, mochi, tmp_path, one_error
):
  how = f'--config={RECIPE}', '--config.model.depth=6'
  assert binary('fits')(*how, f'--weights={mochi}') == 1
  assert 'it has blocks/' in one_error()
  assert binary('fits')(f'--config={RECIPE}', f'--weights={tmp_path}/x') == 1
  assert 'x: no such folder' in one_error()
  how = f'--config={RECIPE}', '--config.mesh.fsdp=7', f'--weights={mochi}'
  assert binary('fits')(*how) == 1
  assert 'does not divide' in one_error()
