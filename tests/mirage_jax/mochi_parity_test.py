"""Our transformer with Mochi's two streams against diffusers' Mochi.

Conventions of diffusers: the timestep is 1000 * (1 - sigma), the output is
data - noise (its scheduler inverts the sigmas), latents are B C F Y X, and
padded text must follow the real text.
"""

from flax import linen as nn
import jax
import numpy as np
import pytest

from mirage_jax import config, dit, embed, mochi_weights
from mirage_jax.encoders import names
from tests.mirage_jax import foreign_toys as toys

REASON = 'parity with the original needs the `convert` extra'
torch = pytest.importorskip('torch', reason=REASON)
diffusers = pytest.importorskip('diffusers', reason=REASON)
embeddings = pytest.importorskip('diffusers.models.embeddings', reason=REASON)
single_file = pytest.importorskip(
  'diffusers.loaders.single_file_utils', reason=REASON
)

# torch's autocast says on a CPU that float32 is no lower precision.
pytestmark = pytest.mark.filterwarnings('ignore:In CPU autocast')

CHANNELS, FEATURES = toys.MOCHI.latent_channels, toys.MOCHI.text.in_dim
DEPTH = toys.MOCHI.depth


def make_theirs():
  torch.manual_seed(0)
  model = diffusers.MochiTransformer3DModel(
    num_attention_heads=toys.MOCHI.num_heads,
    attention_head_dim=toys.MOCHI.head_dim,
    num_layers=DEPTH,
    pooled_projection_dim=toys.MOCHI.text.width,
    in_channels=CHANNELS,
    text_embed_dim=FEATURES,
  ).eval()
  for parameter in model.parameters():
    # No zeros or ones left: every parameter must matter.
    torch.nn.init.normal_(parameter, 0.1, 0.2)
  return model


def make_ours():
  return dit.Mirage(toys.MOCHI)


def to_numpy(model):
  return {k: v.detach().numpy() for k, v in model.state_dict().items()}


def abstract_params(model):
  cfg, like = model.cfg, jax.ShapeDtypeStruct
  size = cfg.patch_size
  cond = {
    'text': like((1, 2, cfg.text.in_dim), np.float32),
    'text_mask': like((1, 2), bool),
  }
  video = like((1, 1, size, size, cfg.latent_channels), np.float32)
  key, sigma = jax.random.key(0), like((1,), np.float32)
  return nn.unbox(jax.eval_shape(model.init, key, video, sigma, cond))['params']


def convert(model):
  ours = make_ours()
  layout = mochi_weights.diffusers(ours.cfg)
  return names.load(layout, abstract_params(ours), to_numpy(model))


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


def test_diffusers_takes_our_weights_back(theirs):
  model, _ = theirs
  tensors = to_numpy(model)
  saved = names.save(mochi_weights.diffusers(make_ours().cfg), convert(model))
  dead = f'transformer_blocks.{DEPTH - 1}.attn1'
  for name in (f'{dead}.add_q_proj.weight', f'{dead}.norm_added_q.weight'):
    assert not saved[name].any()
    saved[name] = tensors[name]
  assert saved.keys() == tensors.keys()
  for name, tensor in saved.items():
    np.testing.assert_array_equal(tensor, tensors[name])


def test_the_layouts_are_of_one_model():
  """Genmo's through diffusers' own conversion, which has Mochi's depth."""
  cfg = config.MirageConfig(
    depth=48,
    num_heads=2,
    head_dim=4,
    video=config.StreamConfig(8, 12),
    text=config.StreamConfig(6, 10, 16, rope=False),
    latent_channels=3,
  )
  ours, rng = abstract_params(dit.Mirage(cfg)), np.random.default_rng(0)
  draw = lambda x: rng.standard_normal(x.shape, np.float32)
  params = jax.tree.map(draw, ours)
  file = names.save(mochi_weights.genmo(cfg), params)
  again = names.load(mochi_weights.genmo(cfg), ours, file)
  jax.tree.map(np.testing.assert_array_equal, again, params)
  convert = single_file.convert_mochi_transformer_checkpoint_to_diffusers
  want = convert({k: torch.from_numpy(v) for k, v in file.items()})
  got = names.save(mochi_weights.diffusers(cfg), params)
  assert got.keys() == want.keys()
  for name in got:
    np.testing.assert_array_equal(got[name], want[name].numpy())


def test_velocity_equals_diffusers(theirs, inputs):
  model, want = theirs
  got = np.asarray(run(convert(model), inputs))
  for a, b in zip(got, want, strict=True):  # full, part and empty text
    assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def test_noise_levels_turn_as_theirs():
  """To the bit, but where torch's exponential is the wrong neighbour."""
  times = torch.tensor([13.0, 300.0, 700.0, 987.0])
  want = embeddings.get_timestep_embedding(
    times, embed.SIGMA_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0
  ).numpy()
  angles = times.numpy()[:, None] * embed.rates()[None]
  got = np.concatenate([np.cos(angles), np.sin(angles)], -1)
  assert (np.abs(got - want) > 1e-6).mean() < 0.02
  np.testing.assert_allclose(got, want, atol=4e-5)


def test_the_comparison_can_fail(theirs, inputs):
  model, want = theirs
  got = np.asarray(run(convert(model), inputs, sigma=1 - inputs['sigma']))
  assert np.abs(got - want).max() > 1e-2 * np.abs(want).max()
