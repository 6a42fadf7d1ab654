"""Who a block's outputs depend on, and what it may change."""

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mirage_jax import block, config

CFG = config.MirageConfig(
  depth=2,
  num_heads=2,
  head_dim=4,
  video=config.StreamConfig(12, 8),
  text=config.StreamConfig(8, 8, in_dim=8),
  audio=config.StreamConfig(4, 8, in_dim=8),
)
LENGTHS = (2, 3)  # reference, video


def make(cfg=CFG, last=False):
  """A block with random parameters, its inputs and its context."""
  keys = jax.random.split(jax.random.key(0), 8)
  tokens = {'video': 5, 'text': 4, 'audio': 6}
  streams = {
    name: jax.random.normal(key, (2, count, getattr(cfg, name).width))
    for key, (name, count) in zip(keys, tokens.items(), strict=False)
  }
  cond = {name: jax.random.normal(keys[3], (2, 1, 12)) for name in tokens}
  cond['video'] = jax.random.normal(keys[4], (2, 2, 12))
  context = block.Context(cond=cond, tables={})
  if cfg.audio_fusion == 'cross':
    context = context.replace(audio=streams.pop('audio'))
  module = block.Block(cfg, LENGTHS, last)
  params = nn.unbox(module.init(keys[5], streams, context))
  params = jax.tree.map(
    lambda x: x + 0.3 * jax.random.normal(keys[6], x.shape), params
  )
  apply = jax.jit(lambda s, c: module.apply(params, s, c)[0])
  return apply, streams, context


@pytest.fixture(scope='module')
def middle():
  return make()


def test_every_stream_hears_every_other(middle):
  apply, streams, context = middle
  outputs = apply(streams, context)
  for name in streams:
    louder = streams | {name: streams[name] * streams[name]}
    for other, after in apply(louder, context).items():
      assert np.abs(after - outputs[other]).max() > 1e-4, (name, other)


def test_a_fresh_block_is_the_identity():
  _, streams, context = make()
  module = block.Block(CFG, LENGTHS)
  params = module.init(jax.random.key(0), streams, context)
  outputs, _ = module.apply(params, streams, context)
  for name, x in streams.items():
    np.testing.assert_array_equal(outputs[name], x)


def test_the_order_of_the_streams_does_not_matter(middle):
  """Tracing sorts the keys of dicts, but masks come in a fixed order."""
  apply, streams, context = middle
  mask = np.ones((2, 15), bool)
  mask[:, 5:8] = False  # three text tokens
  context = context.replace(mask=jnp.asarray(mask))
  text = streams['text'].at[:, :3].add(7.0)
  for order in (('video', 'text', 'audio'), ('audio', 'text', 'video')):
    outputs = apply({name: streams[name] for name in order}, context)
    moved = streams | {'text': text}
    after = apply({name: moved[name] for name in order}, context)
    np.testing.assert_array_equal(after['video'], outputs['video'])
    np.testing.assert_array_equal(after['audio'], outputs['audio'])


def test_each_group_of_tokens_has_its_own_modulation():
  module = block.Modulation(width=3, count=2)
  cond = jax.random.normal(jax.random.key(0), (2, 2, 4))
  kernel = jax.random.normal(jax.random.key(1), (4, 6))
  params = {'params': {'linear': {'kernel': kernel, 'bias': jnp.ones(6)}}}
  for i, part in enumerate(module.apply(params, cond, LENGTHS)):
    want = (cond @ kernel)[..., 3 * i : 3 * i + 3] + 1
    want = np.repeat(want, LENGTHS, axis=1)  # 2 reference, 3 video tokens
    np.testing.assert_allclose(part, want, rtol=1e-5)


def test_residuals_are_bounded_by_the_sandwich_norm():
  """x + tanh(gate) * norm(y): the step's RMS is under 1 however large y is."""
  x, y = jnp.zeros((1, 3, 8)), 1e4 * jnp.arange(24.0).reshape(1, 3, 8)
  step = block.residual(x, y, jnp.full((1, 1, 8), 50.0))
  np.testing.assert_allclose(jnp.sqrt(jnp.mean(step**2, -1)), 1, rtol=1e-5)
  back = block.residual(x, y, jnp.full((1, 1, 8), -50.0))
  np.testing.assert_allclose(back, -step, rtol=1e-6)


def test_the_last_block_updates_the_video_tokens_alone():
  apply, streams, context = make(last=True)
  outputs = apply(streams, context)
  assert {k: v.shape for k, v in outputs.items()} == {'video': (2, 3, 12)}
  for name in streams:  # it still hears the others, and the reference
    louder = streams | {name: streams[name].at[:, :2].multiply(-2)}
    assert (
      np.abs(apply(louder, context)['video'] - outputs['video']).max() > 1e-4
    )
  params = nn.unbox(
    jax.eval_shape(
      block.Block(CFG, LENGTHS, True).init, jax.random.key(0), streams, context
    )
  )['params']
  assert set(params['audio']) == {'modulation', 'qkv', 'k_norm'}
  assert params['audio']['qkv']['kernel'].shape == (4, 2, 2, 4)


def test_cross_fusion_adds_nothing_where_audio_is_masked():
  audio = config.StreamConfig(6, 0, in_dim=8)
  cfg = config.MirageConfig(
    **{**vars(CFG), 'audio': audio, 'audio_fusion': 'cross'}
  )
  apply, streams, context = make(cfg)
  silent = apply(streams, context.replace(audio=None))['video']
  mask = jnp.array([[True] * 3 + [False] * 3, [False] * 6])
  heard = context.replace(audio_mask=mask)
  got = apply(streams, heard)['video']
  np.testing.assert_allclose(got[1], silent[1], atol=1e-6)
  assert np.abs(got[0] - silent[0]).max() > 1e-3
  moved = heard.replace(audio=heard.audio.at[:, 3:].add(5.0))
  np.testing.assert_array_equal(apply(streams, moved)['video'], got)
