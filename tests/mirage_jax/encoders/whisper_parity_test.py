"""Our Whisper encoder and log-mels against transformers'."""

from flax import linen as nn
import jax
import numpy as np
import pytest

from mirage_jax.encoders import names, whisper, whisper_names
from tests.mirage_jax import foreign_toys as toys

REASON = 'parity with the original needs the `convert` extra'
torch = pytest.importorskip('torch', reason=REASON)
transformers = pytest.importorskip('transformers', reason=REASON)

CFG = toys.WHISPER


def make_theirs():
  torch.manual_seed(0)
  config = transformers.WhisperConfig(
    d_model=CFG.width,
    encoder_layers=CFG.depth,
    encoder_attention_heads=CFG.num_heads,
    encoder_ffn_dim=4 * CFG.width,
    decoder_layers=1,
    decoder_attention_heads=2,
    decoder_ffn_dim=8,
    vocab_size=30,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=3,
    num_mel_bins=CFG.mels,
    max_source_positions=CFG.max_features,
    attn_implementation='eager',
  )
  model = transformers.WhisperForConditionalGeneration(config).eval()
  for name, p in model.named_parameters():
    # No ones and zeros left: every parameter must matter.
    mean = 1.0 if 'norm.weight' in name else 0.0
    torch.nn.init.normal_(p, mean, 0.3)
  return model


@pytest.fixture(scope='module')
def case():
  model = make_theirs()
  tensors = {k: v.numpy() for k, v in model.state_dict().items()}
  layout = whisper_names.places(CFG)
  ours = nn.unbox(whisper.abstract_params(CFG))
  return model, tensors, layout, names.load(layout, ours, tensors)


@pytest.fixture(scope='module')
def mel():
  rng = np.random.default_rng(0)
  return rng.standard_normal((2, 2 * CFG.max_features, CFG.mels), np.float32)


def assert_close(got, want):
  want = want.detach().numpy()
  assert np.abs(np.asarray(got) - want).max() <= 1e-5 * np.abs(want).max()


def run_ours(params, mel):
  apply = jax.jit(whisper.WhisperEncoder(CFG).apply, static_argnames='hidden')
  return apply({'params': params}, mel, hidden=True)


def test_output_and_hidden_states_equal_theirs(case, mel):
  model, *_, params = case
  want = model.model.encoder(
    torch.from_numpy(mel).transpose(1, 2), output_hidden_states=True
  )
  got, hidden = run_ours(params, mel)
  assert_close(got, want.last_hidden_state)
  assert len(hidden) == CFG.depth + 1
  # transformers has the output in place of the last one.
  pairs = zip(hidden[:-1], want.hidden_states[:-1], strict=True)
  for ours, theirs in pairs:
    assert_close(ours, theirs)


def test_odd_lengths_equal_their_parts(case, mel):
  """transformers refuses all but 30 s; its modules, put together, do not."""
  model, *_, params = case
  encoder, part = model.model.encoder, mel[:, :27]
  x = torch.from_numpy(part).transpose(1, 2)
  gelu = torch.nn.functional.gelu
  x = gelu(encoder.conv2(gelu(encoder.conv1(x)))).transpose(1, 2)
  x = x + encoder.embed_positions.weight[: x.shape[1]]
  for layer in encoder.layers:
    x = layer(x, None)
  got, _ = run_ours(params, part)
  assert got.shape[1] == 14
  assert_close(got, encoder.layer_norm(x))


def test_names_map_both_ways(case):
  model, tensors, layout, params = case
  saved = names.save(layout, params)
  for name, tensor in saved.items():
    np.testing.assert_array_equal(tensor, tensors[f'model.{name}'])
  left = set(tensors) - {f'model.{name}' for name in saved}
  assert all(n.startswith(('model.decoder.', 'proj_out.')) for n in left)
  jax.tree.map(
    np.testing.assert_array_equal, names.load(layout, params, saved), params
  )
  back = {k: torch.from_numpy(v) for k, v in saved.items()}
  report = model.model.load_state_dict(back, strict=False)
  assert not report.unexpected_keys
  assert all(name.startswith('decoder.') for name in report.missing_keys)


@pytest.mark.parametrize('mels', [80, 128])
def test_log_mel_equals_their_extractor(mels):
  rng = np.random.default_rng(0)
  wave = rng.standard_normal(16000 + 77).astype(np.float32)
  # Loud where it is mirrored; at the end, more than 8 decades below that.
  wave *= np.linspace(0.9, 0, len(wave), dtype=np.float32) ** 4
  extractor = transformers.WhisperFeatureExtractor(feature_size=mels)
  want = extractor._np_extract_fbank_features(wave[None], 'cpu')[0].T
  got = whisper.log_mel(wave, mels)
  assert got.shape == want.shape == (100, mels)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_sinusoids_are_theirs():
  sinusoids = transformers.models.whisper.modeling_whisper.sinusoids
  want = sinusoids(1500, 384).numpy()
  # float32 angles up to 1,500 radians are off by 1e-4.
  np.testing.assert_allclose(whisper.sinusoids(1500, 384), want, atol=2e-4)


def test_tiny_is_transformers_default():
  with torch.device('meta'):
    model = transformers.WhisperModel(transformers.WhisperConfig())
  want = {k: tuple(v.shape) for k, v in model.encoder.state_dict().items()}
  cfg = whisper.SIZES['whisper_tiny']
  ours = nn.unbox(whisper.abstract_params(cfg))
  got = names.their_shapes(whisper_names.places(cfg), ours)
  assert got == {f'encoder.{k}': v for k, v in want.items()}
