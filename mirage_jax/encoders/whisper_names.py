"""Where the tensors of Hugging Face's Whisper go."""

from mirage_jax.encoders.block_names import CONV, block, linear, norm
from mirage_jax.encoders.names import Place, Places
from mirage_jax.encoders.whisper import WhisperConfig

# Ours to theirs, inside a block.
_NAMES = {
  'attn': 'self_attn',
  'attn_norm': 'self_attn_layer_norm',
  'up': 'fc1',
  'down': 'fc2',
  'mlp_norm': 'final_layer_norm',
}


def places(cfg: WhisperConfig) -> Places:
  """The layout of the encoder in a WhisperModel."""
  found = linear('encoder.conv1', 'conv0', CONV)
  found += linear('encoder.conv2', 'conv1', CONV)
  found.append(Place('encoder.embed_positions.weight', 'positions'))
  size = cfg.width // cfg.num_heads
  for i in range(cfg.depth):
    found += block(i, f'encoder.layers.{i}', _NAMES, size, 'qv')
  found += norm('encoder.layer_norm', 'norm')
  return Places(
    f'a Whisper model of width {cfg.width}, depth {cfg.depth} and '
    f'{cfg.mels} mels',
    tuple(found),
    prefixes=('model.',),
    ignored=('decoder.', 'proj_out.'),
  )
