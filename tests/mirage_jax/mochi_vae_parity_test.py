"""Our VAE is Mochi's: the same numbers as diffusers' AutoencoderKLMochi.

diffusers keeps the repeated first frames up to the decoder's end, as ours does
with `keep_repeats`; Genmo's own code, and ours by default, drops them at each level:
that is compared in `errors_parity_test`, which has diffusers drop them, too.
"""

import dataclasses

import jax
import numpy as np
import pytest

from mirage_jax import mochi_vae_weights, tiles
from mirage_jax.encoders import names
from mirage_jax.vae import Vae
from tests.mirage_jax import foreign_toys as toys

torch = pytest.importorskip('torch', reason='needs the convert extra')
mochi = pytest.importorskip(
  'diffusers.models.autoencoders.autoencoder_kl_mochi',
  reason='needs the convert extra',
)


def spread(module, seed):
  """Random weights that make every parameter matter."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for p in module.parameters():
      noise = torch.randn(p.shape, generator=generator)
      p.add_(0.2 * noise / max(p[0].numel(), 1) ** 0.5)
  return module.eval()


def relative(got, want):
  return np.abs(got - want).max() / np.abs(want).max()


def make_theirs(cfg, seed):
  """diffusers' VAE and our parameters of it."""
  widths = lambda channels: tuple(m * channels for m in cfg.multipliers)
  theirs = mochi.AutoencoderKLMochi(
    in_channels=15,
    encoder_block_out_channels=widths(cfg.encoder_channels),
    decoder_block_out_channels=widths(cfg.decoder_channels),
    latent_channels=cfg.latent_channels,
    layers_per_block=cfg.encoder_blocks,
    temporal_expansions=cfg.time_factors,
    spatial_expansions=cfg.space_factors,
    add_attention_block=cfg.encoder_attention,
  )
  spread(theirs, seed)
  tensors = {k: v.numpy() for k, v in theirs.state_dict().items()}
  layout = mochi_vae_weights.diffusers(cfg)
  return theirs, names.load(layout, abstract_params(cfg), tensors)


def abstract_params(cfg):
  x = jax.ShapeDtypeStruct((1, 7, 16, 16, 3), np.float32)
  key = jax.random.key(0)
  return jax.eval_shape(Vae(cfg).init, key, x, key)['params']


@pytest.mark.parametrize('frames', [1, 7, 13])
def test_encoder(frames):
  cfg = toys.VAE
  theirs, params = make_theirs(cfg, 0)
  x = np.random.default_rng(0).uniform(-1, 1, (2, frames, 16, 24, 3))
  x = x.astype(np.float32)
  with torch.no_grad():
    want = theirs.encoder(torch.from_numpy(x).permute(0, 4, 1, 2, 3))[0]
  want = want.permute(0, 2, 3, 4, 1).numpy()
  got = Vae(cfg).apply({'params': params}, x, method='encode')
  got = np.concatenate([np.asarray(z) for z in got], -1)
  assert relative(got, want) < 1e-5


@pytest.mark.parametrize('cfg', [toys.FLAT_VAE, toys.VAE])
def test_decoder(cfg):
  cfg = dataclasses.replace(cfg, keep_repeats=True)
  theirs, params = make_theirs(cfg, 1)
  z = np.random.default_rng(1).normal(size=(2, 4, 2, 3, 4)).astype(np.float32)
  with torch.no_grad():
    want = theirs.decoder(torch.from_numpy(z).permute(0, 4, 1, 2, 3))[0]
  want = want.permute(0, 2, 3, 4, 1).numpy()
  got = Vae(cfg).apply({'params': params}, z, method='decode')
  # diffusers leaves the dropping of what its decoder repeats to its caller.
  repeated = want.shape[1] - got.shape[1]
  assert repeated == (cfg.time_factor - 1 if cfg.time_factor > 1 else 0)
  assert relative(np.asarray(got), want[:, repeated:]) < 1e-5


def test_diffusers_takes_our_weights_back():
  cfg = toys.VAE
  theirs, params = make_theirs(cfg, 2)
  saved = names.save(mochi_vae_weights.diffusers(cfg), params)
  for name, tensor in theirs.state_dict().items():
    np.testing.assert_array_equal(saved.pop(name), tensor.numpy())
  assert not saved


def test_tiles_are_those_of_diffusers():
  """Six tiles, some cut by the edge; their middle is the untiled one's."""
  cfg, tiling = toys.FLAT_VAE, tiles.Tiling(24, 16)
  theirs, params = make_theirs(cfg, 3)
  theirs.enable_tiling(24, 24, 16, 16)
  rng = np.random.default_rng(3)
  z = rng.standard_normal((1, 2, 4, 5, 4), np.float32)
  with torch.no_grad():
    want = theirs.decode(torch.from_numpy(z).permute(0, 4, 1, 2, 3))[0]
    moments = theirs._encode(want)[:, :4]
  got = tiles.decode(Vae(cfg), params, z, tiling)
  want = want.permute(0, 2, 3, 4, 1).numpy()
  assert relative(got, want) < 1e-5
  got = tiles.encode(Vae(cfg), params, want, tiling)
  assert relative(got, moments.permute(0, 2, 3, 4, 1).numpy()) < 1e-5
  # One tile that covers all is no tile.
  whole = tiles.decode(Vae(cfg), params, z, tiles.Tiling(40, 40))
  plain = Vae(cfg).apply({'params': params}, z, method='decode')
  assert relative(whole, np.asarray(plain)) < 1e-5
