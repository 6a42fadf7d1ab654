"""Conversions of what diffusers, transformers and torch save, and back."""

import json

import numpy as np
import pytest

from launch import checkpoint, convert_mochi, convert_strangers
from tests.launch import convert_toys as toys

REASON = 'parity with the original needs the `convert` extra'
torch = pytest.importorskip('torch', reason=REASON)
diffusers = pytest.importorskip('diffusers', reason=REASON)
transformers = pytest.importorskip('transformers', reason=REASON)

from flax import linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from infomax_jax import (  # noqa: E402
  config as amdim_config,
  encoder,
  heads,
  torch_weights,
)

# torch 2.13 warns of what diffusers and transformers do on import and saving.
pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture
def convert(binary):
  run = binary('convert')
  return lambda kind, to, source, out: run(
    f'--from={kind}', f'--to={to}', f'--input={source}', f'--out={out}'
  )


def spread(model):
  """No zeros or ones left: every parameter must matter."""
  torch.manual_seed(0)
  for p in model.parameters():
    torch.nn.init.normal_(p, 0.1, 0.2)
  return model.eval()


def make_mochi():
  cfg = toys.MOCHI
  return spread(
    diffusers.MochiTransformer3DModel(
      num_attention_heads=cfg.num_heads,
      attention_head_dim=cfg.head_dim,
      num_layers=cfg.depth,
      pooled_projection_dim=cfg.text.width,
      in_channels=cfg.latent_channels,
      text_embed_dim=cfg.text.in_dim,
    )
  )


def make_vae():
  cfg = toys.VAE
  widths = [m * cfg.encoder_channels for m in cfg.multipliers]
  return spread(
    diffusers.AutoencoderKLMochi(
      in_channels=15,
      encoder_block_out_channels=widths,
      decoder_block_out_channels=widths,
      latent_channels=cfg.latent_channels,
      layers_per_block=cfg.encoder_blocks,
      add_attention_block=cfg.encoder_attention,
      latents_mean=[0.5, 1.5],
      latents_std=[2.0, 3.0],
    )
  )


@pytest.mark.parametrize('make', [make_mochi, make_vae])
def test_diffusers_loads_again_what_it_saved(convert, make, tmp_path):
  model = make()
  model.save_pretrained(tmp_path / 'in', max_shard_size='100KB')
  assert len(list((tmp_path / 'in').glob('*.safetensors'))) > 1
  kind = 'mochi' if make is make_mochi else 'mochi_vae'
  assert convert(kind, 'orbax', tmp_path / 'in', tmp_path / 'ours') == 0
  source = tmp_path / 'ours'
  assert convert('mirage', 'safetensors', source, tmp_path / 'st') == 0
  for name in ('ours', 'st'):
    out = tmp_path / f'{name}_back'
    assert convert('mirage', 'diffusers', tmp_path / name, out) == 0
    again = type(model).from_pretrained(out)
    for key in ('latents_mean', 'latents_std', 'num_layers'):
      if key in model.config:
        assert list(np.atleast_1d(again.config[key])) == list(
          np.atleast_1d(model.config[key])
        )
    want, got = model.state_dict(), again.state_dict()
    assert want.keys() == got.keys()
    for key, tensor in want.items():
      if 'transformer_blocks.2.attn1.' in key and 'add_q' in key:
        continue  # Nothing reads the last block's text queries.
      if key.endswith('transformer_blocks.2.attn1.norm_added_q.weight'):
        continue
      torch.testing.assert_close(got[key], tensor, rtol=0, atol=0)


def test_mochis_part_of_a_talking_model(convert, tmp_path, capsys):
  import dataclasses

  import safetensors.numpy

  cfg = dataclasses.replace(
    toys.MOCHI, audio=toys.config.StreamConfig(8, 16, 4)
  )
  params = toys.draw(convert_mochi.abstract_dit(cfg))
  from flax import traverse_util

  flat = traverse_util.flatten_dict(params, sep='/')
  folder = tmp_path / 'mirage'
  folder.mkdir()
  safetensors.numpy.save_file(
    {f'ema/{k}': v for k, v in flat.items()}, folder / 'model.safetensors'
  )
  about = {'model': dataclasses.asdict(cfg)}
  (folder / 'config.json').write_text(json.dumps(about))
  (folder / 'manifest.json').write_text('{}')
  assert convert('mirage', 'diffusers', folder, tmp_path / 'out') == 0
  assert 'arrays are left out' in capsys.readouterr().err
  model = diffusers.MochiTransformer3DModel.from_pretrained(tmp_path / 'out')
  got = model.state_dict()['pos_frequencies'].numpy()
  np.testing.assert_array_equal(got, params['video_frequencies'])
  about['model']['prediction'] = 'data'
  (folder / 'config.json').write_text(json.dumps(about))
  assert convert('mirage', 'diffusers', folder, tmp_path / 'x') == 1
  assert 'no model whose prediction is as in this' in capsys.readouterr().err


def tiny_strangers():
  """Small ones of the models that look like Mochi's checkpoint."""
  yield (
    'a Wan video',
    diffusers.WanTransformer3DModel(
      num_attention_heads=2,
      attention_head_dim=12,
      text_dim=8,
      freq_dim=8,
      ffn_dim=8,
      num_layers=1,
    ),
  )
  yield (
    'a HunyuanVideo transformer',
    diffusers.HunyuanVideoTransformer3DModel(
      num_attention_heads=2,
      attention_head_dim=16,
      num_layers=1,
      num_single_layers=1,
      num_refiner_layers=1,
      text_embed_dim=8,
      pooled_projection_dim=8,
      rope_axes_dim=(4, 6, 6),
    ),
  )
  yield (
    'an LTX',
    diffusers.LTXVideoTransformer3DModel(
      num_attention_heads=2,
      attention_head_dim=8,
      num_layers=1,
      cross_attention_dim=16,
      caption_channels=8,
    ),
  )
  yield (
    'a CogVideoX',
    diffusers.CogVideoXTransformer3DModel(
      num_attention_heads=2,
      attention_head_dim=16,
      num_layers=1,
      text_embed_dim=8,
      time_embed_dim=8,
    ),
  )
  yield (
    'a FLUX',
    diffusers.FluxTransformer2DModel(
      num_attention_heads=2,
      attention_head_dim=16,
      num_layers=1,
      num_single_layers=1,
      joint_attention_dim=8,
      pooled_projection_dim=8,
      axes_dims_rope=(4, 6, 6),
    ),
  )


def tiny_vaes():
  """Autoencoders, and Mochi's own two models."""
  yield (
    'a Wan VAE',
    diffusers.AutoencoderKLWan(base_dim=4, z_dim=2, num_res_blocks=1),
  )
  yield (
    'a HunyuanVideo VAE',
    diffusers.AutoencoderKLHunyuanVideo(
      block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    ),
  )
  yield "Mochi's transformer", make_mochi()
  yield "Mochi's VAE", make_vae()


def test_other_video_models_are_known_by_name():
  for name, model in (*tiny_strangers(), *tiny_vaes()):
    found = convert_strangers.models(model.state_dict())
    assert len(found) == 1 and found[0].startswith(name), (name, found)


def test_hunyuan_s_own_file_is_known(convert, tmp_path, one_error):
  names = 'double_blocks.0.img_attn_qkv.weight', 'single_blocks.0.linear1.bias'
  file = tmp_path / 'mp_rank_00_model_states.pt'
  torch.save({'module': {name: torch.zeros(2) for name in names}}, file)
  assert convert('mochi', 'orbax', file, tmp_path / 'out') == 1
  assert 'is a HunyuanVideo transformer, not what' in one_error()


def test_an_encoder_of_transformers(convert, tmp_path, one_error):
  config = transformers.T5Config(
    vocab_size=20,
    d_model=8,
    d_kv=4,
    d_ff=12,
    num_layers=2,
    num_heads=2,
    feed_forward_proj='gated-gelu',
  )
  model = spread(transformers.T5EncoderModel(config)).to(torch.bfloat16)
  model.save_pretrained(tmp_path / 'in')
  state, old = model.state_dict(), tmp_path / 'old'
  old.mkdir()
  torch.save(state, tmp_path / 'pytorch_model.bin')
  shards = [f'pytorch_model-0000{i + 1}-of-00002.bin' for i in range(2)]
  where = {name: shards[i % 2] for i, name in enumerate(state)}
  for shard in shards:
    part = {n: x.clone() for n, x in state.items() if where[n] == shard}
    torch.save(part, old / shard)
  index = old / 'pytorch_model.bin.index.json'
  assert convert('t5', 'orbax', old, tmp_path / 'out') == 1
  assert f'the index {index.name} is missing' in one_error()
  index.write_text(json.dumps({'weight_map': where}))
  for source in ('in', 'pytorch_model.bin', 'old'):
    out = tmp_path / f'{source}_out'
    assert convert('t5', 'orbax', tmp_path / source, out) == 0
    about, params = checkpoint.restore_params(out)
    assert about['t5']['width'] == 8 and about['t5']['depth'] == 2
    want = model.shared.weight.detach().float().numpy()
    np.testing.assert_array_equal(params['table'].astype(np.float32), want)


@pytest.fixture(scope='module')
def amdim():
  """A checkpoint as the authors' code saves it."""
  cfg = amdim_config.EncoderConfig(32, 2, 8, 2)
  heads_cfg = amdim_config.HeadsConfig(3, hidden=4)
  key = jax.random.key(0)
  shapes = (
    jax.eval_shape(encoder.Encoder(cfg).init, key, jnp.zeros((1, 32, 32, 3))),
    jax.eval_shape(heads.Heads(heads_cfg).init, key, jnp.zeros((1, 8))),
  )
  made = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), nn.unbox(shapes))
  state = torch_weights.to_torch(
    torch_weights.Weights(*made, {}), cfg, heads_cfg
  )
  rng = np.random.default_rng(0)
  model = {
    name: torch.from_numpy(
      rng.integers(0, 9, x.shape).astype(x.dtype)
      if x.dtype.kind in 'iu'
      else rng.standard_normal(x.shape).astype(x.dtype)
    )
    for name, x in state.items()
  }
  given = dict(ndf=2, n_classes=3, n_rkhs=8, tclip=20.0, n_depth=2)
  return {
    'model': model,
    'hyperparams': given | {'encoder_size': 32, 'use_bn': False},
    'cursor': dict(info_epoch=7, info_step=8)
    | dict(classifier_epoch=9, classifier_step=1),
  }


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('target', ['orbax', 'safetensors'])
def test_amdim_comes_back_to_the_bit(convert, amdim, tmp_path, target, zipped):
  file = tmp_path / 'amdim_cpt.pth'
  # The authors' torch was older than the zipped format.
  torch.save(amdim, file, _use_new_zipfile_serialization=zipped)
  assert convert('amdim', target, file, tmp_path / 'ours') == 0
  back = tmp_path / 'back.pth'
  assert convert('amdim', 'pth', tmp_path / 'ours', back) == 0
  got = torch.load(back, weights_only=True)
  assert got['hyperparams'] == amdim['hyperparams']
  assert got['cursor'] == amdim['cursor']
  assert list(got['model']) == list(amdim['model'])
  for name, tensor in amdim['model'].items():
    assert got['model'][name].dtype == tensor.dtype
    assert torch.equal(got['model'][name], tensor), name


class Evil:
  def __reduce__(self):
    return print, ('code ran',)


def test_wrong_torch_files_take_one_line(
  convert, amdim, tmp_path, one_error, capsys
):
  file = tmp_path / 'a.pth'
  torch.save({'model': Evil()}, file)
  assert convert('amdim', 'orbax', file, tmp_path / 'out') == 1
  assert 'holds code, which is not run' in one_error()
  torch.save(amdim, file)
  data = file.read_bytes()
  for keep in (0, 10, len(data) // 2):
    file.write_bytes(data[:keep])
    assert convert('amdim', 'orbax', file, tmp_path / 'out') == 1
    assert 'a.pth: ' in one_error()
  torch.save({'model': {'x': torch.zeros(2)}}, file)
  assert convert('amdim', 'orbax', file, tmp_path / 'out') == 1
  assert "is no checkpoint of AMDIM's authors" in one_error()
  torch.save([1], file)
  assert convert('amdim', 'orbax', file, tmp_path / 'out') == 1
  assert "is no checkpoint of AMDIM's authors" in one_error()
  assert not (tmp_path / 'out').exists()
