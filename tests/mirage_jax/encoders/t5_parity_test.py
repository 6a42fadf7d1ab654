"""Our T5 encoder against transformers': every hidden state and the output."""

from flax import linen as nn
import jax
import numpy as np
import pytest

from mirage_jax.encoders import names, names_diff, relative, t5, t5_names

REASON = 'parity with the original needs the `convert` extra'
torch = pytest.importorskip('torch', reason=REASON)
transformers = pytest.importorskip('transformers', reason=REASON)

CONFIGS = {
  't5': t5.T5Config(24, 3, 3, 40, head_dim=16, vocab=50),
  'umt5': t5.T5Config(
    24, 2, 3, 40, head_dim=16, vocab=50, bias_in_every_block=True
  ),
}
LENGTH = 37


def make_theirs(cfg):
  torch.manual_seed(0)
  umt5 = cfg.bias_in_every_block
  make = transformers.UMT5Config if umt5 else transformers.T5Config
  config = make(
    vocab_size=cfg.vocab,
    d_model=cfg.width,
    d_kv=cfg.head_dim,
    d_ff=cfg.mlp_dim,
    num_layers=cfg.depth,
    num_heads=cfg.num_heads,
    relative_attention_num_buckets=cfg.num_buckets,
    relative_attention_max_distance=cfg.max_distance,
    feed_forward_proj='gated-gelu',
    attn_implementation='eager',
  )
  kind = transformers.UMT5EncoderModel if umt5 else transformers.T5EncoderModel
  model = kind(config).eval()
  for name, p in model.named_parameters():
    # No ones left, and logits of moderate size: every parameter must matter.
    mean = 1.0 if 'norm' in name else 0.0
    torch.nn.init.normal_(p, mean, 0.3)
  return model


@pytest.fixture(scope='module', params=CONFIGS)
def case(request):
  cfg = CONFIGS[request.param]
  model = make_theirs(cfg)
  tensors = {k: v.numpy() for k, v in model.state_dict().items()}
  ours = nn.unbox(t5.abstract_params(cfg))
  layout = t5_names.places(cfg)
  params = names.load(layout, ours, tensors)
  return cfg, model, tensors, layout, params


@pytest.fixture(scope='module')
def inputs():
  ids = np.random.default_rng(0).integers(0, 50, (3, LENGTH))
  mask = np.arange(LENGTH)[None] < np.array([LENGTH, 20, 1])[:, None]
  return ids.astype(np.int32), mask


def run_theirs(model, ids, mask):
  with torch.no_grad():
    out = model(
      torch.from_numpy(ids).long(),
      None if mask is None else torch.from_numpy(mask).long(),
      output_hidden_states=True,
    )
  hidden = [h.numpy() for h in out.hidden_states[:-1]]
  return out.last_hidden_state.numpy(), hidden


def assert_close(got, want):
  assert np.abs(np.asarray(got) - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize('masked', [False, True])
def test_output_and_hidden_states_equal_theirs(case, inputs, masked):
  cfg, model, _, _, params = case
  ids, mask = inputs
  mask = mask if masked else None
  want, want_hidden = run_theirs(model, ids, mask)
  apply = jax.jit(t5.T5Encoder(cfg).apply, static_argnames='hidden')
  got, hidden = apply({'params': params}, ids, mask, hidden=True)
  assert_close(got, want)
  assert len(hidden) == cfg.depth + 1
  # transformers has the output in place of the last one.
  for ours, theirs in zip(hidden[:-1], want_hidden, strict=True):
    assert_close(ours, theirs)


def test_names_map_both_ways(case):
  cfg, _, tensors, layout, params = case
  saved = names.save(layout, params)
  for name, tensor in saved.items():
    np.testing.assert_array_equal(tensor, tensors[name])
  assert set(tensors) - set(saved) == {'encoder.embed_tokens.weight'}
  again = names.load(layout, params, saved)
  jax.tree.map(np.testing.assert_array_equal, again, params)
  # transformers takes it back, with only the tied table's other name absent.
  report = make_theirs(cfg).load_state_dict(
    {k: torch.from_numpy(v) for k, v in saved.items()}, strict=False
  )
  assert report.missing_keys == ['encoder.embed_tokens.weight']
  assert not report.unexpected_keys


def test_another_model_is_told_apart(case):
  cfg, _, tensors, _, _ = case
  other = next(c for c in CONFIGS.values() if c != cfg)
  ours = nn.unbox(t5.abstract_params(other))
  with pytest.raises(names_diff.NamesError, match='relative_attention_bias'):
    names.load(t5_names.places(other), ours, tensors)


@pytest.mark.parametrize(('buckets', 'distance'), [(32, 128), (320, 800)])
def test_buckets_equal_theirs_at_published_sizes(buckets, distance):
  """T5's and WavLM's; theirs are float32 logarithms, cut."""
  length = 1600  # 32 s of speech at 50 Hz
  place = torch.arange(length)
  attention = transformers.models.t5.modeling_t5.T5Attention
  want = attention._relative_position_bucket(
    place[None] - place[:, None], True, buckets, distance
  )
  got = relative.buckets(length, buckets, distance)
  np.testing.assert_array_equal(got, want.numpy())
