"""Where the tensors of Hugging Face's T5 and UMT5 go."""

from mirage_jax.encoders.names import Place, Places
from mirage_jax.encoders.t5 import T5Config


def places(cfg: T5Config) -> Places:
  """The layout of T5EncoderModel, or of the encoder in a whole T5."""
  found = [Place('shared.weight', 'table')]
  heads = {'d': cfg.head_dim}
  into, out = '(h d) c -> c h d', 'c (h d) -> h d c'
  for i in range(cfg.depth):
    at = f'encoder.block.{i}.layer'

    def put(name, path, pattern='... -> ...', sizes=None, i=i, at=at):
      name, path = f'{at}.{name}.weight', f'blocks/{path}'
      found.append(Place(name, path, pattern, (i,), sizes=sizes or {}))

    for name in 'qkv':
      put(f'0.SelfAttention.{name}', f'attn/{name}/kernel', into, heads)
    put('0.SelfAttention.o', 'attn/out/kernel', out, heads)
    if cfg.bias_in_every_block:
      put('0.SelfAttention.relative_attention_bias', 'bias/table')
    put('0.layer_norm', 'attn_norm/scale')
    for theirs, ours in (('wi_0', 'gate'), ('wi_1', 'up'), ('wo', 'down')):
      put(f'1.DenseReluDense.{theirs}', f'mlp/{ours}/kernel', 'o i -> i o')
    put('1.layer_norm', 'mlp_norm/scale')
  if not cfg.bias_in_every_block:
    name = 'encoder.block.0.layer.0.SelfAttention.relative_attention_bias'
    found.append(Place(f'{name}.weight', 'bias/table'))
  found.append(Place('encoder.final_layer_norm.weight', 'norm/scale'))
  kind = 'UMT5' if cfg.bias_in_every_block else 'T5 v1.1'
  return Places(
    f'a {kind} encoder of width {cfg.width} and depth {cfg.depth}',
    tuple(found),
    ignored=('decoder.', 'lm_head.'),
    aliases={'encoder.embed_tokens.weight': 'shared.weight'},
  )
