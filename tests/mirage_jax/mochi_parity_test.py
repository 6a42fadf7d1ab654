"""Our transformer with Mochi's two streams against diffusers' Mochi.

Conventions of diffusers: the timestep is 1000 * (1 - sigma), the output is
data - noise (its scheduler inverts the sigmas), latents are B C F Y X, and
padded text must follow the real text.
"""

from flax import linen as nn
import jax
import numpy as np
import pytest

from mirage_jax import config, dit

REASON = 'parity with the original needs the `convert` extra'
torch = pytest.importorskip('torch', reason=REASON)
diffusers = pytest.importorskip('diffusers', reason=REASON)

# torch's autocast says on a CPU that float32 is no lower precision.
pytestmark = pytest.mark.filterwarnings('ignore:In CPU autocast')

HEADS, HEAD, WIDTH, TEXT, CHANNELS, FEATURES = 2, 16, 32, 24, 4, 32
DEPTH = 3
PAIRS = np.concatenate([np.arange(0, HEAD, 2), np.arange(1, HEAD, 2)])


def make_theirs():
  torch.manual_seed(0)
  model = diffusers.MochiTransformer3DModel(
    num_attention_heads=HEADS,
    attention_head_dim=HEAD,
    num_layers=DEPTH,
    pooled_projection_dim=TEXT,
    in_channels=CHANNELS,
    text_embed_dim=FEATURES,
  ).eval()
  for parameter in model.parameters():
    # No zeros or ones left: every parameter must matter.
    torch.nn.init.normal_(parameter, 0.1, 0.2)
  return model


def make_ours():
  return dit.Mirage(
    config.MirageConfig(
      depth=DEPTH,
      num_heads=HEADS,
      head_dim=HEAD,
      video=config.StreamConfig(WIDTH, 4 * WIDTH * 2 // 3),
      text=config.StreamConfig(TEXT, 4 * TEXT * 2 // 3, FEATURES, rope=False),
      latent_channels=CHANNELS,
    )
  )


class Weights:
  """Takes torch weights one by one, as kernels of shape (in, out)."""

  def __init__(self, model):
    self.left = {k: v.detach().numpy() for k, v in model.state_dict().items()}

  def take(self, name):
    return self.left.pop(name)

  def kernel(self, name):
    return self.take(f'{name}.weight').T

  def linear(self, name, shape=None):
    kernel, bias = self.kernel(name), self.take(f'{name}.bias')
    return {'kernel': kernel.reshape(shape or kernel.shape), 'bias': bias}


def qkv(weights, names):
  """Joins per-head kernels; queries' and keys' pairs become (d, d + D/2)."""
  kernels = []
  for name in names:
    kernel = weights.kernel(name).reshape(-1, HEADS, HEAD)
    kernels.append(kernel if '_v' in name else kernel[..., PAIRS])
  return {'kernel': np.stack(kernels, 1)}


def swiglu(weights, name):
  up = weights.kernel(f'{name}.net.0.proj')
  value, gate = np.split(up, 2, axis=1)
  down = weights.kernel(f'{name}.net.2')
  return {
    'up': {'kernel': np.stack([gate, value], 1)},
    'down': {'kernel': down},
  }


def convert_block(weights, i, last):
  at = f'transformer_blocks.{i}'
  attn = f'{at}.attn1'
  norm = lambda name: {'scale': weights.take(f'{attn}.{name}.weight')[PAIRS]}
  modulation = lambda name: {'linear': weights.linear(f'{at}.{name}')}
  shape = (HEADS, HEAD, -1)
  video = {
    'modulation': modulation('norm1.linear'),
    'qkv': qkv(weights, [f'{attn}.to_{x}' for x in 'qkv']),
    'q_norm': norm('norm_q'),
    'k_norm': norm('norm_k'),
    'out': weights.linear(f'{attn}.to_out.0', shape),
    'mlp': swiglu(weights, f'{at}.ff'),
  }
  kinds = 'kv' if last else 'qkv'
  name = 'norm1_context.linear_1' if last else 'norm1_context.linear'
  text = {
    'modulation': modulation(name),
    'qkv': qkv(weights, [f'{attn}.add_{x}_proj' for x in kinds]),
    'k_norm': norm('norm_added_k'),
  }
  if not last:
    text['q_norm'] = norm('norm_added_q')
    text['out'] = weights.linear(f'{attn}.to_add_out', shape)
    text['mlp'] = swiglu(weights, f'{at}.ff_context')
  return {'video': video, 'text': text}


def convert(model):
  weights = Weights(model)
  patch = weights.take('patch_embed.proj.weight').transpose(2, 3, 1, 0)
  pool, heads = 'time_embed.pooler', (8, FEATURES // 8)
  kv = weights.linear(f'{pool}.to_kv', (FEATURES, 2, *heads))
  kv['bias'] = kv['bias'].reshape(2, *heads)
  q = weights.linear(f'{pool}.to_q', (FEATURES, *heads))
  q['bias'] = q['bias'].reshape(heads)
  final = weights.linear('norm_out.linear')
  # diffusers keeps (scale, shift); Mochi's own code and ours (shift, scale).
  final = {k: np.roll(v, WIDTH, axis=-1) for k, v in final.items()}
  blocks = [convert_block(weights, i, False) for i in range(DEPTH - 1)]
  time = 'time_embed.timestep_embedder.linear'
  params = {
    'video_in': {
      'kernel': patch.reshape(-1, WIDTH),
      'bias': weights.take('patch_embed.proj.bias'),
    },
    'sigma': {
      'up': weights.linear(f'{time}_1'),
      'out': weights.linear(f'{time}_2'),
    },
    'pool': {
      'q': q,
      'kv': kv,
      'out': weights.linear(f'{pool}.to_out', (*heads, -1)),
    },
    'text_in': weights.linear('time_embed.caption_proj'),
    'video_frequencies': weights.take('pos_frequencies'),
    'blocks': jax.tree.map(lambda *x: np.stack(x), *blocks),
    'last': convert_block(weights, DEPTH - 1, True),
    'final_modulation': final,
    'out': weights.linear('proj_out'),
  }
  # The last block's text queries have no reader in either model.
  dead = f'transformer_blocks.{DEPTH - 1}.attn1'
  assert sorted(weights.left) == [
    f'{dead}.add_q_proj.weight',
    f'{dead}.norm_added_q.weight',
  ]
  return params


@pytest.fixture(scope='module')
def inputs():
  rng = np.random.default_rng(0)
  return {
    'video': rng.standard_normal((3, 2, 4, 6, CHANNELS), dtype=np.float32),
    'sigma': np.array([1.0, 0.7, 0.013], np.float32),
    'text': rng.standard_normal((3, 5, FEATURES), dtype=np.float32),
    'mask': np.arange(5)[None] < np.array([5, 2, 0])[:, None],
  }


@pytest.fixture(scope='module')
def theirs(inputs):
  model = make_theirs()
  with torch.no_grad():
    (velocity,) = model(
      torch.from_numpy(inputs['video']).permute(0, 4, 1, 2, 3),
      torch.from_numpy(inputs['text']),
      torch.from_numpy(1000 * (1 - inputs['sigma'])),
      torch.from_numpy(inputs['mask']),
      return_dict=False,
    )
  return model, velocity.permute(0, 2, 3, 4, 1).numpy()


def run(params, inputs, **changes):
  inputs = inputs | changes
  cond = {'text': inputs['text'], 'text_mask': inputs['mask']}
  return jax.jit(make_ours().apply)(
    {'params': params}, inputs['video'], inputs['sigma'], cond
  )


def test_parameters_have_our_shapes(theirs, inputs):
  cond = {'text': inputs['text'], 'text_mask': inputs['mask']}
  want = jax.eval_shape(
    make_ours().init, jax.random.key(0), inputs['video'], inputs['sigma'], cond
  )
  want = jax.tree.map(lambda x: x.shape, nn.unbox(want)['params'])
  assert jax.tree.map(np.shape, convert(theirs[0])) == want


def test_velocity_equals_diffusers(theirs, inputs):
  model, want = theirs
  got = np.asarray(run(convert(model), inputs))
  for a, b in zip(got, want, strict=True):  # full, part and empty text
    assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def test_the_comparison_can_fail(theirs, inputs):
  model, want = theirs
  got = np.asarray(run(convert(model), inputs, sigma=1 - inputs['sigma']))
  assert np.abs(got - want).max() > 1e-2 * np.abs(want).max()
