"""Our wav2vec 2.0, HuBERT and WavLM against transformers'."""

import functools

from flax import linen as nn
import jax
import numpy as np
import pytest

from mirage_jax.encoders import names, wav2vec2, wav2vec2_names
from tests.mirage_jax import foreign_toys as toys

REASON = 'parity with the original needs the `convert` extra'
torch = pytest.importorskip('torch', reason=REASON)
transformers = pytest.importorskip('transformers', reason=REASON)

# WavLM gives torch a bias of floats and a mask of booleans.
pytestmark = pytest.mark.filterwarnings('ignore:Support for mismatched')

CASES = toys.SPEECHES
LENGTHS = (1237, 803, 58)  # samples, odd and in between; 60, 38 and 1 features


def make_theirs(kind, cfg):
  torch.manual_seed(0)
  config = getattr(transformers, f'{kind}Config')(
    hidden_size=cfg.width,
    num_hidden_layers=cfg.depth,
    num_attention_heads=cfg.num_heads,
    intermediate_size=cfg.mlp_dim,
    feat_extract_norm='layer' if cfg.stable else 'group',
    do_stable_layer_norm=cfg.stable,
    conv_bias=cfg.has_conv_bias,
    conv_dim=(cfg.conv_dim,) * len(cfg.kernels),
    conv_kernel=cfg.kernels,
    conv_stride=cfg.strides,
    num_conv_pos_embeddings=cfg.position_kernel,
    num_conv_pos_embedding_groups=cfg.position_groups,
    **({'max_bucket_distance': cfg.max_distance} if cfg.num_buckets else {}),
    **({'num_buckets': cfg.num_buckets} if cfg.num_buckets else {}),
    attn_implementation='eager',
  )
  model = getattr(transformers, f'{kind}Model')(config).eval()
  for name, p in model.named_parameters():
    # No ones and zeros left: every parameter must matter.
    mean = 1.0 if 'norm.weight' in name else 0.0
    torch.nn.init.normal_(p, mean, 0.3)
  return model


@functools.cache
def jitted(cfg):
  return jax.jit(wav2vec2.Wav2Vec2(cfg).apply, static_argnames='hidden')


@pytest.fixture(scope='module', params=CASES)
def case(request):
  kind, cfg = CASES[request.param]
  model = make_theirs(kind, cfg)
  tensors = {k: v.numpy() for k, v in model.state_dict().items()}
  layout = wav2vec2_names.places(cfg)
  ours = nn.unbox(wav2vec2.abstract_params(cfg))
  return cfg, model, tensors, layout, names.load(layout, ours, tensors)


@pytest.fixture(scope='module')
def inputs():
  rng = np.random.default_rng(0)
  wave = rng.standard_normal((3, LENGTHS[0]), np.float32)
  mask = np.arange(LENGTHS[0])[None] < np.array(LENGTHS)[:, None]
  return np.where(mask, wave, 0).astype(np.float32), mask


def assert_close(got, want):
  assert np.abs(np.asarray(got) - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize('masked', [False, True])
def test_output_and_hidden_states_equal_theirs(case, inputs, masked):
  cfg, model, _, _, params = case
  wave, mask = inputs
  mask = mask if masked else None
  with torch.no_grad():
    want = model(
      torch.from_numpy(wave),
      None if mask is None else torch.from_numpy(mask).long(),
      output_hidden_states=True,
    )
  got, hidden = jitted(cfg)({'params': params}, wave, mask, hidden=True)
  assert got.shape[1] == cfg.num_features(LENGTHS[0])
  assert_close(got, want.last_hidden_state.numpy())
  for ours, theirs in zip(hidden, want.hidden_states, strict=True):
    assert_close(ours, theirs.numpy())


def test_names_map_both_ways(case):
  _, model, tensors, layout, params = case
  saved = names.save(layout, params)
  for name, tensor in saved.items():
    np.testing.assert_array_equal(tensor, tensors[name])
  # SpecAugment's embedding is read in training only.
  assert set(tensors) - set(saved) == {'masked_spec_embed'}
  jax.tree.map(
    np.testing.assert_array_equal, names.load(layout, params, saved), params
  )
  back = {k: torch.from_numpy(v) for k, v in saved.items()}
  report = model.load_state_dict(back, strict=False)
  assert report.missing_keys == ['masked_spec_embed']
  assert not report.unexpected_keys


def test_files_of_whole_models_load(case):
  """As published: a prefix, heads, and weight normalisation's older names."""
  _, model, tensors, layout, params = case
  prefix = model.base_model_prefix
  old = {'original0': 'weight_g', 'original1': 'weight_v'}
  file = {'quantizer.codevectors': np.zeros(3), 'lm_head.weight': np.zeros(3)}
  for name, tensor in tensors.items():
    for new in old:
      name = name.replace(f'parametrizations.weight.{new}', old[new])
    file[f'{prefix}.{name}'] = tensor
  assert any(name.endswith('conv.weight_g') for name in file)
  jax.tree.map(
    np.testing.assert_array_equal, names.load(layout, params, file), params
  )


@pytest.mark.parametrize(
  ('kind', 'size'),
  [
    ('Wav2Vec2', 'wav2vec2_base'),
    ('Hubert', 'hubert_base'),
    ('WavLM', 'wavlm_base'),
  ],
)
def test_base_sizes_are_transformers_defaults(kind, size):
  with torch.device('meta'):
    config = getattr(transformers, f'{kind}Config')()
    model = getattr(transformers, f'{kind}Model')(config)
  want = {k: tuple(v.shape) for k, v in model.state_dict().items()}
  del want['masked_spec_embed']
  cfg = wav2vec2.SIZES[size]
  ours = nn.unbox(wav2vec2.abstract_params(cfg))
  assert names.their_shapes(wav2vec2_names.places(cfg), ours) == want
