"""The foreign models at toy sizes: weights and inputs that need no torch.

`golden.npz` beside this file has what diffusers and transformers make of them;
`errors_parity_test.py` writes it, and compares it where they are installed.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple
import zlib

from flax import linen as nn
import jax
import numpy as np

from mirage_jax import config, dit, mochi_vae_weights, mochi_weights
from mirage_jax.encoders import (
  names,
  t5,
  t5_names,
  wav2vec2,
  wav2vec2_names,
  whisper,
  whisper_names,
)
from mirage_jax.vae import Vae, VaeConfig

GOLDEN = pathlib.Path(__file__).with_name('golden.npz')
FAST = {'xla_backend_optimization_level': 0}  # To compile.

MOCHI = config.MirageConfig(
  depth=3,
  num_heads=2,
  head_dim=16,
  video=config.StreamConfig(32, 4 * 32 * 2 // 3),
  text=config.StreamConfig(24, 4 * 24 * 2 // 3, 32, rope=False),
  latent_channels=4,
)
VAE = VaeConfig(
  encoder_channels=32,
  decoder_channels=32,
  multipliers=(1, 2, 2, 3),
  encoder_blocks=(1, 1, 0, 1, 1),
  decoder_blocks=(1, 1, 0, 1, 1),
  latent_channels=4,
)
# As in `mochi_vae_parity_test`, where the whole of diffusers' decoder is ours.
FLAT_VAE = dataclasses.replace(VAE, time_factors=(1, 1, 1))
T5 = t5.T5Config(24, 3, 3, 40, head_dim=16, vocab=50)
SPEECH = wav2vec2.Wav2Vec2Config(
  width=32,
  depth=2,
  num_heads=4,
  mlp_dim=40,
  conv_dim=16,
  kernels=(10, 3, 2),
  strides=(5, 2, 2),
  position_kernel=12,
  position_groups=4,
)
_STABLE = dataclasses.replace(SPEECH, stable=True, position_kernel=7)
_BIASED = dict(num_buckets=16, max_distance=40)
SPEECHES = {
  'wav2vec2_base': ('Wav2Vec2', SPEECH),
  'wav2vec2_large': ('Wav2Vec2', _STABLE),
  'hubert_base': ('Hubert', SPEECH),
  'hubert_large': ('Hubert', _STABLE),
  'wavlm_base': ('WavLM', dataclasses.replace(SPEECH, **_BIASED)),
  'wavlm_large': (
    'WavLM',
    dataclasses.replace(SPEECH, stable=True, conv_bias=False, **_BIASED),
  ),
}
WHISPER = whisper.WhisperConfig(32, 2, 4, mels=10, max_features=20)


class Toy(NamedTuple):
  """One model.

  Attributes:
    cfg: Ours.
    layout: The checkpoint's names.
    abstract: Our parameters' shapes.
    inputs: By name.
    run: (cfg, params, inputs) -> output; of an encoder of text or speech with
      hidden=True, too: output and hidden states.
  """

  cfg: Any
  layout: names.Places
  abstract: Any
  inputs: Mapping[str, np.ndarray]
  run: Callable[..., jax.Array]


def draw(toy: Toy) -> dict[str, np.ndarray]:
  """A checkpoint in their layout; each tensor depends on its name alone."""
  made = {}
  for name, shape in names.their_shapes(toy.layout, toy.abstract).items():
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    x = rng.standard_normal(shape, np.float32)
    # Logits of moderate size; no ones and zeros: every number must matter.
    fan = max(int(np.prod(shape[1:])), 1) if len(shape) > 1 else 10
    is_scale = 'norm' in name and name.endswith('weight')
    made[name] = (x / np.float32(fan) ** 0.5 + is_scale).astype(np.float32)
  return made


def params(toy: Toy) -> Any:
  """The same as our parameters."""
  return names.load(toy.layout, toy.abstract, draw(toy))


def output(toy: Toy, **changes: Any) -> np.ndarray:
  """What ours makes of its inputs, with changes of its config."""
  cfg = dataclasses.replace(toy.cfg, **changes)
  run = jax.jit(functools.partial(toy.run, cfg), compiler_options=FAST)
  return np.asarray(run(params(toy), toy.inputs), np.float32)


def mochi() -> Toy:
  """Full, partial and empty text at three noise levels."""
  rng = np.random.default_rng(0)
  inputs = {
    'video': rng.standard_normal((3, 2, 4, 6, 4), np.float32),
    'sigma': np.array([1.0, 0.7, 0.013], np.float32),
    'text': rng.standard_normal((3, 5, 32), np.float32),
    'text_mask': np.arange(5)[None] < np.array([5, 2, 0])[:, None],
  }

  def run(cfg, weights, inputs):
    return dit.Mirage(cfg).apply({'params': weights}, *_split(inputs))

  init = lambda key: dit.Mirage(MOCHI).init(key, *_split(inputs))
  made = nn.unbox(jax.eval_shape(init, jax.random.key(0)))['params']
  return Toy(MOCHI, mochi_weights.diffusers(MOCHI), made, inputs, run)


def _split(inputs):
  cond = {name: inputs[name] for name in ('text', 'text_mask')}
  return inputs['video'], inputs['sigma'], cond


def vae(cfg: VaeConfig, method: str, shape: tuple[int, ...]) -> Toy:
  """The encoder (mean and log variance) or the decoder."""
  rng = np.random.default_rng(1)
  inputs = {'x': rng.uniform(-1, 1, shape).astype(np.float32)}

  def run(cfg, weights, inputs):
    got = Vae(cfg).apply({'params': weights}, inputs['x'], method=method)
    return jax.numpy.concatenate(got, -1) if method == 'encode' else got

  x = jax.ShapeDtypeStruct((1, 7, 16, 16, 3), np.float32)
  key = jax.random.key(0)
  made = jax.eval_shape(Vae(cfg).init, key, x, key)['params']
  return Toy(cfg, mochi_vae_weights.diffusers(cfg), made, inputs, run)


def encode(module: type[nn.Module], *names: str) -> Callable[..., Any]:
  """`Toy.run` of an encoder that takes inputs of these names."""

  def run(cfg, weights, inputs, hidden=False):
    args = [inputs[name] for name in names]
    both = module(cfg).apply({'params': weights}, *args, hidden=hidden)
    return both if hidden else both[0]

  return run


def text(cfg: t5.T5Config) -> Toy:
  """An odd length, whole, half and one token of it there."""
  ids = np.random.default_rng(0).integers(0, 50, (3, 37)).astype(np.int32)
  mask = np.arange(37)[None] < np.array([37, 20, 1])[:, None]
  run = encode(t5.T5Encoder, 'ids', 'mask')
  made = nn.unbox(t5.abstract_params(cfg))
  inputs = {'ids': ids, 'mask': mask}
  return Toy(cfg, t5_names.places(cfg), made, inputs, run)


def speech(cfg: wav2vec2.Wav2Vec2Config) -> Toy:
  """An odd number of samples, two masks."""
  lengths = np.array([1237, 803])
  wave = np.random.default_rng(0).standard_normal((2, 1237), np.float32)
  mask = np.arange(1237)[None] < lengths[:, None]
  wave = np.where(mask, wave, 0).astype(np.float32)
  run = encode(wav2vec2.Wav2Vec2, 'wave', 'mask')
  made = nn.unbox(wav2vec2.abstract_params(cfg))
  inputs = {'wave': wave, 'mask': mask}
  return Toy(cfg, wav2vec2_names.places(cfg), made, inputs, run)


def listener() -> Toy:
  """Whisper's encoder on as many frames as it has positions for."""
  cfg = WHISPER
  mel = np.random.default_rng(0).standard_normal((2, 40, cfg.mels), np.float32)
  run = encode(whisper.WhisperEncoder, 'mel')
  made = nn.unbox(whisper.abstract_params(cfg))
  return Toy(cfg, whisper_names.places(cfg), made, {'mel': mel}, run)


TOYS: dict[str, Callable[[], Toy]] = {
  'mochi': mochi,
  'mochi_vae_encoder': lambda: vae(VAE, 'encode', (2, 13, 16, 24, 3)),
  'mochi_vae_decoder': lambda: vae(FLAT_VAE, 'decode', (1, 4, 2, 3, 4)),
  't5': lambda: text(T5),
  'umt5': lambda: text(dataclasses.replace(T5, bias_in_every_block=True)),
  **{
    name: functools.partial(speech, cfg) for name, (_, cfg) in SPEECHES.items()
  },
  'whisper': listener,
}
