"""launch.aot: mistakes in one line; what it reports; and a real compile."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from launch import aot_chips, aot_compile, aot_memory, loop, mesh as mesh_lib
from launch.aot_report import Report
from launch.aot_schedule import Row, Timeline
from launch.errors import UserError
from tests.launch import toy_config, toy_experiment

ROOT = pathlib.Path(__file__).parents[2]
GRID = 'configs/mirage/grid.py:dit'
TOY = 'tests/launch/toy_config.py'


def report(**changes):
  """Of a step of 2 s on 4 chips, 8 devices, of tpu7x."""
  timeline = Timeline(seconds=2.0)
  timeline.collectives['all-gather', 'async', 8] = Row(48, 0.5, 3e9, 0.02)
  timeline.kernels['flash<1>.7'] = Row(48, 1.5)
  memory = aot_memory.Memory({'params': 10**9, 'batch': 10**6}, 0, 3 * 10**9, 7)
  values = dict(
    title='a config on tpu7x:2x2x1',
    chip=aot_chips.CHIPS['tpu7x'],
    devices=8,
    mesh={'data': 2, 'fsdp': 4},
    memory=memory,
    timeline=timeline,
    flops=2 * 4 * 2307e12 * 0.25,
    compile_seconds=12.0,
  )
  return Report(**values | changes)


def test_the_line_of_json():
  line = report().line()
  assert '\n' not in line
  got = json.loads(line)
  # A quarter of what four chips of 2,307 TFLOP/s do in two seconds.
  assert got['mfu'] == 0.25 and got['step_seconds'] == 2.0
  assert got['memory_gb'] == 4.001
  (gather,) = got['collectives']
  assert gather['op'] == 'all-gather' and gather['how'] == 'async'
  assert gather['gb'] == 3.0 and gather['exposed_seconds'] == 0.02


def test_the_text_states_the_formula_and_that_it_is_a_model():
  text = report(warnings=('the clock is fitted',)).text()
  assert 'modelled, not measured' in text
  assert 'x 4 chips x 2307 TFLOP/s bf16 a chip' in text and '0.250' in text
  assert '0.02 s (1.0%)' in text
  assert 'warning: the clock is fitted' in text
  assert 'arguments: params' in text and '0.931' in text  # GiB


def test_the_page_is_whole_and_escaped():
  page = report().page()
  assert page.startswith('<!doctype html>') and 'flash&lt;1&gt;.7' in page
  assert page.count('<table>') == page.count('</table>') == 4
  assert 'src=' not in page and 'href=' not in page


def test_a_kernel_without_a_time_leaves_no_mfu():
  timeline = Timeline(seconds=2.0, unknown={'flash.7': 'no dump'})
  got = report(timeline=timeline)
  assert json.loads(got.line())['mfu'] is None
  assert json.loads(got.line())['step_seconds'] is None
  assert 'warning: no time of flash.7: no dump' in got.text()
  assert json.loads(report(flops=float('nan')).line())['mfu'] is None


def test_mistakes_take_one_line(binary, one_error):
  aot = binary('aot')
  assert aot(f'--config={TOY}') == 1
  assert '--config and --topology are needed' in one_error()
  assert aot(f'--config={TOY}', '--topology=v9:2x2') == 1
  assert "no figures for 'v9', only for v5e, v5p" in one_error()
  with pytest.raises(SystemExit):
    aot(f'--config={TOY}', '--topology=v5e:2x2', '--config.sed=1')
  assert 'the config has no key' in one_error()


def test_a_topology_near_a_wrong_one():
  assert aot_chips.near('v5p:3x3x3') == 'v5p:4x4x3'
  assert aot_chips.near('v6e:1x1') == 'v6e:2x2'
  assert aot_chips.near('tpu7x:2x3x0') == 'tpu7x:2x4x1'
  assert aot_chips.near('2xv5p:3x3x3') == '2xv5p:4x4x3'
  assert aot_chips.near('v5e:16') == aot_chips.near('v5e:axb')
  assert aot_chips.near('v5e:16') == aot_chips.EXAMPLES


def test_a_topology_of_several_slices():
  assert aot_chips.slices('2xv5p:8x8x4') == (2, 'v5p:8x8x4')
  assert aot_chips.slices('v5p:8x8x4') == (1, 'v5p:8x8x4')
  assert aot_chips.chip('16xv6e:2x2') is aot_chips.CHIPS['v6e']


def compile_toy(**overrides):
  """On the eight devices of the tests, as if they were a topology."""
  config = toy_config.plain(**overrides)
  return aot_compile.compile_step(config, jax.devices())


@pytest.fixture
def abstract_batch(monkeypatch):
  """The toy's batch, which aot asks for; 4 tokens."""
  shape = lambda config, size: {
    'x': jax.ShapeDtypeStruct((size, 4, toy_experiment.WIDTH), 'float32')
  }
  monkeypatch.setattr(toy_experiment, 'abstract_batch', shape, raising=False)


def test_the_step_of_the_loop_is_compiled(abstract_batch):
  got = compile_toy(mesh__data=2, mesh__fsdp=4)
  kernels = 2 * toy_experiment.WIDTH * 16 * 4 // 4
  assert got.memory.arguments['params'] == kernels
  assert got.memory.arguments['batch'] == 8 // 8 * 4 * toy_experiment.WIDTH * 4
  assert got.memory.temp > 0 and got.warnings == ()
  assert 'all-reduce' in got.program.as_text()


@pytest.mark.parametrize(
  ('overrides', 'said'),
  [
    (
      dict(mesh__data=1, mesh__fsdp=3),
      'does not divide the 8 devices; --config.mesh.fsdp=8 would',
    ),
    (dict(batch_size=6), 'batch_size 6 is not a .* 8 shards .* make it 8, or'),
    (dict(batch_size=20), 'batch_size 20 is not .* make it 16 or 24, or use'),
    (
      dict(mesh__data=1, mesh__context=8),
      'context=8 does not divide the 4 tokens of a sample; 1, 2, 4 do',
    ),
    (dict(seed=0, experiment='nowhere'), 'nowhere, which is not there'),
  ],
)
def test_meshes_that_do_not_divide(abstract_batch, overrides, said):
  with pytest.raises(UserError, match=said):
    compile_toy(**overrides)


def test_what_is_advised_can_be_laid_out(abstract_batch, monkeypatch):
  """Tokens by their number, heads as the traced step tells."""
  config = toy_config.plain()
  layout = lambda **sizes: aot_memory.Layout(
    mesh_lib.make_mesh(sizes).shape, 8, 0.0
  )
  can = lambda x: aot_compile.divides(config, jax.devices(), loop.build, x)
  assert can(layout(data=2, context=4))
  assert not can(layout(context=8))  # Four tokens.
  step = toy_experiment.Toy.train_step

  def heads(self, *args):
    if jax.sharding.get_abstract_mesh().shape['tensor'] == 4:
      raise ValueError('2 heads on 4 devices')
    return step(self, *args)

  monkeypatch.setattr(toy_experiment.Toy, 'train_step', heads)
  assert can(layout(data=4, tensor=2)) and not can(layout(data=2, tensor=4))


def test_a_side_of_the_torus_that_is_cut(monkeypatch):
  """JAX tells it of TPUs alone: of sixteen in a square, 2 x 8 are not cut."""
  make = mesh_lib.make_mesh

  def torus(sizes, devices):
    if sizes['context'] not in (1, 2):
      raise NotImplementedError('assignable mesh [2, 4] and more')
    return make(sizes, devices)

  monkeypatch.setattr(mesh_lib, 'make_mesh', torus)
  with pytest.raises(
    UserError,
    match=r'left of it: \[2, 4\].* as with --config.mesh.fsdp=2 '
    '--config.mesh.context=2',
  ):
    sizes = dict(data=2, fsdp=1, context=4, tensor=1)
    aot_compile.make_mesh(sizes, jax.devices())


def test_an_experiment_that_cannot_tell_its_batch():
  with pytest.raises(UserError, match='has no abstract_batch'):
    compile_toy()


def test_heads_that_do_not_divide_are_named():
  mesh = mesh_lib.make_mesh({'tensor': 8})
  spec = jax.sharding.PartitionSpec(None, 'tensor')
  sharding = jax.sharding.NamedSharding(mesh, spec)
  x = jax.ShapeDtypeStruct((64, 24), 'float32', sharding=sharding)
  aot_compile.check_divides({'qkv': x}, mesh)
  x = jax.ShapeDtypeStruct((64, 9), 'float32', sharding=sharding)
  with pytest.raises(
    UserError, match=r'tensor=8 does not divide the 9 of .*qkv.*; 1 do'
  ):
    aot_compile.check_divides({'qkv': x}, mesh)


def test_an_overflow_says_what_would_fit(abstract_batch):
  mesh = mesh_lib.make_mesh({'data': 8})
  state = mesh_lib.abstract_state(toy_experiment.make(toy_config.plain()), mesh)
  error = RuntimeError('Used 16.00K of 15.00K hbm.')
  any_of = lambda layout: True
  told = aot_compile._told(error, state, mesh, 8, any_of)
  assert isinstance(told, aot_compile.TooBig)
  assert 'does not fit: 0.0 of 0.0 GiB' in str(told)
  assert '--config.mesh.' in str(told)
  other = aot_compile._told(
    RuntimeError('no such flag'), state, mesh, 8, any_of
  )
  assert str(other) == 'libtpu: no such flag'


@dataclasses.dataclass(frozen=True)
class Device:
  id: int
  process_index: int


def test_rows_that_processes_would_share_are_told(monkeypatch):
  """Four processes of two devices: `context` inside one, or across two."""

  def warned(order):
    shards = {}
    for place, number in enumerate(order):
      device = Device(number, number // 2)
      shards[device] = (slice(place // 2 * 2, place // 2 * 2 + 2),)

    class Sharding:
      @staticmethod
      def devices_indices_map(shape):
        return shards

    monkeypatch.setattr(mesh_lib, 'batch_sharding', lambda mesh: Sharding)
    mesh = mesh_lib.make_mesh({'fsdp': 4, 'context': 2})
    return aot_compile.shared_rows(mesh, 8)

  assert warned(range(8)) == []
  (said,) = warned([0, 2, 1, 3, 4, 6, 5, 7])
  assert 'a process holds 2 of 4 shards' in said and 'loads 1/4' in said


needs_libtpu = pytest.mark.skipif(
  not importlib.util.find_spec('libtpu'),
  reason="libtpu is not installed: pip install 'jax[tpu]'",
)


def run(*arguments):
  """`python -m launch.aot` in a process of its own: libtpu starts once."""
  environ = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  return subprocess.run(
    [sys.executable, '-m', 'launch.aot', *arguments],
    cwd=ROOT,
    env=environ,
    capture_output=True,
    text=True,
  )


SMALL = (
  '--config.model.depth=2',
  '--config.optimizer.name=adamw',
  '--config.batch_size=4',
  '--config.data.past=1',
)


@needs_libtpu
@pytest.mark.full
def test_a_step_compiles_for_a_pod(tmp_path):
  page, step = tmp_path / 'out.html', tmp_path / 'step'
  ran = run(
    f'--config={GRID}',
    '--topology=v5e:2x2',
    '--config.mesh.data=2',
    '--config.mesh.context=2',
    '--json',
    f'--report={page}',
    f'--export={step}',
    *SMALL,
  )
  assert ran.returncode == 0, ran.stderr
  got = json.loads(ran.stdout)
  assert 0 < got['mfu'] < 0.2 and 0 < got['step_seconds'] < 0.1
  assert 0.01 < got['memory_gb'] < 1
  assert {'all-reduce'} <= {row['op'] for row in got['collectives']}
  assert 'longest' in page.read_text() and step.stat().st_size > 10**6


@needs_libtpu
@pytest.mark.full
@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (['--topology=v5p:3x3x3'], '"2x2x1"); write it like v5p:4x4x3'),
    (
      [
        '--topology=v6e:4x4',
        '--config.mesh.data=2',
        '--config.mesh.context=8',
      ],
      'cuts a side of the torus',
    ),
    (
      ['--topology=v5e:2x2', '--config.mesh.tensor=2'],
      'tensor=2 does not divide the 3 of state',
    ),
    (
      [
        '--topology=v5e:2x2',
        '--config.mesh.data=4',
        '--config.data.text_length=60000',
      ],
      'does not fit: ',
    ),
  ],
)
def test_what_a_pod_refuses(arguments, said):
  ran = run(f'--config={GRID}', '--nocycles', *SMALL, *arguments)
  assert ran.returncode == 1
  assert ran.stderr.count('error: ') == 1
  assert said in ran.stderr.splitlines()[-1]
