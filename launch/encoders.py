"""Frozen encoders that `launch.convert` wrote, made ready to encode.

`launch.features` and sampling both encode by this module, at the same shapes:
on one machine, the same sound and the same text give the same bits.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import hashlib
import json
import os
import pathlib
from typing import Any

from flax import traverse_util
import jax
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from launch import convert_ours, encode, tokenizer, windows
from launch.encoder_sources import SpeechSource, TextSource
from launch.errors import UserError
from launch.shards import read_json
from mirage_jax import audio, config as config_lib
from mirage_jax.encoders import frames, t5, wav2vec2, whisper

KINDS = {
  'wav2vec2': (wav2vec2.Wav2Vec2Config, frames.Wav2Vec2Features),
  'whisper': (whisper.WhisperConfig, frames.WhisperFeatures),
}


def speech_source(
  folder: str | os.PathLike, layers: Sequence[str], seconds: float
) -> SpeechSource:
  """A speech encoder as a bundle tells of it; its weights are not read.

  Args:
    folder: what `launch.convert` wrote.
    layers: as in `SpeechSource`.
    seconds: the longest sound that will be encoded.

  Raises:
    UserError: the folder is of no speech encoder, or it has no such layer.
  """
  kind, cfg, digest = _look(folder, {k: make for k, (make, _) in KINDS.items()})
  allowed = ['last', *map(str, range(cfg.depth + 1))]
  if wrong := [layer for layer in layers if layer not in allowed]:
    raise UserError(
      f'--layers={",".join(layers)}: {wrong[0]!r} is none of last, 0 ... '
      f'{cfg.depth}'
    )
  if kind == 'whisper':
    seconds = min(seconds, cfg.max_features * 2 * whisper.HOP / audio.RATE)
  width = cfg.width * len(layers)
  return SpeechSource(kind, str(folder), digest, width, tuple(layers), seconds)


def text_source(
  folder: str | os.PathLike, tokens: str | os.PathLike, length: int
) -> TextSource:
  """A text encoder as a bundle tells of it; its weights are not read.

  Args:
    folder: what `launch.convert` wrote.
    tokens: its tokenizer, see `tokenizer.load`.
    length: tokens that it will see, padding included.

  Raises:
    UserError: the folder is of no T5, or there is no tokenizer.
  """
  kind, cfg, digest = _look(folder, {'t5': t5.T5Config})
  path = tokenizer.find(tokens)
  read = encode.file_hash(path)
  return TextSource(
    kind, str(folder), digest, cfg.width, str(path), read, length
  )


def load_speech(source: SpeechSource) -> audio.AudioFeatures:
  """The front end, its weights on the device."""
  config, params = _weights(source.weights)
  make_config, front_end = KINDS[source.kind]
  cfg = config_lib.build(make_config, config[source.kind])
  picked = tuple(None if x == 'last' else int(x) for x in source.layers)
  return front_end(cfg, params, picked)


def hear(
  speech: audio.AudioFeatures,
  wave: Float[np.ndarray, 'S'],
  num_frames: int,
  seconds: float,
) -> Float[np.ndarray, 'N Ca']:
  """Tokens of a sound's first frames, of silence after its end.

  Args:
    speech: the front end.
    wave: float32 at 16 kHz.
    num_frames: tokens to make.
    seconds: what is longer is encoded in stretches of this length, which
      overlap by a quarter: Whisper hears 30 s at once.
  """
  size = max(round(seconds * audio.TOKEN_RATE), 1)
  parts = []
  for begin, first, end in windows.overlapping(num_frames, size, size // 4):
    last = min(begin + size, num_frames)
    part = wave[begin * frames.FRAME : last * frames.FRAME]
    tokens = speech(part, last - begin)
    parts.append(tokens[first - begin : end - begin])
  return np.concatenate(parts)


class TextEncoder:
  """Captions to features."""

  def __init__(self, source: TextSource):
    """Raises UserError for weights or a tokenizer that are damaged."""
    config, self._params = _weights(source.weights)
    self._cfg = config_lib.build(t5.T5Config, config['t5'])
    self._source = source
    self._tokens = tokenizer.load(source.tokenizer)

  def __call__(self, caption: str) -> Float[np.ndarray, 'L Ct']:
    """float16 features of the caption's first tokens.

    There may be fewer than the encoder sees, and an empty caption has none, as
    in Mochi.

    Raises:
      UserError: the tokenizer is of another checkpoint, or float16 cannot hold
        the features.
    """
    if not caption:
      return np.zeros((0, self._cfg.width), np.float16)
    length = self._source.length
    ids = np.array(self._tokens(caption)[:length], np.int32)
    if ids.max(initial=0) >= self._cfg.vocab or ids.min(initial=0) < 0:
      raise UserError(
        f'{self._source.tokenizer}: gives id {ids.max()} of {self._cfg.vocab}: '
        'it is of another checkpoint'
      )
    count = len(ids)
    ids = np.pad(ids, (0, length - count))[None]
    mask = (np.arange(length) < count)[None]
    features = encode_text(self._cfg, self._params, ids, mask)
    return half(np.asarray(features[0, :count]), f'caption {caption!r}')


@functools.partial(jax.jit, static_argnums=0)
def encode_text(
  cfg: t5.T5Config,
  params: Any,
  ids: Int[Array, 'B L'],
  mask: Bool[Array, 'B L'],
) -> Float[Array, 'B L Ct']:
  """The encoder's output, compiled once for all that load it."""
  return t5.T5Encoder(cfg).apply({'params': params}, ids, mask)[0]


def half(values: np.ndarray, what: str) -> Float[np.ndarray, '*n']:
  """float16, of which no more is kept; UserError if it cannot hold them."""
  with np.errstate(over='ignore'):
    small = np.asarray(values, np.float16)
  if not np.isfinite(small).all():
    raise UserError(
      f'{what}: features up to {np.abs(values).max():.3g} do not fit float16; '
      'take the last layer, or other weights'
    )
  return small


def _look(
  folder: str | os.PathLike, kinds: Mapping[str, Callable[..., Any]]
) -> tuple[str, Any, str]:
  """Kind, sizes and digest of an encoder; UserError if it is none of them."""
  path = pathlib.Path(folder)
  if not (path / 'manifest.json').exists():
    raise UserError(f'{folder}: is no folder that launch.convert wrote')
  config = read_json(path / 'config.json')
  kind = next((kind for kind in kinds if kind in config), None)
  if kind is None:
    wanted = 'T5' if 't5' in kinds else 'speech encoder'
    raise UserError(f'{folder}: is no {wanted}')
  numbers = read_json(path / 'manifest.json')['tensors']
  text = json.dumps([config[kind], numbers], sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:16]
  return kind, config_lib.build(kinds[kind], config[kind]), digest


def _weights(folder: str) -> tuple[Mapping[str, Any], Any]:
  """Config and parameters of what `launch.convert` wrote, on the device."""
  arrays = convert_ours.open_arrays(folder)
  flat = {
    tuple(path.split('/')[1:]): jax.device_put(arrays.get(path, None))
    for path in arrays.specs
  }
  return arrays.config, traverse_util.unflatten_dict(flat)
