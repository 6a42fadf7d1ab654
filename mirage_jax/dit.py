"""Mirage: one transformer over reference, video, text and audio tokens.

Joint self-attention of all streams ("Seeing Voices", arXiv 2506.08279), built
of Mochi 1's blocks. It predicts the velocity from noise towards data.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from mirage_jax import block, config, embed, rope, sharding, tokens
from mirage_jax.linear import Linear
from mirage_jax.stem import Stem

_POLICIES = jax.checkpoint_policies
REMAT = {
  'dots': _POLICIES.save_from_both_policies(
    _POLICIES.dots_with_no_batch_dims_saveable,
    _POLICIES.save_only_these_names('attention'),
  ),
  'attention': _POLICIES.save_only_these_names('attention'),
  'full': _POLICIES.nothing_saveable,
}
# Below it, a predicted clean latent turns into a velocity as if at it.
MIN_SIGMA = 0.05


class Mirage(nn.Module):
  """The velocity network. Initialise it with every condition present."""

  cfg: config.MirageConfig

  @nn.compact
  def __call__(
    self,
    video: Float[Array, 'B F Y X C'],
    sigma: Float[Array, 'B'],
    cond: Mapping[str, Array],
  ) -> Float[Array, 'B F Y X C']:
    """Predicts v = data - noise.

    Args:
      video: Noisy latents, (1 - sigma) * data + sigma * noise.
      sigma: Noise levels in [0, 1]; 1 is noise.
      cond: Any of
        reference: [B R Y X C] clean latents, at least with
        reference_time: [B R] their times in latents on the video's clock;
        text: [B L Ct] float features or [B L] integer ids;
        audio: [B N Ca], one token per video frame, as each of `cfg.extra`;
        reference_mask [B R], text_mask [B L], audio_mask [B N]...: True for the
        tokens that exist; the others have no influence;
        text_share, audio_share...: [] in [0, 1], see `block.Context.shares`;
        video_start: [] or [B] number of the first frame, 0 if absent; shifts
        the times of video and audio, a fifth of a latent per frame.
        An absent condition is the same as one that is masked out.

    Returns:
      float32 velocity.

    Raises:
      ValueError: `cond` and the configuration do not fit.
    """
    cfg = self.cfg
    tokens.check_cond(cond, [stream.name for stream in cfg.extra])
    streams = {'video': self._video_tokens(video, cond)}
    total = streams['video'].shape[1]
    num_video = total // (video.shape[1] + _frames(cond)) * video.shape[1]
    lengths = (num_video,)
    if total > num_video:
      lengths = (total - num_video, num_video)
    cond_vectors, text = self._cond_vectors(sigma, cond, lengths)
    if text.shape[1]:
      shape = (cfg.text.in_dim, cfg.text.width)
      streams['text'] = self._linear('text_in', shape)(text)
    streams |= self._frame_tokens(cond)
    audio = None
    if cfg.audio_fusion == 'cross' and 'audio' in cond:
      audio = block.rms_norm(streams.pop('audio'), block.EPS).astype(cfg.dtype)
    context = block.Context(
      cond={name: nn.silu(c) for name, c in cond_vectors.items()},
      tables=self._tables(video.shape, cond, text.shape[1]),
      mask=_key_mask(lengths, streams, cond),
      audio=audio,
      audio_mask=cond.get('audio_mask'),
      shares=_shares(streams, cond),
    )
    x = self._blocks(streams, context, lengths)
    x = self._output(x, context.cond['video'][:, -1:], video.shape)
    return x if cfg.prediction == 'velocity' else _towards(x, video, sigma)

  def _linear(self, name, shape, **options):
    options = dict(dtype=self.cfg.dtype) | options
    return Linear(shape, (None, 'embed'), name=name, **options)

  def _video_tokens(self, video, cond):
    cfg = self.cfg
    parts = [tokens.patchify(video, cfg.patch_size)]
    if 'reference' in cond:
      parts.insert(0, tokens.patchify(cond['reference'], cfg.patch_size))
    x = tokens.join([part.astype(cfg.dtype) for part in parts])
    x = self._linear('video_in', (x.shape[-1], cfg.video.width))(x)
    return sharding.constrain(self, x, ('batch', 'seq', None))

  def _frame_tokens(self, cond):
    """Tokens of the streams that have one per video frame."""
    if 'audio' in cond and self.cfg.audio is None:
      raise ValueError('the model has no audio stream, but cond has audio.')
    result = {}
    for name, cfg in self._frame_streams(cond):
      x = cond[name]
      if cfg.stem:
        stem = Stem(cfg.stem, self.cfg.dtype, name=f'{name}_stem')
        x = stem(x, cond.get(f'{name}_mask'))
      result[name] = self._linear(f'{name}_in', (cfg.in_dim, cfg.width))(x)
    return result

  def _frame_streams(self, cond):
    streams = self.cfg.frame_streams().items()
    return [(name, cfg) for name, cfg in streams if name in cond]

  def _cond_vectors(self, sigma, cond, lengths):
    """Condition vectors [B G Wc] of each stream, and the text features."""
    cfg, batch = self.cfg, sigma.shape[0]
    embed_sigma = embed.SigmaEmbed(cfg.video.width, name='sigma')
    vector = time = embed_sigma(sigma)[:, None]
    two = cfg.reference_sigma_zero and len(lengths) == 2
    if two:
      clean = embed_sigma(jnp.zeros((1,), sigma.dtype))[:, None]
      clean = jnp.broadcast_to(clean, time.shape)
      vector = jnp.concatenate([clean, time], axis=1)
    text = jnp.zeros((batch, 0, 0))
    if cfg.text is not None:
      text = jnp.zeros((batch, 0, cfg.text.in_dim))
      if 'text' in cond:
        text = embed.TextEmbed(cfg.text_vocab, cfg.text.in_dim, name='text_ids')
        text = text(cond['text'])
      mask = cond.get('text_mask', jnp.ones(text.shape[:2], bool))
      pool = embed.TextPool(cfg.video.width, cfg.text_pool_heads, name='pool')
      vector = vector + pool(text, mask)[:, None]
    elif 'text' in cond:
      raise ValueError('the model has no text stream, but cond has text.')
    joint = cfg.audio_condition == 'joint'
    audio = vector[:, -1:] if joint else time
    vectors = dict.fromkeys(cfg.streams(), audio) | {'audio': audio}
    return vectors | {'video': vector, 'text': vector[:, -1:]}, text

  def _frequencies(self, name, init):
    shape = (3, self.cfg.num_heads, self.cfg.head_dim // 2)
    init = nn.with_logical_partitioning(init, (None, 'heads', 'kv'))
    return self.param(f'{name}_frequencies', init, shape)

  def _tables(self, shape, cond, num_text):
    """Rotary tables of the streams that have tokens and are rotated."""
    cfg, tables = self.cfg, {}
    start = jnp.asarray(cond.get('video_start', 0), jnp.float32).reshape(-1, 1)
    start = start * (rope.CHUNK_LATENTS / rope.CHUNK_FRAMES)
    if cfg.video.rope:
      rows, columns = (n // cfg.patch_size for n in shape[2:4])
      times = [start + jnp.arange(shape[1], dtype=jnp.float32)[None]]
      if 'reference' in cond:
        times.insert(0, cond['reference_time'].astype(jnp.float32))
        batch = max(time.shape[0] for time in times)
        times = [jnp.broadcast_to(t, (batch, t.shape[1])) for t in times]
      positions = rope.grid_positions(
        tokens.join(times), rows, columns, cfg.rope_area
      )
      init = lambda key, shape: rope.init_frequencies(key, shape, space=True)
      tables['video'] = rope.rotary_tables(
        self._frequencies('video', init), positions
      )
    for name, stream in self._frame_streams(cond):
      if stream.rope:
        time = rope.frame_time(np.arange(cond[name].shape[1]))
        init = lambda key, shape: rope.init_frequencies(key, shape, space=False)
        tables[name] = rope.rotary_tables(
          self._frequencies(name, init),
          rope.line_positions(start + time[None]),
        )
    if num_text and cfg.text.rope:
      time = jnp.arange(num_text, dtype=jnp.float32)[None]
      zeros = lambda key, shape: jnp.zeros(shape, jnp.float32)
      tables['text'] = rope.rotary_tables(
        self._frequencies('text', zeros), rope.line_positions(time)
      )
    return tables

  def _blocks(self, streams, context, lengths):
    cfg = self.cfg
    make = block.Block
    if cfg.remat != 'none':
      make = nn.remat(make, policy=REMAT[cfg.remat], prevent_cse=False)
    if cfg.depth > 1:
      streams = self._before_last(make, streams, context, lengths)
    last = make(cfg, lengths, last=True, name='last')
    return last(streams, context)[0]['video']

  def _before_last(self, make, streams, context, lengths):
    """All blocks but the last, or what they changed if `CACHE` has it."""
    keep = block.keeps(self)
    if not keep and self.has_variable(block.CACHE, 'change'):
      change = self.get_variable(block.CACHE, 'change')
      return {name: x + change[name] for name, x in streams.items()}
    scanned = nn.scan(
      make,
      variable_axes={'params': 0, block.CACHE: 0},
      split_rngs={'params': True},
      in_axes=nn.broadcast,
      length=self.cfg.depth - 1,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )
    result, _ = scanned(self.cfg, lengths, name='blocks')(streams, context)
    if keep:
      change = {name: x - streams[name] for name, x in result.items()}
      self.put_variable(block.CACHE, 'change', change)
    return result

  def _output(self, x, cond, shape):
    """Affine-free LayerNorm, shift and scale, Linear to patches."""
    cfg, width = self.cfg, self.cfg.video.width
    linear = Linear(
      (width, 2 * width), ('embed', 'cond'), zero=True, name='final_modulation'
    )
    shift, scale = jnp.split(linear(cond), 2, axis=-1)
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    x = (block.rms_norm(x, block.EPS) * (1 + scale) + shift).astype(cfg.dtype)
    size = cfg.patch_size**2 * cfg.latent_channels
    x = Linear(
      (width, size), ('embed', None), zero=True, dtype=cfg.dtype, name='out'
    )(x)
    return tokens.unpatchify(x.astype(jnp.float32), shape, cfg.patch_size)


def count_params(params: Any) -> int:
  """Number of scalars in a tree of arrays, or of their abstract shapes."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def _towards(data, video, sigma):
  """The velocity that leads from `video` at noise level sigma to `data`."""
  least = jnp.maximum(sigma.astype(jnp.float32), MIN_SIGMA)
  return (data - video) / least[:, None, None, None, None]


def _frames(cond):
  return cond['reference'].shape[1] if 'reference' in cond else 0


def _key_mask(lengths, streams, cond):
  """The joint sequence's mask; a reference frame's covers its patches."""
  batch = streams['video'].shape[0]
  parts = [(lengths[-1], None)]
  if len(lengths) == 2:
    mask = cond.get('reference_mask')
    if mask is not None:
      mask = jnp.repeat(mask, lengths[0] // mask.shape[1], axis=1)
    parts.insert(0, (lengths[0], mask))
  for name in tokens.ordered(streams)[1:]:
    parts.append((streams[name].shape[1], cond.get(f'{name}_mask')))
  return tokens.key_mask(parts, batch)


def _shares(streams, cond):
  return {n: cond[f'{n}_share'] for n in streams if f'{n}_share' in cond}
