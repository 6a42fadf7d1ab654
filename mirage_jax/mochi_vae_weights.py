"""Where the tensors of Mochi 1's VAE go, in both published layouts.

diffusers' AutoencoderKLMochi is one checkpoint. Genmo has a file for the
encoder and one for the decoder, whose names overlap: each has its own layout,
and fills one half of our parameters.
"""

from typing import Literal

from mirage_jax.encoders.names import Place, Places
from mirage_jax.vae import VaeConfig

_CONV = 'o i t h w -> t h w i o'
# Inside a residual block: ours to diffusers' and Genmo's.
_BLOCK = {
  'norm1': ('norm1.norm_layer', 'stack.0'),
  'conv1': ('conv1.conv', 'stack.2'),
  'norm2': ('norm2.norm_layer', 'stack.3'),
  'conv2': ('conv2.conv', 'stack.5'),
}
Half = Literal['encoder', 'decoder']


def diffusers(cfg: VaeConfig) -> Places:
  """The layout of diffusers' AutoencoderKLMochi; fills encoder and decoder."""
  found = _encoder(cfg, False, 'encoder.')
  found += _decoder(cfg, False, 'decoder.')
  return Places(_what(cfg, 'VAE', 'diffusers'), tuple(found))


def genmo(cfg: VaeConfig, half: Half) -> Places:
  """The layout of Genmo's encoder.safetensors or decoder.safetensors.

  Args:
    cfg: The VAE.
    half: Which file; fills only {half: ...} of our parameters.
  """
  make = {'encoder': _encoder, 'decoder': _decoder}[half]
  found = make(cfg, True, '')
  return Places(_what(cfg, f"VAE's {half}", 'Genmo'), tuple(found))


def _what(cfg, part, layout):
  return (
    f"Mochi's {part} ({layout} layout) of {cfg.encoder_channels} and "
    f'{cfg.decoder_channels} channels'
  )


def _norm(name, path):
  weight = Place(f'{name}.weight', f'{path}/scale')
  return [weight, Place(f'{name}.bias', f'{path}/bias')]


def _linear(name, path, pattern='o i -> i o', **sizes):
  weight = Place(f'{name}.weight', f'{path}/kernel', pattern, sizes=sizes)
  return [weight, Place(f'{name}.bias', f'{path}/bias')]


def _blocks(cfg, half, level, is_genmo, at, first=0):
  """The residual blocks of one level.

  Args:
    cfg: The VAE.
    half: 'encoder' or 'decoder'.
    level: Ours.
    is_genmo: The layout.
    at: Begin of their names, up to what numbers the blocks.
    first: Genmo's number of the first block.
  """
  found = []
  count = getattr(cfg, f'{half}_blocks')[level]
  widths = (*cfg.multipliers, cfg.multipliers[-1])
  width = widths[level] * cfg.encoder_channels
  for i in range(count):
    path = f'{half}/level{level}_block{i}'
    block = f'{at}{first + i}' if is_genmo else f'{at}resnets.{i}'
    for x, names in _BLOCK.items():
      name = f'{block}.{names[is_genmo]}'
      if 'norm' in x:
        found += _norm(name, f'{path}/{x}')
      else:
        found += _linear(name, f'{path}/{x}', _CONV)
    if half == 'decoder' or not cfg.encoder_attention[level]:
      continue
    found += _attention(path, block if is_genmo else None, at, i, width)
  return found


def _attention(path, genmo_block, at, i, width):
  """Attention over time; q, k and v are one tensor of Genmo's."""
  if genmo_block is not None:
    attn = f'{genmo_block}.attn_block'
    name = f'{attn}.attn.qkv.weight'
    found = [Place(name, f'{path}/attn/qkv/kernel', 'o i -> i o')]
    found += _norm(f'{attn}.norm', f'{path}/attn_norm')
    return found + _linear(f'{attn}.attn.out', f'{path}/attn/out')
  attn = f'{at}attentions.{i}'
  found = []
  for j, x in enumerate('qkv'):
    index = (slice(None), slice(j * width, (j + 1) * width))
    name = f'{attn}.to_{x}.weight'
    found.append(Place(name, f'{path}/attn/qkv/kernel', 'o i -> i o', index))
  found += _norm(f'{at}norms.{i}.norm_layer', f'{path}/attn_norm')
  return found + _linear(f'{attn}.to_out.0', f'{path}/attn/out')


def _encoder(cfg, is_genmo, start):
  tops = len(cfg.multipliers)
  first = cfg.encoder_blocks[0]
  name = 'layers.0' if is_genmo else f'{start}proj_in'
  found = _linear(name, 'encoder/proj_in')
  at = 'layers.' if is_genmo else f'{start}block_in.'
  found += _blocks(cfg, 'encoder', 0, is_genmo, at, 1)
  factors = zip(cfg.time_factors, cfg.space_factors, strict=True)
  for level, (time, space) in enumerate(factors, 1):
    at = f'layers.{first + level}.layers.'
    conv = f'{at}0'
    if not is_genmo:
      at = f'{start}down_blocks.{level - 1}.'
      conv = f'{at}conv_in.conv'
    found += _linear(
      conv,
      f'encoder/down{level}/proj',
      'o i t h w -> (t h w i) o',
      t=time,
      h=space,
      w=space,
    )
    found += _blocks(cfg, 'encoder', level, is_genmo, at, 1)
  at = 'layers.' if is_genmo else f'{start}block_out.'
  found += _blocks(cfg, 'encoder', tops, is_genmo, at, first + tops)
  name = 'output_norm' if is_genmo else f'{start}norm_out.norm_layer'
  found += _norm(name, 'encoder/norm_out')
  name = 'output_proj' if is_genmo else f'{start}proj_out'
  path = 'encoder/proj_out/kernel'
  return found + [Place(f'{name}.weight', path, 'o i -> i o')]


def _decoder(cfg, is_genmo, start):
  tops = len(cfg.multipliers)
  name = 'blocks.0.0' if is_genmo else f'{start}conv_in'
  found = _linear(name, 'decoder/proj_in', 'o i 1 1 1 -> i o')
  at = 'blocks.0.' if is_genmo else f'{start}block_in.'
  found += _blocks(cfg, 'decoder', tops, is_genmo, at, 1)
  for j, level in enumerate(range(tops - 1, 0, -1)):
    block = f'blocks.{j + 1}' if is_genmo else f'{start}up_blocks.{j}'
    at = f'{block}.blocks.' if is_genmo else f'{block}.'
    found += _blocks(cfg, 'decoder', level, is_genmo, at)
    found += _linear(f'{block}.proj', f'decoder/up{level}/proj')
  at = f'blocks.{tops}.' if is_genmo else f'{start}block_out.'
  found += _blocks(cfg, 'decoder', 0, is_genmo, at)
  name = 'output_proj' if is_genmo else f'{start}proj_out'
  return found + _linear(name, 'decoder/proj_out')
