"""Where the tensors of a plain transformer block, and around it, go."""

from mirage_jax.encoders.names import Place

CONV = 'o i k -> k i o'


def block(
  i: int, at: str, names: dict[str, str], head_dim: int, biases: str = 'qkv'
) -> list[Place]:
  """Block i of `layers.Block`, whose tensors begin with `at`.

  Args:
    i: Index in our stacked parameters.
    at: Begin of their names.
    names: Of attn, attn_norm, up, down and mlp_norm, theirs.
    head_dim: Size of a head.
    biases: Which of q, k and v have a bias.
  """
  found, attn, d = [], f'{at}.{names["attn"]}', {'d': head_dim}

  def put(name, path, pattern='... -> ...', **sizes):
    found.append(Place(name, f'blocks/{path}', pattern, (i,), sizes=sizes))

  for x in 'qkv':
    put(f'{attn}.{x}_proj.weight', f'attn/{x}/kernel', '(h d) c -> c h d', **d)
    if x in biases:
      put(f'{attn}.{x}_proj.bias', f'attn/{x}/bias', '(h d) -> h d', **d)
  put(f'{attn}.out_proj.weight', 'attn/out/kernel', 'c (h d) -> h d c', **d)
  put(f'{attn}.out_proj.bias', 'attn/out/bias')
  for x in ('up', 'down'):
    put(f'{at}.{names[x]}.weight', f'mlp/{x}/kernel', 'o i -> i o')
    put(f'{at}.{names[x]}.bias', f'mlp/{x}/bias')
  for x in ('attn_norm', 'mlp_norm'):
    put(f'{at}.{names[x]}.weight', f'{x}/scale')
    put(f'{at}.{names[x]}.bias', f'{x}/bias')
  return found


def norm(name: str, path: str) -> list[Place]:
  """A LayerNorm outside the blocks."""
  weight = Place(f'{name}.weight', f'{path}/scale')
  return [weight, Place(f'{name}.bias', f'{path}/bias')]


def linear(
  name: str, path: str, pattern: str = 'o i -> i o', bias: bool = True
) -> list[Place]:
  """A Linear, or with a pattern a convolution, outside the blocks."""
  found = [Place(f'{name}.weight', f'{path}/kernel', pattern)]
  return found + [Place(f'{name}.bias', f'{path}/bias')] * bias
