"""Mochi's modules one by one: ours beside diffusers', on the same inputs.

Rows are (their name, ours, theirs), arrays of one shape. Theirs are read off by
hooks while the whole model runs.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from mirage_jax import block, dit, rope, tokens
from mirage_jax.vae import Vae
from tests.mirage_jax.foreign_toys import FAST, Toy

Row = tuple[str, np.ndarray, np.ndarray]
# Ours to theirs, outside the blocks of the transformer, and inside.
OUTSIDE = {
  'sigma': 'time_embed.timestep_embedder',
  'pool': 'time_embed.pooler',
  'text_in': 'time_embed.caption_proj',
  'out': 'proj_out',
}
INSIDE = {'video/mlp': 'ff', 'text/mlp': 'ff_context'}


def watch(
  model: Any, names: Iterable[str], run: Callable[[], Any]
) -> dict[str, Any]:
  """What modules of a torch model give while `run` runs, by name."""
  seen, modules = {}, dict(model.named_modules())

  def keep(name):
    return lambda module, args, out: seen.__setitem__(name, out)

  hooks = [modules[n].register_forward_hook(keep(n)) for n in names]
  run()
  for hook in hooks:
    hook.remove()
  return seen


def drop_repeats(decoder: Any) -> None:
  """Has diffusers' decoder drop repeated frames where Genmo's code does.

  It keeps them up to its end, so that convolutions see them.
  """
  for up in decoder.up_blocks:
    first = up.temporal_expansion - 1
    up.register_forward_hook(
      lambda _, args, out, first=first: (out[0][:, :, first:], out[1])
    )


def captured(run: Callable[..., Any], *args: Any) -> dict[str, np.ndarray]:
  """What our modules give inside `run(*args, **options)`, by path."""
  kept = dict(capture_intermediates=True, mutable=['intermediates'])
  apply = jax.jit(lambda *args: run(*args, **kept), compiler_options=FAST)
  found = {}
  for path, value in jax.tree.leaves_with_path(
    apply(*args)[1]['intermediates']
  ):
    names = [entry.key for entry in path if hasattr(entry, 'key')]
    name = '/'.join(n for n in names if n != '__call__')
    found.setdefault(name, np.asarray(value, np.float32))
  return found


def hidden_rows(
  toy: Toy, weights: Any, theirs: Sequence[np.ndarray]
) -> Iterator[Row]:
  """Of an encoder of text or speech: its hidden states."""
  run = functools.partial(toy.run, toy.cfg, hidden=True)
  _, hidden = jax.jit(run, compiler_options=FAST)(weights, toy.inputs)
  for i, (got, want) in enumerate(zip(hidden, theirs, strict=False)):
    yield f'hidden state {i}', np.asarray(got), want


def vae_rows(
  toy: Toy, weights: Any, theirs: Any, half: str, run: Callable[[], Any]
) -> Iterator[Row]:
  """Of an AutoencoderKLMochi of the same weights.

  Args:
    toy: As of `foreign_toys.vae`.
    weights: Our parameters.
    theirs: Their model.
    half: 'encoder' or 'decoder'.
    run: Runs theirs on the toy's input.
  """
  method = {'encoder': 'encode', 'decoder': 'decode'}[half]
  ours = captured(
    lambda weights, x, **kept: Vae(toy.cfg).apply(
      {'params': weights}, x, method=method, **kept
    ),
    weights,
    toy.inputs['x'],
  )
  pairs = dict(vae_names(toy.cfg, half))
  seen = watch(theirs, pairs.values(), run)
  for path, name in pairs.items():
    got, want = ours[f'{half}/{path}'], seen[name]
    want = (want[0] if isinstance(want, tuple) else want).numpy()
    if path.endswith('/attn'):  # Rows and columns are in their batch.
      b, f, y, x, _ = got.shape
      want = want.reshape(b, y, x, f, -1).transpose(0, 3, 1, 2, 4)
    elif not name.endswith(('proj_in', 'proj_out')):
      want = np.moveaxis(want, 1, -1)
    yield name, got, want


def vae_names(cfg: Any, half: str) -> Iterator[tuple[str, str]]:
  """(our path, their name) of each module."""
  top, is_encoder = len(cfg.multipliers), half == 'encoder'
  yield 'proj_in', f'{half}.{"proj_in" if is_encoder else "conv_in"}'
  for level in range(top + 1):
    ends = {0: 'block_in', top: 'block_out'}
    between = f'down_blocks.{level - 1}'
    if not is_encoder:
      ends = {top: 'block_in', 0: 'block_out'}
      between = f'up_blocks.{top - 1 - level}'
    at = f'{half}.{ends.get(level, between)}'
    if 0 < level < top:
      down, up = (f'down{level}', f'{at}.conv_in'), (f'up{level}', at)
      yield down if is_encoder else up
    for i in range(getattr(cfg, f'{half}_blocks')[level]):
      ours = f'level{level}_block{i}'
      for inner in ('norm1', 'conv1', 'norm2', 'conv2'):
        yield f'{ours}/{inner}', f'{at}.resnets.{i}.{inner}'
      if is_encoder and cfg.encoder_attention[level]:
        yield f'{ours}/attn_norm', f'{at}.norms.{i}'
        yield f'{ours}/attn', f'{at}.attentions.{i}'
  if is_encoder:
    yield 'norm_out', 'encoder.norm_out'
  yield 'proj_out', f'{half}.proj_out'


def mochi_rows(
  toy: Toy, weights: Any, theirs: Any, run: Callable[[], Any]
) -> Iterator[Row]:
  """Of a MochiTransformer3DModel; each of our blocks gets what theirs got."""
  blocks = [f'transformer_blocks.{i}' for i in range(toy.cfg.depth)]
  names = [*OUTSIDE.values(), 'patch_embed', 'rope', 'time_embed', *blocks]
  for at in blocks:
    names += [f'{at}.attn1', f'{at}.ff']
  names += [f'{at}.ff_context' for at in blocks[:-1]]
  seen = watch(theirs, names, run)
  # Frames are in the batch of theirs.
  patches = seen['patch_embed'].numpy().reshape(3, -1, toy.cfg.video.width)
  ours = captured(
    lambda weights, x, **kept: dit.Mirage(toy.cfg).apply(
      {'params': weights},
      x['video'],
      x['sigma'],
      {name: x[name] for name in ('text', 'text_mask')},
      **kept,
    ),
    weights,
    toy.inputs,
  )
  yield 'patch_embed', ours['video_in'], patches
  for path, name in OUTSIDE.items():
    yield name, ours[path], seen[name].numpy()
  tables = rotary(toy, weights)
  ours = np.split(np.swapaxes(tables.turns, 1, 2), 2, axis=-1)
  for part, got, want in zip(('cos', 'sin'), ours, seen['rope'], strict=True):
    yield f'rope, {part}', np.asarray(got).reshape(want.shape), want.numpy()
  streams = patches, seen['time_embed'][1].numpy()
  vector = nn.silu(seen['time_embed'][0].numpy())[:, None]
  for i, at in enumerate(blocks):
    yield from block_rows(toy, weights, i, streams, vector, tables, seen)
    streams = tuple(x.numpy() for x in seen[at])


def rotary(toy: Toy, weights: Any) -> rope.Tables:
  """The rotary tables of the video."""
  shape, size = toy.inputs['video'].shape, toy.cfg.patch_size
  times = np.arange(shape[1], dtype=np.float32)[None]
  rows, columns = (n // size for n in shape[2:4])
  area = toy.cfg.rope_area
  positions = rope.grid_positions(times, rows, columns, area)
  return rope.rotary_tables(weights['video_frequencies'], positions)


def block_rows(
  toy: Toy,
  weights: Any,
  i: int,
  streams: tuple[np.ndarray, np.ndarray],
  vector: jax.Array,
  tables: rope.Tables,
  seen: dict[str, Any],
) -> Iterator[Row]:
  """The outputs of block i, of its attention and of its MLPs."""
  last, at = i == toy.cfg.depth - 1, f'transformer_blocks.{i}'
  mask = toy.inputs['text_mask']
  lengths = (streams[0].shape[1],)
  context = block.Context(
    cond={'video': vector, 'text': vector},
    tables={'video': tables},
    mask=tokens.key_mask([(lengths[0], None), (5, mask)], len(mask)),
  )
  own = jax.tree.map(
    lambda x: x if last else x[i], weights['last' if last else 'blocks']
  )
  make = block.Block(toy.cfg, lengths, last=last)
  run = lambda own, streams, **kept: make.apply(
    {'params': own}, streams, context, **kept
  )
  ours = captured(run, own, dict(zip(('video', 'text'), streams, strict=True)))
  attended = seen[f'{at}.attn1']
  for j, name in enumerate(('video', 'text')[: 1 if last else 2]):
    # Theirs has nothing to ask with tokens that do not exist.
    there = mask[..., None] if name == 'text' else True
    mlp = f'{at}.{INSIDE[f"{name}/mlp"]}'
    for what, got, want in (
      (f'{at}.attn1, {name}', ours[f'{name}/out'], attended[j]),
      (mlp, ours[f'{name}/mlp'], seen[mlp]),
      (f'{at}, {name}', ours[name], seen[at][j]),
    ):
      yield what, got * there, want.numpy() * there
