"""Layouts of Mochi's checkpoints without torch: sizes, both ways, mistakes."""

import re

from flax import linen as nn
import jax
import numpy as np
import pytest

from mirage_jax import config, dit, mochi_vae_weights, mochi_weights
from mirage_jax.encoders import names, names_diff
from mirage_jax.vae import Vae, VaeConfig

# Mochi 1 itself: nothing here makes an array of it.
MOCHI = config.MirageConfig(
  depth=48,
  num_heads=24,
  head_dim=128,
  video=config.StreamConfig(3072, 8192),
  text=config.StreamConfig(1536, 4096, 4096, rope=False),
)
TOY = config.MirageConfig(
  depth=2,
  num_heads=2,
  head_dim=4,
  video=config.StreamConfig(8, 12),
  text=config.StreamConfig(6, 10, 16, rope=False),
  latent_channels=3,
)
# Mochi's numbers of blocks with few channels.
VAE = VaeConfig(2, 2, norm_groups=2, head_dim=2)
LAYOUTS = [mochi_weights.diffusers, mochi_weights.genmo]


def abstract(cfg):
  like, size = jax.ShapeDtypeStruct, cfg.patch_size
  video = like((1, 1, size, size, cfg.latent_channels), np.float32)
  cond = {'text': like((1, 2, cfg.text.in_dim), np.float32)}
  init, sigma = dit.Mirage(cfg).init, like((1,), np.float32)
  return nn.unbox(
    jax.eval_shape(init, jax.random.key(0), video, sigma, cond)['params']
  )


def abstract_vae(cfg):
  x = jax.ShapeDtypeStruct((1, 7, 8, 8, 3), np.float32)
  key = jax.random.key(0)
  return jax.eval_shape(Vae(cfg).init, key, x, key)['params']


def draw(ours):
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), ours)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_mochi_has_ten_billion_parameters(layout):
  shapes = names.their_shapes(layout(MOCHI), abstract(MOCHI))
  count = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
  assert count == 10_027_677_744  # as diffusers counts
  assert shapes['pos_frequencies'] == (3, 24, 64)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_both_layouts_go_both_ways(layout):
  ours = abstract(TOY)
  params, layout = draw(ours), layout(TOY)
  again = names.load(layout, ours, names.save(layout, params))
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_the_right_layout_is_chosen():
  layouts = [make(TOY) for make in LAYOUTS]
  for layout in layouts:
    file = names.save(layout, draw(abstract(TOY)))
    assert names.choose(layouts, file) is layout


def test_pairs_of_channels_move_together():
  """Channel 2 p + 1 of a query's head is ours at D / 2 + p; values stay."""
  layout, ours = mochi_weights.genmo(TOY), abstract(TOY)
  file = names.save(layout, draw(ours))
  qkv = file['blocks.0.attn.qkv_x.weight'].reshape(3, 2, 4, 8)
  got = names.load(layout, ours, file)['blocks']['video']['qkv']['kernel'][0]
  np.testing.assert_array_equal(got[:, 1, 1, 2 + 0], qkv[1, 1, 2 * 0 + 1])
  np.testing.assert_array_equal(got[:, 2, 1, 3], qkv[2, 1, 3])


def test_another_depth_or_model_is_told():
  layout, ours = mochi_weights.genmo(TOY), abstract(TOY)
  file = names.save(layout, draw(ours))
  other = {k.replace('blocks.1.', 'blocks.2.'): v for k, v in file.items()}
  with pytest.raises(names_diff.NamesError, match='extra') as error:
    names.load(layout, ours, other)
  assert 'blocks.2.mod_x.weight' in str(error.value)
  wan = {f'blocks.{i}.self_attn.q.weight': np.zeros((8, 8)) for i in range(2)}
  with pytest.raises(names_diff.NamesError, match='0 of .* tensors fit'):
    names.load(layout, ours, wan)


def genmo_to_diffusers(name, half):
  """Renames as diffusers' conversion script does, for Mochi's own size."""
  inner = {'stack.0': 'norm1.norm_layer', 'stack.2': 'conv1.conv'}
  inner |= {'stack.3': 'norm2.norm_layer', 'stack.5': 'conv2.conv'}
  for old, new in inner.items():
    name = name.replace(old, new)
  rules = {
    'encoder': [
      (r'^layers\.0\.', r'proj_in.'),
      (r'^layers\.([4-6])\.layers\.0\.', r'down_blocks.\1-4.conv_in.conv.'),
      (r'^layers\.([4-6])\.layers\.(\d)\.', r'down_blocks.\1-4.resnets.\2-1.'),
      (r'^layers\.([1-3])\.', r'block_in.resnets.\1-1.'),
      (r'^layers\.([7-9])\.', r'block_out.resnets.\1-7.'),
      (r'^output_norm', 'norm_out.norm_layer'),
      (r'resnets\.([-\d]+)\.attn_block\.norm\.', r'norms.\1.norm_layer.'),
      (r'resnets\.([-\d]+)\.attn_block\.attn\.out', r'attentions.\1.to_out.0'),
      (r'resnets\.([-\d]+)\.attn_block\.attn\.', r'attentions.\1.'),
    ],
    'decoder': [
      (r'^blocks\.0\.0\.', r'conv_in.'),
      (r'^blocks\.0\.([1-3])\.', r'block_in.resnets.\1-1.'),
      (r'^blocks\.4\.', r'block_out.resnets.'),
      (r'^blocks\.(\d)\.blocks\.', r'up_blocks.\1-1.resnets.'),
      (r'^blocks\.(\d)\.proj', r'up_blocks.\1-1.proj'),
    ],
  }
  for old, new in [*rules[half], (r'^output_proj', 'proj_out')]:
    name = re.sub(old, new, name)
  minus = lambda m: str(int(m[1]) - int(m[2]))
  return f'{half}.' + re.sub(r'(\d)-(\d)', minus, name)


def test_the_vaes_layouts_hold_the_same_numbers():
  ours = abstract_vae(VAE)
  params = draw(ours)
  whole = mochi_vae_weights.diffusers(VAE)
  want = names.save(whole, params)
  jax.tree.map(
    np.testing.assert_array_equal, names.load(whole, ours, want), params
  )
  for half in ('encoder', 'decoder'):
    layout, part = mochi_vae_weights.genmo(VAE, half), {half: params[half]}
    file = names.save(layout, part)
    again = names.load(layout, part, file)
    jax.tree.map(np.testing.assert_array_equal, again, part)
    for name, tensor in file.items():
      theirs = genmo_to_diffusers(name, half)
      if theirs.endswith('.qkv.weight'):
        for x, rows in zip('qkv', np.split(tensor, 3), strict=True):
          key = theirs.replace('.qkv.', f'.to_{x}.')
          np.testing.assert_array_equal(rows, want.pop(key))
      else:
        np.testing.assert_array_equal(tensor, want.pop(theirs))
  assert not want


def test_mochis_vae_has_460_million_parameters():
  """362 million of them in the decoder; as diffusers counts."""
  ours = abstract_vae(VaeConfig())
  shapes = names.their_shapes(mochi_vae_weights.diffusers(VaeConfig()), ours)
  assert shapes['encoder.proj_in.weight'] == (64, 15)
  sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
  assert sum(sizes.values()) == 459_748_611
  decoder = [n for name, n in sizes.items() if name.startswith('decoder.')]
  assert sum(decoder) == 362_526_595
