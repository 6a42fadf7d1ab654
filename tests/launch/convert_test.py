"""Conversions are exact, continue after a kill, and are whole or not there."""

import dataclasses
import hashlib
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc

from flax import traverse_util
import jax
from jax.sharding import NamedSharding, PartitionSpec
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from launch import checkpoint, convert_job, convert_mochi, convert_sink
from mirage_jax import mochi_weights
from mirage_jax.encoders import names
from tests.launch import convert_toys as toys

ROOT = pathlib.Path(__file__).parents[2]


def flat(tree):
  return traverse_util.flatten_dict(tree, sep='/')


def content(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(folder.rglob('*'))
    if p.is_file()
  }


@pytest.fixture(scope='module')
def tensors():
  return toys.mochi_tensors()


@pytest.fixture(scope='module')
def mochi(tensors, tmp_path_factory):
  return toys.write_shards(tmp_path_factory.mktemp('hub') / 'mochi', tensors)


@pytest.fixture(scope='module')
def params(tensors):
  """What must come out, by another path: all in memory."""
  layout = mochi_weights.diffusers(toys.MOCHI)
  ours = convert_mochi.abstract_dit(toys.MOCHI)
  return names.load(layout, ours, tensors)


@pytest.fixture
def convert(binary):
  run = binary('convert')
  return lambda kind, source, out, *more: run(
    f'--from={kind}', f'--input={source}', f'--out={out}', *more
  )


def assert_params(got, want):
  got, want = flat(got), flat(want)
  assert got.keys() == want.keys()
  for name in want:
    values = np.asarray(got[name], np.float32)
    np.testing.assert_array_equal(values, want[name], err_msg=name)


def test_a_run_can_start_from_it(convert, mochi, params, tmp_path, capsys):
  out = tmp_path / 'a/weights'
  assert convert('mochi', mochi, out) == 0
  assert 'ready' in capsys.readouterr().out
  config, got = checkpoint.restore_params(out)
  assert_params(got, params)
  kernel = got['blocks']['video']['qkv']['kernel']
  assert kernel.dtype == ml_dtypes.bfloat16  # As in the file.
  assert config['experiment'] == 'mirage_jax.experiment'
  built = toys.config.build(toys.config.MirageConfig, config['model'])
  assert built == toys.MOCHI
  assert [p.name for p in out.parent.iterdir()] == ['weights']


def test_orbax_restores_it_sharded(convert, mochi, params, tmp_path):
  convert('mochi', mochi, tmp_path / 'out')
  mesh = jax.make_mesh(
    (8,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,)
  )

  def like(x):
    axis = next((i for i, n in enumerate(x.shape) if n % 8 == 0), None)
    spec = PartitionSpec(
      *('fsdp' if i == axis else None for i in range(x.ndim))
    )
    return jax.ShapeDtypeStruct(
      x.shape, np.float32, sharding=NamedSharding(mesh, spec)
    )

  target = {'ema': jax.tree.map(like, params)}
  path = tmp_path / 'out/checkpoints/0/state'
  with ocp.StandardCheckpointer() as checkpointer:
    got = checkpointer.restore(path, target)['ema']
  assert_params(got, params)
  kernel = got['blocks']['video']['qkv']['kernel']
  assert kernel.dtype == np.float32 and len(kernel.sharding.device_set) == 8
  assert kernel.addressable_shards[0].data.size == kernel.size // 8


def test_large_arrays_are_cut_as_meshes_cut_them(monkeypatch):
  spec = convert_sink.Spec((47, 3072, 2, 8192), np.dtype(np.float32), True)
  assert convert_sink.chunks(spec) == [1, 768, 2, 1024]
  whole = convert_sink.Spec((32128, 4096), np.dtype(np.float32))
  assert np.prod(convert_sink.chunks(whole)) * 4 <= convert_sink.CHUNK
  assert convert_sink.chunks(convert_sink.Spec((), np.dtype('f4'))) == []
  odd = convert_sink.Spec((3**17,), np.dtype(np.float32))
  assert np.prod(convert_sink.chunks(odd)) * 4 <= convert_sink.CHUNK


def test_safetensors_hold_the_same(convert, mochi, params, tmp_path):
  out = tmp_path / 'out'
  few = ['--to=safetensors', '--shard_gb=0.00002', '--dtype=float32']
  convert('mochi', mochi, out, *few)
  files = sorted(p.name for p in out.glob('*.safetensors'))
  assert len(files) > 2 and files[0] == f'model-00001-of-{len(files):05}' + (
    '.safetensors'
  )
  held = toys.read_folder(out)
  assert_params(
    {k.removeprefix('ema/'): v for k, v in held.items()}, flat(params)
  )
  index = json.loads((out / 'model.safetensors.index.json').read_text())
  assert index['weight_map'].keys() == held.keys()
  manifest = json.loads((out / 'manifest.json').read_text())['tensors']
  for name, array in held.items():
    sums = manifest[name]['sha256']
    if isinstance(sums, str):
      sums, array = [sums], [array]
    want = [hashlib.sha256(np.ascontiguousarray(x)).hexdigest() for x in array]
    assert sums == want


def test_genmos_file_gives_the_same(convert, tmp_path):
  theirs = toys.mochi_tensors(genmo=True, dtype=np.float32)
  prefixed = {f'model.diffusion_model.{k}': v for k, v in theirs.items()}
  safetensors.numpy.save_file(prefixed, tmp_path / 'dit.safetensors')
  convert('mochi', tmp_path / 'dit.safetensors', tmp_path / 'out')
  layout = mochi_weights.genmo(toys.MOCHI)
  want = names.load(layout, convert_mochi.abstract_dit(toys.MOCHI), theirs)
  assert_params(checkpoint.restore_params(tmp_path / 'out')[1], want)


@pytest.mark.parametrize('target', ['orbax', 'safetensors'])
def test_a_stopped_conversion_goes_on(
  convert, mochi, tmp_path, monkeypatch, target
):
  convert('mochi', mochi, tmp_path / 'whole', f'--to={target}')
  calls = []
  put = {
    'orbax': convert_sink.OrbaxSink,
    'safetensors': convert_sink.SafetensorsSink,
  }[target]
  real = put.put

  def dying(self, name, lead, values):
    real(self, name, lead, values)
    calls.append((name, lead))
    if len(calls) == 20:  # Written, but not yet put down.
      raise KeyboardInterrupt

  monkeypatch.setattr(put, 'put', dying)
  with pytest.raises(KeyboardInterrupt):
    convert('mochi', mochi, tmp_path / 'out', f'--to={target}')
  assert not (tmp_path / 'out').exists()
  journal = tmp_path / '.out.part/journal.jsonl'
  with open(journal, 'a') as f:
    f.write('["ema/out/ker')  # A kill may cut a line.
  convert('mochi', mochi, tmp_path / 'out', f'--to={target}')
  assert calls[19] == calls[20] and len(set(calls)) == len(calls) - 1
  got, want = content(tmp_path / 'out'), content(tmp_path / 'whole')
  # Orbax puts down the time and the place.
  frame = ('_CHECKPOINT_METADATA', 'commit_success.txt')
  got, want = (
    {name: data for name, data in files.items() if not name.endswith(frame)}
    for files in (got, want)
  )
  assert got == want
  assert not journal.parent.exists()


@pytest.mark.full
def test_a_killed_process_leaves_what_goes_on(mochi, tmp_path):
  out = tmp_path / 'out'
  command = [sys.executable, '-m', 'launch.convert', '--from=mochi']
  command += [f'--input={mochi}', f'--out={out}']
  journal = tmp_path / '.out.part/journal.jsonl'
  process = subprocess.Popen(command, cwd=ROOT)
  try:
    while not (journal.exists() and journal.stat().st_size > 500):
      assert process.poll() is None
      time.sleep(0.001)
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert not out.exists()
  subprocess.run(command, cwd=ROOT, check=True)
  _, got = checkpoint.restore_params(out)
  assert len(flat(got)) > 20


def test_again_does_nothing_and_others_are_refused(
  convert, mochi, tmp_path, capsys, one_error
):
  out = tmp_path / 'out'
  convert('mochi', mochi, out)
  before = content(out)
  convert('mochi', mochi, out)
  assert 'was ready; nothing to do' in capsys.readouterr().out
  assert convert('mochi', mochi, out, '--dtype=float32') == 1
  assert 'is of another conversion (dtype differs)' in one_error()
  assert content(out) == before
  (tmp_path / 'mine').mkdir()
  assert convert('mochi', mochi, tmp_path / 'mine') == 1
  assert 'exists and is no finished conversion' in one_error()


def test_what_is_written_is_read_back(convert, mochi, tmp_path, one_error):
  out = tmp_path / 'out'
  real = convert_sink.SafetensorsSink.put

  def flipping(self, name, lead, values):
    if name == 'ema/out/kernel':
      values = values + values.dtype.type(1)
    real(self, name, lead, values)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(convert_sink.SafetensorsSink, 'put', flipping)
    assert convert('mochi', mochi, out, '--to=safetensors') == 1
  assert 'ema/out/kernel reads back other than it was written' in one_error()
  assert not out.exists()


@pytest.mark.parametrize('target', ['orbax', 'safetensors'])
def test_it_can_be_verified_later(
  convert, binary, mochi, tmp_path, target, capsys, one_error
):
  out = tmp_path / 'out'
  convert('mochi', mochi, out, f'--to={target}')
  assert binary('convert')(f'--verify={out}') == 0
  assert 'are as they were written' in capsys.readouterr().out
  tensors = (
    *out.glob('*.safetensors'),
    *out.rglob('ema.blocks.video.qkv.kernel/[0-9]*'),
  )
  largest = tensors[0]
  data = bytearray(largest.read_bytes())
  data[-1] ^= 1
  largest.write_bytes(data)
  assert binary('convert')(f'--verify={out}') == 1
  assert 'reads back other than' in one_error()
  largest.unlink()
  if target == 'orbax':
    (largest.parent / '.zarray').unlink()
  assert binary('convert')(f'--verify={out}') == 1
  assert f'{out}: ' in one_error()
  for text in ('{', '[]', '{"tensors": {}}', '{"tensors": {"a": 1}, "to": ""}'):
    (out / 'manifest.json').write_text(text)
    assert binary('convert')(f'--verify={out}') == 1
    assert 'is none of launch.convert, or damaged' in one_error()
  (out / 'manifest.json').unlink()
  assert binary('convert')(f'--verify={out}') == 1
  assert 'it is not finished' in one_error()


@pytest.mark.parametrize('target', ['orbax', 'safetensors'])
def test_a_full_disk_takes_one_line(
  convert, mochi, params, tmp_path, target, one_error
):
  out = tmp_path / 'out'
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  # Python ignores SIGXFSZ: past the limit, a write fails as on a full disk.
  resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
  try:
    assert convert('mochi', mochi, out, f'--to={target}') == 1
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert 'the disk is full; the conversion is not finished' in one_error()
  assert not out.exists()
  assert convert('mochi', mochi, out, f'--to={target}') == 0
  if target == 'orbax':
    assert_params(checkpoint.restore_params(out)[1], params)


def test_too_little_room_is_said_at_once(
  convert, mochi, tmp_path, monkeypatch, one_error
):
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(convert_job.shutil, 'disk_usage', lambda path: usage)
  assert convert('mochi', mochi, tmp_path / 'out') == 1
  assert 'the disk has 0.0 GB free' in one_error()
  assert not (tmp_path / 'out').exists()


@pytest.mark.full
def test_memory_holds_a_few_tensors_only(convert, tmp_path):
  deep = dataclasses.replace(
    toys.MOCHI,
    depth=30,
    video=toys.config.StreamConfig(24, 4800),
    text=toys.config.StreamConfig(12, 32, 16, rope=False),
  )
  ours = convert_mochi.abstract_dit(deep)
  shapes = names.their_shapes(mochi_weights.diffusers(deep), ours)
  blank = {n: np.zeros(s, np.float32) for n, s in shapes.items()}
  toys.write_shards(tmp_path / 'in', blank)
  total = sum(x.nbytes for x in blank.values())
  largest = max(x.nbytes for x in blank.values())
  del blank
  assert total > 30 * largest
  # What the first conversion loads of the code is not of the second's making.
  convert('mochi', tmp_path / 'in', tmp_path / 'first', '--to=safetensors')
  tracemalloc.start()
  try:
    convert('mochi', tmp_path / 'in', tmp_path / 'out', '--to=safetensors')
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  # The code's own objects take some, too.
  assert peak < 6 * largest + (5 << 20) < total


def test_a_runs_average_comes_out(convert, params, tmp_path, one_error):
  run = tmp_path / 'run'
  state = {
    'step': np.int32(7),
    'params': jax.tree.map(np.zeros_like, params),
    'ema': params,
  }
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(run / 'checkpoints/7/state', state)
  about = json.dumps({'model': dataclasses.asdict(toys.MOCHI), 'seed': 0})
  (run / 'config.json').write_text(about)
  assert (run / 'checkpoints/7/state/manifest.ocdbt').exists()
  out = tmp_path / 'out'
  assert convert('mirage', run, out, '--to=safetensors') == 0
  held = toys.read_folder(out)
  assert_params({k.removeprefix('ema/'): v for k, v in held.items()}, params)
  assert json.loads((out / 'config.json').read_text()) == json.loads(about)
  # And from there to Orbax, and to diffusers.
  assert convert('mirage', out, tmp_path / 'orbax', '--to=orbax') == 0
  assert_params(checkpoint.restore_params(tmp_path / 'orbax')[1], params)
  assert convert('mirage', out, tmp_path / 'theirs', '--to=diffusers') == 0
  theirs = toys.read_folder(tmp_path / 'theirs')
  layout = mochi_weights.diffusers(toys.MOCHI)
  for name, tensor in names.save(layout, params).items():
    np.testing.assert_array_equal(theirs[name], tensor)
  (tmp_path / 'none').mkdir()
  assert convert('mirage', tmp_path / 'none', tmp_path / 'x') == 1
  assert 'is no --workdir of a run and no folder' in one_error()


def test_large_arrays_move_in_parts(convert, params, tmp_path, monkeypatch):
  monkeypatch.setattr('launch.convert_ours.SLAB', 500)
  first, second = tmp_path / 'a', tmp_path / 'b'
  source = toys.write_shards(tmp_path / 'in', toys.mochi_tensors())
  convert('mochi', source, first, '--to=safetensors')
  convert('mirage', first, second, '--to=orbax', '--dtype=float32')
  assert_params(checkpoint.restore_params(second)[1], params)
  manifest = json.loads((second / 'manifest.json').read_text())['tensors']
  assert len(manifest['ema/pool/kv/kernel']['sha256']) == 16
  # diffusers gets all in the dtype of the weights, dead tensors too.
  convert('mirage', first, tmp_path / 'c', '--to=diffusers')
  theirs = toys.read_folder(tmp_path / 'c')
  assert {str(x.dtype) for x in theirs.values()} == {'bfloat16'}


def test_flags_that_make_no_conversion(convert, binary, mochi, one_error):
  assert binary('convert')('--from=mochi') == 1
  assert '--out and --input needed' in one_error()
  assert convert('mochi', mochi, 'x', '--to=diffusers') == 1
  assert '--from mochi --to diffusers is no conversion' in one_error()
  assert not os.path.exists('x')
