"""A student is a small file beside its teacher's bundle, and samples by name."""

import dataclasses

import grain
import jax
import numpy as np
import pytest

from configs.mirage import grid_distil
from launch import bundle, checkpoint, talk
from launch.errors import UserError
from mirage_jax import flow, lora, train_step
from tests import tiny

CFG = lora.LoraConfig(rank=2, targets=('*',))


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  path = tmp_path_factory.mktemp('assets') / 'teacher.safetensors'
  bundle.save(path, tiny.bundle())
  return path


@pytest.fixture(scope='module')
def run(teacher, tmp_path_factory):
  """The workdir of a distillation and its changes."""
  workdir = tmp_path_factory.mktemp('distil') / 'run'
  config = tiny.plain(grid_distil.get_config())
  config |= {'model': tiny.DIT, 'data': tiny.WINDOW, 'latent_size': [2, 2]}
  config['lora'] = {'rank': 2, 'targets': ['*']}
  params = bundle.load(teacher).dit
  changes = tiny.filled(lora.init(jax.random.key(0), CFG, params), 5)
  tx = train_step.optimizer(train_step.OptimizerConfig(1e-3), 10)
  state = lora.LoraState(**vars(train_step.new_state(changes, tx)), base=params)
  data = iter(grain.MapDataset.range(9).to_iter_dataset())
  checkpoint.claim_workdir(workdir, config)
  with checkpoint.Checkpoints(workdir) as checkpoints:
    checkpoints.save(3, state, data)
  return workdir, jax.tree.map(lambda x: np.float32(np.float16(x)), changes)


@pytest.fixture(scope='module')
def student(run, teacher):
  """The file of --base, made by the binary."""
  from tests.launch.binary import Binary

  out = teacher.with_name('fast.safetensors')
  flags = [f'--workdir={run[0]}', f'--base={teacher}', f'--out={out}']
  assert Binary('export')(*flags) == 0
  return out


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_it_is_the_teacher_with_changes_and_its_own_steps(
  run, teacher, student, monkeypatch
):
  assert student.stat().st_size < 0.5 * teacher.stat().st_size
  made, base = bundle.load(student), bundle.load(teacher)
  assert_same(made.dit, lora.merge(base.dit, run[1], CFG))
  assert_same(made.vae, base.vae)
  sigmas = made.config['sigmas']
  np.testing.assert_allclose(sigmas, flow.linear_quadratic(8)[[0, 5, 6, 7, 8]])
  assert made.config == base.config | {'sigmas': sigmas}
  monkeypatch.setitem(bundle.NAMES, 'fast', student)
  assert talk.load_generator('fast').own_steps == 4


def test_whole_it_is_a_bundle_of_its_own(binary, run, teacher, tmp_path):
  out = tmp_path / 'whole.safetensors'
  flags = [f'--workdir={run[0]}', f'--vae={teacher}', f'--out={out}']
  assert binary('export')(*flags) == 0
  made = bundle.load(out)
  want = lora.merge(bundle.load(teacher).dit, run[1], CFG)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), made.dit, want
  )
  assert len(made.config['sigmas']) == 5
  # And so it samples without export.
  straight = talk.load_generator(run[0], teacher)
  assert straight.own_steps == 4 and straight.usual.steps == 4


def test_another_decoder_does_no_harm_another_transformer_does(
  teacher, student, tmp_path
):
  here, base = (tmp_path / path.name for path in (student, teacher))
  here.write_bytes(student.read_bytes())
  made = bundle.load(teacher)
  vae = jax.tree.map(lambda x: 2 * x, made.vae)
  bundle.save(base, dataclasses.replace(made, vae=vae))
  assert_same(bundle.load(here).dit, bundle.load(student).dit)
  bundle.save(base, dataclasses.replace(made, dit=tiny.dit_params(7)))
  with pytest.raises(UserError, match='another transformer than that of .*tea'):
    bundle.load(here)
  base.unlink()
  with pytest.raises(UserError, match='teacher.safetensors: no such checkpoi'):
    bundle.load(here)


def test_mistakes_are_one_line(binary, run, teacher, tmp_path, one_error):
  other = tmp_path / 'other.safetensors'
  made = bundle.load(teacher)
  bundle.save(other, dataclasses.replace(made, dit=tiny.dit_params(7)))
  plain = tmp_path / 'plain'
  plain.mkdir()
  (plain / 'config.json').write_text('{}')
  for workdir, base, said in (
    (run[0], other, 'other.safetensors: is not what'),
    (plain, teacher, 'trained all parameters, not changes (no lora)'),
    (run[0], teacher, 'are looked for beside their base; write them into'),
  ):
    flags = [f'--workdir={workdir}', f'--base={base}']
    assert binary('export')(*flags, f'--out={tmp_path}/o.safetensors') == 1
    assert said in one_error()


def test_the_shipped_student_belongs_to_the_shipped_teacher():
  made = bundle.load('fast')
  np.testing.assert_allclose(
    made.config['sigmas'], flow.linear_quadratic(8)[[0, 5, 6, 7, 8]]
  )
  assert bundle.FAST.stat().st_size < 3e6
