"""Whatever is wrong with an input takes one line, and leaves nothing behind."""

import dataclasses
import json

from flax import linen as nn
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from launch import convert_encoders, convert_hub, convert_mochi
from launch.convert_source import SafetensorsSource, read_tensor
from mirage_jax.encoders import (
  names,
  t5,
  t5_names,
  wav2vec2,
  wav2vec2_names,
  whisper,
  whisper_names,
)
from tests.launch import convert_toys as toys

STEM = 'diffusion_pytorch_model'


@pytest.fixture(scope='module')
def tensors():
  return toys.mochi_tensors()


@pytest.fixture
def refused(binary, tmp_path, one_error, capsys):
  """Runs a conversion that must fail; its line, and what stood above it."""

  def run(source, kind='mochi', *more):
    out = tmp_path / 'out'
    code = binary('convert')(
      f'--from={kind}', f'--input={source}', f'--out={out}', *more
    )
    assert code == 1
    assert not out.exists() and not list(tmp_path.glob('.out*'))
    return one_error()

  return run


@pytest.fixture
def folder(tensors, tmp_path):
  return toys.write_shards(tmp_path / 'mochi', tensors)


@pytest.mark.parametrize('keep', [0.0, 1e-4, 0.01, 0.5, 0.9999])
def test_a_shard_cut_short(folder, refused, keep):
  shard = folder / f'{STEM}-00002-of-00003.safetensors'
  data = shard.read_bytes()
  shard.write_bytes(data[: int(keep * len(data))])
  said = refused(folder)
  assert f'{shard}: is cut short' in said and 'again' in said


def test_shards_or_index_that_are_missing(folder, refused):
  shard = folder / f'{STEM}-00003-of-00003.safetensors'
  index = folder / f'{STEM}.safetensors.index.json'
  assert 'is one of several shards; give the folder' in refused(shard)
  shard.rename(shard.with_suffix('.bak'))
  said = refused(folder)
  assert '1 of 3 shards are missing' in said and shard.name in said
  text = index.read_text()
  index.write_text(text[:50])
  assert f'{index}: is no index of shards' in refused(folder)
  index.unlink()
  said = refused(folder)
  assert f'the index {STEM}.safetensors.index.json is missing' in said


def test_an_index_of_another_checkpoint(folder, refused):
  index = folder / f'{STEM}.safetensors.index.json'
  held = json.loads(index.read_text())
  held['weight_map']['more.weight'] = f'{STEM}-00001-of-00003.safetensors'
  index.write_text(json.dumps(held))
  said = refused(folder)
  assert 'lacks more.weight, which the index says it has' in said


@pytest.mark.parametrize(
  'data', [b'<!DOCTYPE html><html>Not found</html>', b'\2\0\0\0\0\0\0\0[]']
)
def test_what_is_no_safetensors_file(tmp_path, refused, data):
  (tmp_path / 'a.safetensors').write_bytes(data)
  assert 'a.safetensors: is no safetensors file' in refused(
    tmp_path / 'a.safetensors'
  )


def test_paths_with_nothing_to_read(tmp_path, refused):
  assert 'no such file or folder' in refused(tmp_path / 'none')
  (tmp_path / 'empty').mkdir()
  assert 'has no *.safetensors' in refused(tmp_path / 'empty')
  (tmp_path / 'a.ckpt').write_bytes(b'x')
  assert 'is no .safetensors file' in refused(tmp_path / 'a.ckpt')
  for name in ('a', 'b'):
    file = tmp_path / f'empty/{name}.safetensors'
    safetensors.numpy.save_file({'x': np.zeros(1)}, file)
  said = refused(tmp_path / 'empty')
  assert 'several files (a.safetensors, b.safetensors): give one' in said


@pytest.mark.parametrize('dtype', [np.int8, ml_dtypes.float8_e4m3fn])
def test_quantised_weights(tensors, tmp_path, refused, capsys, dtype):
  wrong = dict(tensors)
  name = 'transformer_blocks.0.attn1.to_q.weight'
  wrong[name] = np.ones(tensors[name].shape, dtype)
  file = tmp_path / 'a.safetensors'
  safetensors.numpy.save_file(wrong, file)
  said = refused(file)
  assert "the checkpoint is not Mochi's transformer (diffusers layout)" in said
  assert f'{len(tensors) - 1} of {len(tensors)} tensors fit' in said
  assert f'some are {np.dtype(dtype)}: give weights that are not quan' in said


def test_what_differs_is_listed_above(tensors, tmp_path, binary, capsys):
  wrong = dict(tensors, extra=np.zeros(2, np.float32))
  del wrong['proj_out.bias']
  file = tmp_path / 'a.safetensors'
  safetensors.numpy.save_file(wrong, file)
  run = binary('convert')
  assert run('--from=mochi', f'--input={file}', f'--out={tmp_path / "o"}') == 1
  lines = capsys.readouterr().err.strip().splitlines()
  assert lines[:4] == [
    'missing (1):',
    '  proj_out.bias [12]',
    'extra (1):',
    '  extra [2]',
  ]
  assert lines[4].startswith('error: ') and len(lines) == 5


# Names as the models' owners publish them; the numbers do not matter.
STRANGERS = {
  'a Wan video transformer': (
    'blocks.0.self_attn.q.weight',
    'text_embedding.0.weight',
    'patch_embedding.weight',
    'head.modulation',
  ),
  'a HunyuanVideo transformer': (
    'model.double_blocks.0.img_attn_qkv.weight',
    'model.single_blocks.0.linear1.weight',
  ),
}


@pytest.mark.parametrize('model', STRANGERS)
@pytest.mark.parametrize('kind', ['mochi', 't5'])
def test_another_video_model_is_named(model, kind, tmp_path, refused):
  file = tmp_path / 'a.safetensors'
  made = {name: np.zeros((2, 2), np.float32) for name in STRANGERS[model]}
  safetensors.numpy.save_file(made, file)
  assert f'is {model}, not what --from {kind} takes' in refused(file, kind)


def test_another_kind_of_ours_is_named(tensors, tmp_path, refused):
  file = tmp_path / 'a.safetensors'
  safetensors.numpy.save_file(tensors, file)
  for kind in ('t5', 'mochi_vae', 'hubert', 'whisper'):
    assert "is Mochi's transformer (--from mochi), " in refused(file, kind)


ENCODERS = {
  't5': t5.T5Config(8, 2, 2, 6, head_dim=4, vocab=11),
  'umt5': t5.T5Config(
    8, 3, 2, 6, head_dim=4, vocab=11, bias_in_every_block=True
  ),
  'wav2vec2': wav2vec2.Wav2Vec2Config(
    8, 2, 2, 6, conv_dim=4, position_kernel=5, position_groups=2
  ),
  'hubert': wav2vec2.Wav2Vec2Config(
    8, 2, 2, 6, True, conv_dim=4, position_kernel=4, position_groups=4
  ),
  'wavlm': wav2vec2.Wav2Vec2Config(
    8, 2, 2, 6, num_buckets=32, conv_dim=4, position_groups=2, normalize=False
  ),
  'whisper': whisper.WhisperConfig(64, 2, 1, mels=5, max_features=7),
}
MODULES = {
  't5': (t5, t5_names, convert_encoders.text_encoder),
  'umt5': (t5, t5_names, convert_encoders.text_encoder),
  'whisper': (whisper, whisper_names, convert_encoders.listener),
}
SPEECH = (wav2vec2, wav2vec2_names, convert_encoders.speech_encoder)


# The others differ little: one of each kind is enough on every run.
SLOW = ('umt5', 'wav2vec2', 'hubert')


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.full] * (name in SLOW))
    for name in ENCODERS
  ],
)
def test_sizes_of_encoders_are_read_off_their_shapes(name):
  cfg = ENCODERS[name]
  module, places, make = MODULES.get(name, SPEECH)
  layout = places.places(cfg)
  shapes = names.their_shapes(layout, nn.unbox(module.abstract_params(cfg)))
  blank = {n: np.zeros(s, np.float32) for n, s in shapes.items()}
  heads = {'num_attention_heads': 2, 'encoder_attention_heads': 1}
  kind = make(blank, heads)
  (values,) = kind.config.values()
  if module is wav2vec2:
    cfg = dataclasses.replace(cfg, conv_bias=cfg.has_conv_bias)
  assert type(cfg)(**values) == cfg
  assert names.check(kind.layout, kind.ours, blank)


def test_an_encoder_goes_through(binary, tmp_path):
  from launch import checkpoint

  cfg = ENCODERS['t5']
  layout = t5_names.places(cfg)
  params = toys.draw(nn.unbox(t5.abstract_params(cfg)))
  file = tmp_path / 'model.safetensors'
  safetensors.numpy.save_file(names.save(layout, params), file)
  out = tmp_path / 'out'
  assert binary('convert')('--from=t5', f'--input={file}', f'--out={out}') == 0
  config, got = checkpoint.restore_params(out)
  assert t5.T5Config(**config['t5']) == cfg
  np.testing.assert_array_equal(got['table'], params['table'])
  np.testing.assert_array_equal(
    got['blocks']['attn']['q']['kernel'],
    params['blocks']['attn']['q']['kernel'],
  )


def test_genmos_vae_needs_both_files(binary, tmp_path, refused):
  from launch import checkpoint

  files, params = toys.vae_halves()
  folder = tmp_path / 'vae'
  folder.mkdir()
  config = dict(
    encoder_block_out_channels=[32, 32, 32, 64],
    decoder_block_out_channels=[32, 32, 32, 64],
    layers_per_block=[1] * 5,
    add_attention_block=[False, True, True, True, True],
    temporal_expansions=[1, 2, 3],
    spatial_expansions=[2, 2, 2],
    latent_channels=2,
    in_channels=15,
    latents_mean=[0.5, 1.0],
    latents_std=[2.0, 3.0],
  )
  (folder / 'config.json').write_text(json.dumps(config))
  file = folder / 'encoder.safetensors'
  safetensors.numpy.save_file(files['encoder'], file)
  assert 'give the folder with decoder.safetensors' in refused(
    file, 'mochi_vae'
  )
  safetensors.numpy.save_file(files['decoder'], folder / 'decoder.safetensors')
  out = tmp_path / 'done'
  run = binary('convert')
  assert run('--from=mochi_vae', f'--input={folder}', f'--out={out}') == 0
  config, got = checkpoint.restore_params(out)
  assert config['stats'] == {'mean': [0.5, 1.0], 'std': [2.0, 3.0]}
  assert (
    convert_mochi.VaeConfig(
      **{
        k: tuple(v) if isinstance(v, list) else v
        for k, v in config['vae'].items()
      }
    )
    == toys.VAE
  )
  for path in (('encoder', 'proj_in'), ('decoder', 'up1', 'proj')):
    want, have = params, got
    for key in path:
      want, have = want[key], have[key]
    np.testing.assert_array_equal(have['kernel'], want['kernel'])


def test_tensors_are_those_the_formats_library_reads(tmp_path):
  made = {
    'a': np.arange(6, dtype=np.int64).reshape(2, 3),
    'b': np.ones((3, 0), np.float16),
    'c': np.array(2.5, np.float32),
    'd': np.arange(4).astype(ml_dtypes.bfloat16),
    'e': np.array([True, False]),
  }
  file = tmp_path / 'x.safetensors'
  safetensors.numpy.save_file(made, file)
  source = SafetensorsSource(file)
  for name, want in made.items():
    got = read_tensor(source.tensors[name])
    assert got.dtype == want.dtype and got.shape == want.shape
    np.testing.assert_array_equal(got, want)


def test_variants_do_not_confuse(tensors, tmp_path):
  for name in ('model', 'model.fp16'):
    file = tmp_path / f'{name}.safetensors'
    safetensors.numpy.save_file({name: np.zeros(1, np.float32)}, file)
  index = tmp_path / 'model.safetensors.index.fp32.json'
  index.write_text('{"weight_map": {"a": "model.fp32-00001-of-00002.s"}}')
  assert list(SafetensorsSource(tmp_path).tensors) == ['model']


def test_a_variant_alone_is_read(tensors, tmp_path, refused):
  """diffusers: STEM.bf16-00001-of-00003.safetensors, .index.bf16.json."""
  folder = toys.write_shards(tmp_path / 'a', tensors, stem=f'{STEM}.bf16')
  index = folder / f'{STEM}.bf16.safetensors.index.json'
  right = folder / f'{STEM}.safetensors.index.bf16.json'
  index.rename(right)
  for path in (folder, right):
    assert SafetensorsSource(path).tensors.keys() == tensors.keys()
  right.unlink()
  said = refused(folder)
  assert f'the index {STEM}.safetensors.index.bf16.json is missing' in said


@pytest.mark.parametrize(
  ('kind', 'name'),
  [('mochi', 'transformer'), ('mochi_vae', 'vae'), ('t5', 'text_encoder')],
)
def test_a_pipelines_folder_has_a_place_for_each(tmp_path, kind, name):
  (tmp_path / 'dit.safetensors').touch()
  genmo = tmp_path / ('dit.safetensors' if kind == 'mochi' else '')
  assert convert_hub.usual_place(tmp_path, kind) == genmo
  (tmp_path / name).mkdir()
  assert convert_hub.usual_place(tmp_path, kind) == tmp_path / name
  assert convert_hub.usual_place(tmp_path, 'whisper') == tmp_path


def test_a_dtype_that_nobody_here_reads(tmp_path, refused):
  header = json.dumps(
    {'x': {'dtype': 'F4', 'shape': [2], 'data_offsets': [0, 1]}}
  ).encode()
  file = tmp_path / 'a.safetensors'
  file.write_bytes(len(header).to_bytes(8, 'little') + header + b'1')
  assert 'x is of the dtype F4, which is not read here' in refused(file)


@pytest.mark.parametrize('name', ['wav2vec2', 'whisper'])
def test_heads_are_not_guessed(name, tmp_path, refused):
  cfg = ENCODERS[name]
  module, places, _ = MODULES.get(name, SPEECH)
  ours = nn.unbox(module.abstract_params(cfg))
  shapes = names.their_shapes(places.places(cfg), ours)
  blank = {n: np.zeros(s, np.float32) for n, s in shapes.items()}
  file = tmp_path / 'model.safetensors'
  safetensors.numpy.save_file(blank, file)
  assert 'put config.json, with ' in refused(file, name)
