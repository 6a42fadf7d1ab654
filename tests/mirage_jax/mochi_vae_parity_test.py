"""Our VAE is Mochi's: the same numbers as diffusers' AutoencoderKLMochi.

diffusers keeps the repeated first frames up to the decoder's end, where Genmo's
own code, and ours, drops them at each level; so the decoder is compared without
expansion in time, where both agree. The encoder is compared whole.
"""

import jax
import numpy as np
import pytest

from mirage_jax.vae import Vae, VaeConfig

torch = pytest.importorskip('torch', reason='needs the convert extra')
mochi = pytest.importorskip(
  'diffusers.models.autoencoders.autoencoder_kl_mochi',
  reason='needs the convert extra',
)


def linear(m):
  out = {'kernel': m.weight.detach().numpy().T}
  if m.bias is not None:
    out['bias'] = m.bias.detach().numpy()
  return out


def conv(m):
  conv = m.conv
  return {
    'kernel': conv.weight.detach().numpy().transpose(2, 3, 4, 1, 0),
    'bias': conv.bias.detach().numpy(),
  }


def norm(m):
  inner = m.norm_layer
  return {
    'scale': inner.weight.detach().numpy(),
    'bias': inner.bias.detach().numpy(),
  }


def blocks(module, level):
  out = {}
  for i, res in enumerate(module.resnets):
    tree = {k: norm(getattr(res, k)) for k in ('norm1', 'norm2')}
    tree |= {k: conv(getattr(res, k)) for k in ('conv1', 'conv2')}
    attentions = getattr(module, 'attentions', [None] * (i + 1))
    if attentions[i] is not None:
      attn = attentions[i]
      parts = [linear(m)['kernel'] for m in (attn.to_q, attn.to_k, attn.to_v)]
      tree['attn_norm'] = norm(module.norms[i])
      tree['attn'] = {
        'qkv': {'kernel': np.concatenate(parts, 1)},
        'out': linear(attn.to_out[0]),
      }
    out[f'level{level}_block{i}'] = tree
  return out


def down(m):
  kernel = m.conv_in.conv.weight.detach().numpy().transpose(2, 3, 4, 1, 0)
  return {
    'proj': {
      'kernel': kernel.reshape(-1, kernel.shape[-1]),
      'bias': m.conv_in.conv.bias.detach().numpy(),
    }
  }


def encoder_params(m):
  out = {'proj_in': linear(m.proj_in), 'proj_out': linear(m.proj_out)}
  out |= {'norm_out': norm(m.norm_out)} | blocks(m.block_in, 0)
  for level, block in enumerate(m.down_blocks, 1):
    out[f'down{level}'] = down(block)
    out |= blocks(block, level)
  return out | blocks(m.block_out, len(m.down_blocks) + 1)


def decoder_params(m):
  kernel = m.conv_in.weight.detach().numpy()[:, :, 0, 0, 0].T
  bias = m.conv_in.bias.detach().numpy()
  top = len(m.up_blocks)
  out = {'proj_in': {'kernel': kernel, 'bias': bias}}
  out |= {'proj_out': linear(m.proj_out)} | blocks(m.block_in, top + 1)
  for i, block in enumerate(m.up_blocks):
    out |= blocks(block, top - i)
    out[f'up{top - i}'] = {'proj': linear(block.proj)}
  return out | blocks(m.block_out, 0)


def spread(module, seed):
  """Random weights that make every parameter matter."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for p in module.parameters():
      noise = torch.randn(p.shape, generator=generator)
      p.add_(0.2 * noise / max(p[0].numel(), 1) ** 0.5)
  return module.eval()


def config(**kw):
  return VaeConfig(
    encoder_channels=32,
    decoder_channels=32,
    multipliers=(1, 2, 2, 3),
    encoder_blocks=(1, 1, 0, 1, 1),
    decoder_blocks=(1, 1, 0, 1, 1),
    latent_channels=4,
    **kw,
  )


def relative(got, want):
  return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize('frames', [1, 7, 13])
def test_encoder(frames):
  cfg = config()
  widths = tuple(m * cfg.encoder_channels for m in cfg.multipliers)
  theirs = spread(
    mochi.MochiEncoder3D(
      15, 4, widths, cfg.encoder_blocks, cfg.time_factors, cfg.space_factors
    ),
    0,
  )
  x = np.random.default_rng(0).uniform(-1, 1, (2, frames, 16, 24, 3))
  x = x.astype(np.float32)
  with torch.no_grad():
    want = theirs(torch.from_numpy(x).permute(0, 4, 1, 2, 3))[0]
  want = want.permute(0, 2, 3, 4, 1).numpy()
  params = {'encoder': encoder_params(theirs)}
  got = Vae(cfg).apply({'params': params}, x, method='encode')
  got = np.concatenate([np.asarray(z) for z in got], -1)
  assert relative(got, want) < 1e-5


def test_decoder():
  cfg = config(time_factors=(1, 1, 1))
  widths = tuple(m * cfg.decoder_channels for m in cfg.multipliers)
  theirs = spread(
    mochi.MochiDecoder3D(
      4, 3, widths, cfg.decoder_blocks, cfg.time_factors, cfg.space_factors
    ),
    1,
  )
  z = np.random.default_rng(1).normal(size=(2, 4, 2, 3, 4)).astype(np.float32)
  with torch.no_grad():
    want = theirs(torch.from_numpy(z).permute(0, 4, 1, 2, 3))[0]
  want = want.permute(0, 2, 3, 4, 1).numpy()
  params = {'decoder': decoder_params(theirs)}
  got = Vae(cfg).apply({'params': params}, z, method='decode')
  assert relative(np.asarray(got), want) < 1e-5


def test_parameters_match_the_module():
  """The mapping above leaves no parameter of ours unset."""
  cfg = config()
  widths = tuple(m * cfg.encoder_channels for m in cfg.multipliers)
  theirs = mochi.MochiEncoder3D(
    15, 4, widths, cfg.encoder_blocks, cfg.time_factors, cfg.space_factors
  )
  x = jax.ShapeDtypeStruct((1, 7, 16, 16, 3), np.float32)
  key = jax.random.key(0)
  ours = jax.eval_shape(Vae(cfg).init, key, x, key)['params']['encoder']
  shapes = jax.tree.map(lambda a: a.shape, encoder_params(theirs))
  assert shapes == jax.tree.map(lambda a: a.shape, ours)
