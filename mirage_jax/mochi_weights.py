"""Where the tensors of Mochi 1's transformer go, in both published layouts.

Genmo's own file and diffusers' hold the same numbers. Against ours: kernels are
transposed; heads have an axis; the channels of queries and keys are permuted
from pairs (2 p, 2 p + 1) to (p, p + D / 2), see `rope`; diffusers has the two
halves of the gated MLP, and of the last modulation, the other way round. Our
parameters are those of a `dit.Mirage` without audio.
"""

from collections.abc import Mapping
import dataclasses

from mirage_jax.config import MirageConfig
from mirage_jax.encoders.names import Index, Place, Places

ALL = slice(None)
_PAIRS = '(h p two) c -> c h (two p)'
_HEADS = '(h d) c -> c h d'


@dataclasses.dataclass(frozen=True)
class _Layout:
  """Names inside a block.

  Attributes:
    streams: Of each of our streams: mod, last_mod (in the last block), qkv
      (with {x} for q, k or v, or without if one tensor holds all three), norm
      (with {x} for q or k), out, up (both halves of the MLP's input), down.
    block: Begin of all of them.
    gate_first: Whether the first half of `up` passes through SiLU.
  """

  streams: Mapping[str, Mapping[str, str]]
  block: str
  gate_first: bool


_DIFFUSERS = _Layout(
  block='transformer_blocks',
  gate_first=False,
  streams={
    'video': dict(
      mod='norm1.linear',
      last_mod='norm1.linear',
      qkv='attn1.to_{x}',
      norm='attn1.norm_{x}',
      out='attn1.to_out.0',
      up='ff.net.0.proj',
      down='ff.net.2',
    ),
    'text': dict(
      mod='norm1_context.linear',
      last_mod='norm1_context.linear_1',
      qkv='attn1.add_{x}_proj',
      norm='attn1.norm_added_{x}',
      out='attn1.to_add_out',
      up='ff_context.net.0.proj',
      down='ff_context.net.2',
    ),
  },
)
_GENMO = _Layout(
  block='blocks',
  gate_first=True,
  streams={
    stream: dict(
      mod=f'mod_{s}',
      last_mod=f'mod_{s}',
      qkv=f'attn.qkv_{s}',
      norm=f'attn.{{x}}_norm_{s}',
      out=f'attn.proj_{s}',
      up=f'mlp_{s}.w1',
      down=f'mlp_{s}.w2',
    )
    for stream, s in (('video', 'x'), ('text', 'y'))
  },
)
# Outside the blocks: ours to diffusers' and Genmo's.
_NAMES = {
  'video_in': ('patch_embed.proj', 'x_embedder.proj'),
  'sigma/up': ('time_embed.timestep_embedder.linear_1', 't_embedder.mlp.0'),
  'sigma/out': ('time_embed.timestep_embedder.linear_2', 't_embedder.mlp.2'),
  'pool/q': ('time_embed.pooler.to_q', 't5_y_embedder.to_q'),
  'pool/kv': ('time_embed.pooler.to_kv', 't5_y_embedder.to_kv'),
  'pool/out': ('time_embed.pooler.to_out', 't5_y_embedder.to_out'),
  'text_in': ('time_embed.caption_proj', 't5_yproj'),
  'final_modulation': ('norm_out.linear', 'final_layer.mod'),
  'out': ('proj_out', 'final_layer.linear'),
}


def diffusers(cfg: MirageConfig) -> Places:
  """The layout of diffusers' MochiTransformer3DModel."""
  return _places(cfg, _DIFFUSERS, 0)


def genmo(cfg: MirageConfig) -> Places:
  """The layout of Genmo's dit.safetensors, also as ComfyUI prefixes it."""
  return _places(cfg, _GENMO, 1)


def _places(cfg, layout, column):
  if cfg.text is None:
    raise ValueError("Mochi has a text stream: give the model's config one.")
  found = _outside(cfg, column, swapped=not layout.gate_first)
  for i in range(cfg.depth):
    for stream in ('video', 'text'):
      found += _stream(cfg, layout, i, stream)
  return Places(
    f"Mochi's transformer ({('diffusers', 'Genmo')[column]} layout) of depth "
    f'{cfg.depth} and widths {cfg.video.width} and {cfg.text.width}',
    tuple(found),
    prefixes=('model.diffusion_model.',),
  )


def _outside(cfg, column, swapped):
  pool, patch = {'h': cfg.text_pool_heads}, cfg.patch_size
  kernels = dict.fromkeys(_NAMES, ('o i -> i o', {}))
  kernels['video_in'] = ('o i h w -> (h w i) o', {'h': patch, 'w': patch})
  kernels['pool/q'] = (_HEADS, pool)
  kernels['pool/kv'] = ('(two h d) c -> c two h d', pool | {'two': 2})
  kernels['pool/out'] = ('c (h d) -> h d c', pool)
  biases = dict.fromkeys(_NAMES, ('... -> ...', {}))
  biases['pool/q'] = ('(h d) -> h d', pool)
  biases['pool/kv'] = ('(two h d) -> two h d', pool | {'two': 2})
  found = [Place('pos_frequencies', 'video_frequencies')]
  for path, names in _NAMES.items():
    halves = [((0, 1), ALL)]
    if path == 'final_modulation' and swapped:
      width = cfg.video.width
      halves = [((0, 2), slice(width, None)), ((1, 2), slice(width))]
    for kind, index, table in (
      ('kernel', (ALL,), kernels),
      ('bias', (), biases),
    ):
      name = names[column] + ('.weight' if kind == 'kernel' else '.bias')
      pattern, sizes = table[path]
      for part, half in halves:
        place = Place(name, f'{path}/{kind}', pattern, part=part, sizes=sizes)
        if half != ALL:
          place = dataclasses.replace(place, index=(*index, half))
        found.append(place)
  return found


def _stream(cfg, layout, i, stream):
  """One stream's tensors of block i."""
  last = i == cfg.depth - 1
  updates = stream == 'video' or not last
  names = layout.streams[stream]
  width, heads = getattr(cfg, stream).width, {'h': cfg.num_heads}
  pair = {'two': 2}
  found = []

  def put(name, path, pattern='... -> ...', index=(), part=(0, 1), sizes=None):
    name = f'{layout.block}.{i}.{name}'
    path = f'{"last" if last else "blocks"}/{stream}/{path}'
    lead: Index = () if last else (i,)
    sizes = sizes or {}
    found.append(Place(name, path, pattern, (*lead, *index), part, sizes))

  def dead(name, shape, part=(0, 1)):
    name = f'{layout.block}.{i}.{name}'
    found.append(Place(name, None, part=part, shape=shape))

  def linear(name, path, pattern='o i -> i o', sizes=None):
    put(f'{name}.weight', f'{path}/kernel', pattern, sizes=sizes)
    put(f'{name}.bias', f'{path}/bias')

  linear(names['last_mod' if last else 'mod'], 'modulation/linear')
  kinds = 'qkv' if updates else 'kv'
  for j, x in enumerate('qkv'):
    one = '{x}' not in names['qkv']
    name, part = names['qkv'].format(x=x) + '.weight', (j, 3) if one else (0, 1)
    if x not in kinds:
      # No token of the last block's text asks: its queries have no reader.
      dead(name, (cfg.num_heads * cfg.head_dim, width), part)
      continue
    index = (ALL, kinds.index(x))
    if x == 'v':
      put(name, 'qkv/kernel', _HEADS, index, part, heads)
    else:
      put(name, 'qkv/kernel', _PAIRS, index, part, heads | pair)
  for x in 'qk':
    name = names['norm'].format(x=x) + '.weight'
    if x in kinds:
      put(name, f'{x}_norm/scale', '(p two) -> (two p)', sizes=pair)
    else:
      dead(name, (cfg.head_dim,))
  if updates:
    linear(names['out'], 'out', 'c (h d) -> h d c', heads)
    for j in range(2):
      index = (ALL, j if layout.gate_first else 1 - j)
      name = names['up'] + '.weight'
      put(name, 'mlp/up/kernel', 'o i -> i o', index, (j, 2))
    put(names['down'] + '.weight', 'mlp/down/kernel', 'o i -> i o')
  return found
