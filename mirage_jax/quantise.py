"""Matmuls of the blocks in 8 bits, by qwix (the `quantise` extra).

Projections and MLPs of all streams, which are nearly all the work outside of
attention's scores; embeddings, modulations, norms and the last layer, which
decide much and cost little, stay as they are. Weights have one scale for each
output channel, and are quantised once. Schemes:

  int8_weights, fp8_weights  weights alone: a quarter of their memory
  int8, fp8                  and inputs, on the fly with a scale for each token:
                             faster where the hardware multiplies 8-bit numbers
"""

from typing import Any, NamedTuple

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np

from mirage_jax import config
from mirage_jax.dit import Mirage

NONE = 'none'
# Types of weights and of inputs.
SCHEMES = {
  'int8_weights': ('int8', None),
  'fp8_weights': ('float8_e4m3fn', None),
  'int8': ('int8', 'int8'),
  'fp8': ('float8_e4m3fn', 'float8_e4m3fn'),
}
# Paths of the modules whose products are quantised.
MODULES = r'(blocks|last)/\w+/(mlp/)?(qkv|q|kv|out|up|down)'
STACKED = 'blocks'  # its parameters have one more axis, the layers


def quantise(model: Mirage, params: Any, scheme: str) -> tuple[nn.Module, Any]:
  """A model and parameters for `apply`, in place of those given.

  Args:
    model: The transformer.
    params: Its parameters, float32, without boxes.
    scheme: One of `SCHEMES`.

  Raises:
    ValueError: There is no such scheme.
    ImportError: qwix is not installed.
  """
  if scheme not in SCHEMES:
    raise ValueError(
      f'there is no quantisation {scheme!r}; give one of {", ".join(SCHEMES)}.'
    )
  try:
    import qwix
  except ImportError as error:
    raise ImportError(
      "quantisation needs qwix: `pip install -e '.[quantise]'` brings it."
    ) from error
  weights, inputs = SCHEMES[scheme]
  rule = qwix.QuantizationRule(
    module_path=MODULES, weight_qtype=weights, act_qtype=inputs
  )
  model = qwix.quantize_model(model, _provider(qwix, rule))
  key, arguments = jax.random.key(0), _arguments(model.cfg)
  shapes = nn.unbox(jax.eval_shape(model.init, key, *arguments))['params']
  params = jax.tree.map(jnp.asarray, params)
  single = {k: v for k, v in params.items() if k != STACKED}
  made = dict(qwix.quantize_params(single, shapes))
  if STACKED in params:
    layer = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes[STACKED]
    )
    one = lambda stacked: qwix.quantize_params(stacked, layer)
    made[STACKED] = jax.jit(jax.vmap(one))(params[STACKED])
  return model, made


class _Weight(NamedTuple):
  """A quantised kernel, cast as arrays are."""

  kernel: Any

  def astype(self, dtype):
    return self.kernel.replace(array=self.kernel.array.astype(dtype))


def _provider(qwix, rule):
  class Provider(qwix.PtqProvider):
    def nn_param(self, module, name, *args, **kwargs):
      param = super().nn_param(module, name, *args, **kwargs)
      # A kernel's own astype raises in qwix 0.1.8 under linen.
      return _Weight(param) if hasattr(param, 'how') else param

  return Provider([rule])


def num_bytes(params: Any) -> int:
  """Memory that a tree of arrays, quantised or not, takes."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))


def _arguments(cfg: config.MirageConfig):
  """The least that a model can be initialised with."""
  side, channels = cfg.patch_size, cfg.latent_channels
  video = np.zeros((1, 1, side, side, channels), np.float32)
  cond = {'reference': video, 'reference_time': np.zeros((1, 1), np.float32)}
  for name, stream in cfg.frame_streams().items():
    cond[name] = np.zeros((1, 1, stream.in_dim), np.float32)
  if cfg.text is not None:
    shape, dtype = (1, 1, cfg.text.in_dim), np.float32
    if cfg.text_vocab:
      shape, dtype = (1, 1), np.int32
    cond['text'] = np.zeros(shape, dtype)
  return video, np.ones(1, np.float32), cond
