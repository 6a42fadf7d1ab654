"""Where the tensors of Hugging Face's wav2vec 2.0, HuBERT and WavLM go."""

from mirage_jax.encoders.block_names import CONV, block, linear, norm
from mirage_jax.encoders.names import Place, Places
from mirage_jax.encoders.wav2vec2 import Wav2Vec2Config

_POSITIONS = 'encoder.pos_conv_embed.conv'
# What only pre-training or recognition reads.
_HEADS = ('quantizer.', 'project_hid.', 'project_q.', 'lm_head.')


def places(cfg: Wav2Vec2Config) -> Places:
  """The layout of Wav2Vec2Model, HubertModel and WavLMModel."""
  found = _features(cfg)
  for i in range(cfg.depth):
    found += block(i, f'encoder.layers.{i}', _NAMES, cfg.width // cfg.num_heads)
    if cfg.num_buckets:
      found += _gate(i, f'encoder.layers.{i}.attention')
  found += norm('encoder.layer_norm', 'norm')
  return Places(
    f'a {"WavLM" if cfg.num_buckets else "wav2vec 2.0 or HuBERT"} model of '
    f'width {cfg.width} and depth {cfg.depth}, '
    f'{"layer" if cfg.stable else "group"} norm',
    tuple(found),
    prefixes=('wav2vec2.', 'hubert.', 'wavlm.'),
    ignored=(*_HEADS, 'masked_spec_embed'),
    aliases={
      f'{_POSITIONS}.weight_g': f'{_POSITIONS}.parametrizations.weight.original0',
      f'{_POSITIONS}.weight_v': f'{_POSITIONS}.parametrizations.weight.original1',
    },
  )


# Ours to theirs, inside a block.
_NAMES = {
  'attn': 'attention',
  'attn_norm': 'layer_norm',
  'up': 'feed_forward.intermediate_dense',
  'down': 'feed_forward.output_dense',
  'mlp_norm': 'final_layer_norm',
}


def _features(cfg):
  found = []
  for i in range(len(cfg.kernels)):
    at = f'feature_extractor.conv_layers.{i}'
    found += linear(f'{at}.conv', f'convs/conv{i}', CONV, cfg.has_conv_bias)
    if cfg.stable or i == 0:
      found += norm(f'{at}.layer_norm', f'convs/norm{i}')
  found += norm('feature_projection.layer_norm', 'features_norm')
  found += linear('feature_projection.projection', 'features')
  weight = f'{_POSITIONS}.parametrizations.weight'
  found += [
    Place(f'{weight}.original0', 'positions/scale', '1 1 k -> k'),
    Place(f'{weight}.original1', 'positions/kernel', CONV),
    Place(f'{_POSITIONS}.bias', 'positions/bias'),
  ]
  if cfg.num_buckets:
    name = 'encoder.layers.0.attention.rel_attn_embed.weight'
    found.append(Place(name, 'bias/table'))
  return found


def _gate(i, at):
  gate, index = 'blocks/gate', (i,)
  name, four = f'{at}.gru_rel_pos_linear', {'n': 4}
  weight = Place(
    f'{name}.weight',
    f'{gate}/linear/kernel',
    '(g n) d -> d g n',
    index,
    sizes=four,
  )
  bias = Place(
    f'{name}.bias', f'{gate}/linear/bias', '(g n) -> g n', index, sizes=four
  )
  scale = Place(
    f'{at}.gru_rel_pos_const', f'{gate}/scale', '1 h 1 1 -> h', index
  )
  return [weight, bias, scale]
