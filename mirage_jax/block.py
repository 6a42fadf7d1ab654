"""One joint-attention block: Mochi 1's, for any number of streams.

Each stream has its own modulation, QKV, QK-norm, output projection and MLP;
all attend to all. Sublayers are sandwiched between two parameter-free norms:
x + tanh(gate) * norm(sublayer(norm(x) * (1 + scale))). There is no shift.
"""

from collections.abc import Callable, Mapping, Sequence
import functools

from flax import linen as nn
import flax.struct
import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from mirage_jax import config, heads, rope, sharding, tokens
from mirage_jax.heads import HeadNorm, rms_norm
from mirage_jax.linear import Linear
from mirage_jax.ops.attention import parallel

# The collection of what can be used again. Applied with it mutable, the model
# keeps in it what attention gave ('attended', in every block) and what all blocks
# before the last changed ('change'). Given some of it, it computes that no more.
CACHE = 'cache'
EPS = 1e-6


@flax.struct.dataclass
class Context:
  """What every block sees alike.

  Attributes:
    cond: Per stream, SiLU of the condition vectors [B G Wc], float32. G is 1,
      or 2 in a video stream whose reference tokens have their own.
    tables: Per rotated stream, `rope.rotary_tables` of its tokens.
    mask: `tokens.key_mask` of the joint sequence, or None.
    audio: Under cross fusion, normalised audio tokens [B N Wa], else None.
    audio_mask: Their mask [B N], or None.
    shares: Per stream that is new to the others, how far it counts in their
      attention []: at 0 they attend as if it were not there, at 1 to all alike.
      Between, they take so much of what it changes.
  """

  cond: Mapping[str, jax.Array]
  tables: Mapping[str, rope.Tables]
  mask: jax.Array | None = None
  audio: jax.Array | None = None
  audio_mask: jax.Array | None = None
  shares: Mapping[str, jax.Array] = flax.struct.field(default_factory=dict)


def keeps(module: nn.Module) -> bool:
  """Whether `CACHE` is to be filled."""
  return module.is_mutable_collection(CACHE) and not module.is_initializing()


def attend(
  module: nn.Module,
  q: Sequence[Float[Array, 'B _ H D']],
  k: Sequence[Float[Array, 'B _ H D']],
  v: Sequence[Float[Array, 'B _ H D']],
  mask: Array | None,
  split_keys: bool = True,
) -> list[Float[Array, 'B _ H D']]:
  """`parallel.attention` as the module's cfg has it, on the context's mesh."""
  cfg, options = module.cfg, {}
  # Parameters need shapes alone, of any batch and on any device.
  if not module.is_initializing():
    layout = sharding.attention_layout(cfg.attention, cfg.context, cfg.ring)
    options = dict(implementation=cfg.attention, layout=layout)
  return parallel.attention(q, k, v, mask, split_keys=split_keys, **options)


class Modulation(nn.Module):
  """Scales or gates per token from the condition vectors.

  Zero at the start, so that a fresh block, or a fresh stream attached to a
  trained model, is the identity (adaLN-Zero).
  """

  width: int
  count: int

  @nn.compact
  def __call__(
    self, cond: Float[Array, 'B G Wc'], lengths: Sequence[int]
  ) -> list[Float[Array, 'B _ W']]:
    shape = (cond.shape[-1], self.count * self.width)
    linear = Linear(shape, ('embed', 'cond'), zero=True, name='linear')
    parts = jnp.split(linear(cond), self.count, axis=-1)
    if cond.shape[1] == 1:
      return parts
    # A select fuses into its use, and its gradient is a plain sum.
    first = (jnp.arange(sum(lengths)) < lengths[0])[None, :, None]
    return [jnp.where(first, part[:, :1], part[:, 1:]) for part in parts]


class Stream(nn.Module):
  """One modality's own parameters in a block.

  Attributes:
    cfg: The model.
    stream: The stream's sizes.
    lengths: Tokens of each condition vector's group.
    updates: False for a stream that only offers keys and values.
    skip: Leading tokens that only offer keys and values, too.
  """

  cfg: config.MirageConfig
  stream: config.StreamConfig
  lengths: Sequence[int]
  updates: bool = True
  skip: int = 0

  def setup(self):
    cfg, width = self.cfg, self.stream.width
    sizes, names = (cfg.num_heads, cfg.head_dim), ('heads', 'kv')
    count = 3 if self.updates else 2
    self.modulation = Modulation(width, 4 if self.updates else 1)
    self.qkv = Linear(
      (width, count, *sizes),
      ('embed', None, *names),
      use_bias=False,
      dtype=cfg.dtype,
    )
    alignment = cfg.time_alignment
    timed = self.name in cfg.frame_streams()
    self.k_norm = HeadNorm(sizes, alignment if timed else 0.0)
    if self.updates:
      video = self.name == 'video'
      self.q_norm = HeadNorm(sizes, alignment if video else 0.0)
      self.out = Linear(
        (*sizes, width), (*names, 'embed'), num_in=2, dtype=cfg.dtype
      )
      self.mlp = SwiGlu(width, self.stream.mlp_dim, cfg.dtype)

  def modulate(self, context: Context) -> list[Float[Array, 'B _ W']]:
    """Scale and, if the stream is updated, gate, MLP's scale, MLP's gate."""
    return self.modulation(context.cond[self.name], self.lengths)

  def attend(
    self, x: Float[Array, 'B T W'], scales: Sequence[Array], context: Context
  ):
    """Returns (queries or None, keys, values)."""
    name = self.name
    y = (rms_norm(x, EPS) * (1 + scales[0])).astype(x.dtype)
    parts = self.qkv(y)
    # Other streams are short.
    known = name == 'video' and self.updates and name in context.tables
    if known and not self.is_initializing():
      norms = self.q_norm, self.k_norm
      if found := heads.fused(self.cfg, parts, norms, context.tables[name]):
        return found[0][:, self.skip :], *found[1:]
    k, v = self.k_norm(parts[:, :, -2]), parts[:, :, -1]
    q = self.q_norm(parts[:, self.skip :, 0]) if self.updates else None
    if name in context.tables:
      tables = context.tables[name]
      k = rope.apply_rotary(k, tables)
      if q is not None:
        q = rope.apply_rotary(q, tables.after(self.skip))
    return q, k, v

  def project(self, heads: Float[Array, 'B T H D']) -> Float[Array, 'B T W']:
    """What the heads found, in the stream's width."""
    return self.out(heads)

  def update(
    self,
    x: Float[Array, 'B T W'],
    attended: Float[Array, 'B T W'],
    scales: Sequence[Array],
    extra: Callable[[Array], Array] | None = None,
  ) -> Float[Array, 'B T W']:
    """Adds the attention's and the MLP's output to the residual stream."""
    if self.skip:
      x = x[:, self.skip :]
      scales = [s[:, self.skip :] if s.shape[1] > 1 else s for s in scales]
    _, gate, mlp_scale, mlp_gate = scales
    x = residual(x, attended, gate)
    if extra is not None:
      x = extra(x)
    y = (rms_norm(x, EPS) * (1 + mlp_scale)).astype(x.dtype)
    return residual(x, self.mlp(y), mlp_gate)


def residual(x: Array, y: Array, gate: Array) -> Array:
  """x + tanh(gate) * norm(y), computed in float32, in x's dtype."""
  return x + (jnp.tanh(gate) * rms_norm(y, EPS)).astype(x.dtype)


class SwiGlu(nn.Module):
  """Bias-free gated MLP: down(silu(a) * b), with a and b from one kernel."""

  width: int
  hidden: int
  dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, 'B T W']) -> Float[Array, 'B T W']:
    up = Linear(
      (self.width, 2, self.hidden),
      ('embed', None, 'mlp'),
      use_bias=False,
      dtype=self.dtype,
      name='up',
    )(x)
    hidden = nn.silu(up[:, :, 0]) * up[:, :, 1]
    hidden = sharding.constrain(self, hidden, ('batch', None, 'mlp'))
    return Linear(
      (self.hidden, self.width),
      ('mlp', 'embed'),
      use_bias=False,
      dtype=self.dtype,
      name='down',
    )(hidden)


class CrossAttention(nn.Module):
  """From video to audio tokens, on the same rotary clock (the ablation)."""

  cfg: config.MirageConfig
  lengths: Sequence[int]
  skip: int = 0

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T W'], context: Context
  ) -> Float[Array, 'B T W']:
    cfg, width, wide = self.cfg, x.shape[-1], self.cfg.audio.width
    sizes, names = (cfg.num_heads, cfg.head_dim), ('heads', 'kv')
    scale, gate = Modulation(width, 2, name='modulation')(
      context.cond['video'], self.lengths
    )
    if self.skip and scale.shape[1] > 1:
      scale, gate = scale[:, self.skip :], gate[:, self.skip :]
    y = (rms_norm(x, EPS) * (1 + scale)).astype(x.dtype)
    options = dict(use_bias=False, dtype=cfg.dtype)
    q = Linear((width, *sizes), ('embed', *names), name='q', **options)(y)
    kv = Linear(
      (wide, 2, *sizes), ('embed', None, *names), name='kv', **options
    )(context.audio)
    q = HeadNorm(sizes, cfg.time_alignment, name='q_norm')(q)
    k = HeadNorm(sizes, cfg.time_alignment, name='k_norm')(kv[:, :, 0])
    if 'video' in context.tables:
      q = rope.apply_rotary(q, context.tables['video'].after(self.skip))
    if 'audio' in context.tables:
      k = rope.apply_rotary(k, context.tables['audio'])
    mask = context.audio_mask
    (y,) = attend(self, [q], [k], [kv[:, :, 1]], mask, split_keys=False)
    y = Linear(
      (*sizes, width), (*names, 'embed'), 2, dtype=cfg.dtype, name='out'
    )(y)
    if mask is not None:
      # Without audio not even the bias counts, as if there were no layer.
      gate = gate * jnp.any(mask, axis=1)[:, None, None]
    return residual(x, y, gate)


class Block(nn.Module):
  """All streams through one joint attention and their own MLPs.

  What attention gives each stream can be kept and used again, see `CACHE`.

  Attributes:
    cfg: The model.
    lengths: Tokens of the video stream: (video,) or (reference, video).
    last: Update only the video tokens: the other streams, and the reference
      tokens, need no queries, output projection or MLP any more.
  """

  cfg: config.MirageConfig
  lengths: Sequence[int]
  last: bool = False

  @nn.compact
  def __call__(
    self, streams: Mapping[str, Float[Array, 'B _ _']], context: Context
  ) -> tuple[dict[str, Float[Array, 'B _ _']], None]:
    skip = self.lengths[0] if self.last and len(self.lengths) == 2 else 0
    modules, scales = {}, {}
    sizes = self.cfg.streams()
    for name in tokens.ordered(streams):  # Tracing sorts the keys of dicts.
      video = name == 'video'
      modules[name] = Stream(
        self.cfg,
        sizes[name],
        self.lengths if video else (streams[name].shape[1],),
        updates=video or not self.last,
        skip=skip if video else 0,
        name=name,
      )
      scales[name] = modules[name].modulate(context)
    result = {}
    for name, y in self._attended(modules, streams, scales, context).items():
      extra = None
      if name == 'video' and context.audio is not None:
        cross = CrossAttention(self.cfg, self.lengths, skip, name='cross')
        extra = lambda x, cross=cross: cross(x, context)
      y = modules[name].update(streams[name], y, scales[name], extra)
      result[name] = self._constrain(name, y)
    return result, None

  def _constrain(self, name, x):
    axes = ('batch', 'seq' if name == 'video' else None, None)
    return sharding.constrain(self, x, axes)

  def _attended(self, modules, streams, scales, context):
    """What the joint attention gives each stream that is updated."""
    keep = keeps(self)
    if not keep and self.has_variable(CACHE, 'attended'):
      return self.get_variable(CACHE, 'attended')
    qkv = {
      name: module.attend(streams[name], scales[name], context)
      for name, module in modules.items()
    }
    run = functools.partial(attend, self)
    heads = joined(qkv, context.mask, context.shares, run)
    attended = {name: modules[name].project(x) for name, x in heads.items()}
    if keep:
      attended = {n: self._constrain(n, y) for n, y in attended.items()}
      self.put_variable(CACHE, 'attended', attended)
    return attended


def joined(
  qkv: Mapping[str, tuple[Array | None, Array, Array]],
  mask: Bool[Array, 'B S'] | None,
  shares: Mapping[str, Float[Array, '']],
  run: Callable[..., list[Array]],
) -> dict[str, Float[Array, 'B _ H D']]:
  """What the joint attention gives the heads of each stream with queries.

  Args:
    qkv: Queries or None, keys and values of each stream, in order.
    mask: Of all keys.
    shares: Of streams that are new to the others, see `Context`. While one is
      below 1, attention runs once more for it.
    run: `attend`, its module bound.
  """
  new = [name for name in qkv if name in shares]
  if not new:
    return _attend(qkv, mask, run)
  masks = dict.fromkeys(qkv)
  if mask is not None:
    parts = tokens.split(mask, [k.shape[1] for _, k, _ in qkv.values()])
    masks = dict(zip(qkv, parts, strict=True))

  def among(names):
    part = None if mask is None else tokens.join([masks[n] for n in names])
    return _attend({n: qkv[n] for n in names}, part, run)

  def mixed():
    found = among([n for n in qkv if n not in new])
    for i, name in enumerate(new):
      more = among([n for n in qkv if n not in new[i + 1 :]])
      mix = lambda x, y, part=shares[name]: (x + part * (y - x)).astype(x.dtype)
      found = more | {n: mix(x, more[n]) for n, x in found.items()}
    return found

  whole = jnp.all(jnp.stack([shares[name] for name in new]) >= 1)
  plain = lambda: _attend(qkv, mask, run)
  return jax.lax.cond(whole, plain, mixed)


def _attend(qkv, mask, run):
  queries = {n: q for n, (q, _, _) in qkv.items() if q is not None}
  keys, values = ([x[i] for x in qkv.values()] for i in (1, 2))
  heads = run(list(queries.values()), keys, values, mask)
  return dict(zip(queries, heads, strict=True))
