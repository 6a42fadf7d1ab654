r"""Adds features of frozen encoders to the shards of `launch.prepare`.

  python -m launch.features --data data/latents/train --clips data/clips/train \
      --speech weights/wav2vec2 --text weights/t5 --tokenizer spiece.model \
      --out data/features/train

--speech and --text are folders that `launch.convert` wrote: wav2vec 2.0,
HuBERT, WavLM or Whisper, and T5 or UMT5; one of them may be left out. OUT holds
the records of --data with

  audio      the speech encoder's features at 25 a second in place of log-mel,
             its last layer or --layers side by side
  text       the text encoder's features of the caption

How they are projected is learned: train on OUT with

  --config.model.audio.in_dim=1024 --config.model.text.in_dim=4096 \
  --config.model.text_vocab=0 --config.data.text_length=256

(width of the encoder times the number of layers; width of the text encoder).

Run the same command again after a kill: it continues, and the result is the
same to the byte.
"""

from collections.abc import Iterator, Mapping, Sequence
import pathlib
import sys
from typing import Any
import zlib

from absl import app, flags
from flax import traverse_util
import jax
from jaxtyping import Float
import numpy as np

from launch import convert_ours, encode, shards, tokenizer, workers
from launch.errors import UserError, one_line
from mirage_jax import audio, augment, config as config_lib
from mirage_jax.encoders import frames, t5, wav2vec2, whisper

KNOWN = 64  # Captions whose features are kept.

_DATA = flags.DEFINE_string('data', None, 'folder of latents shards')
_CLIPS = flags.DEFINE_string(
  'clips', None, 'folder of clips shards that --data was made of, for --speech'
)
_OUT = flags.DEFINE_string('out', None, 'folder for the shards')
_SPEECH = flags.DEFINE_string('speech', None, 'converted speech encoder')
_LAYERS = flags.DEFINE_list(
  'layers', ['last'], 'hidden states, 0 the input of the blocks, or last'
)
_VOICES = flags.DEFINE_integer(
  'voices', 1, 'variants of the sound; the first is unchanged', 1
)
_TEXT = flags.DEFINE_string('text', None, 'converted T5 or UMT5')
_TOKENIZER = flags.DEFINE_string(
  'tokenizer', None, 'spiece.model or tokenizer.json of the text encoder'
)
_LENGTH = flags.DEFINE_integer(
  'text_length', 256, 'most tokens of a caption', 1
)


def main(_: list[str]) -> None:
  with one_line():
    needed = {'data': _DATA, 'out': _OUT}
    if _SPEECH.value:
      needed['clips'] = _CLIPS
    if _TEXT.value:
      needed['tokenizer'] = _TOKENIZER
    missing = [name for name, flag in needed.items() if not flag.value]
    if missing or not (_SPEECH.value or _TEXT.value):
      missing = missing or ['speech or --text']
      raise UserError(f'--{" and --".join(missing)} needed; see --help')
    data = pathlib.Path(_DATA.value)
    paths, sizes, manifest = inputs(data)
    folder = shards.ShardFolder(_OUT.value, manifest, len(paths))
    if missing := folder.missing():
      make(folder, paths, sizes, missing)
    report = folder.finish()
    state = 'ready' if missing else 'was ready; nothing to do'
    print(f'{folder.path}: {report["clips"]} clips, {state}')


def inputs(
  data: pathlib.Path,
) -> tuple[list[pathlib.Path], list[int], dict[str, Any]]:
  """The shards of --data, their clips, and all that the result depends on.

  Raises:
    UserError: a folder is not what its flag says.
  """
  paths, report = finished(data, 'latents')
  manifest: dict[str, Any] = {'stage': 'features'}
  manifest |= {'latents': encode.file_hash(data / 'manifest.json')}
  if _SPEECH.value:
    clips = pathlib.Path(_CLIPS.value)
    finished(clips, 'clips')
    made_of = shards.read_json(data / 'manifest.json').get('clips')
    if encode.file_hash(clips / 'manifest.json') != made_of:
      raise UserError(f'{clips}: are not the clips that {data} was made of')
    manifest |= {'speech': weights_hash(_SPEECH.value)}
    manifest |= {'layers': _LAYERS.value, 'voices': _VOICES.value}
  if _TEXT.value:
    manifest |= {'text': weights_hash(_TEXT.value)}
    manifest |= {'text_length': _LENGTH.value}
  return paths, [report['per_shard'][p.name] for p in paths], manifest


def finished(
  folder: pathlib.Path, stage: str
) -> tuple[list[pathlib.Path], Mapping[str, Any]]:
  """Shards and report of a folder of `launch.prepare`.

  Raises:
    UserError: it is not one, of another stage, or not finished.
  """
  if not (folder / 'report.json').exists():
    raise UserError(
      f'{folder}: is no finished folder of launch.prepare --stage {stage}'
    )
  found = shards.read_json(folder / 'manifest.json').get('stage')
  if found != stage:
    raise UserError(f'{folder}: holds {found}, not {stage}')
  report = shards.read_json(folder / 'report.json')
  return sorted(folder.glob('*.array_record')), report


def weights_hash(folder: str) -> str:
  """UserError if `launch.convert` has not finished the folder."""
  path = pathlib.Path(folder) / 'manifest.json'
  if not path.exists():
    raise UserError(f'{folder}: is no folder that launch.convert wrote')
  return encode.file_hash(path)


def make(
  folder: shards.ShardFolder,
  paths: Sequence[pathlib.Path],
  sizes: Sequence[int],
  missing: Sequence[int],
) -> None:
  """Writes the shards that are missing."""
  speech = text = None
  if _SPEECH.value:
    speech = speech_encoder(_SPEECH.value, _LAYERS.value)
  if _TEXT.value:
    text = TextEncoder(_TEXT.value, _TOKENIZER.value, _LENGTH.value)

  def task(index):
    path = paths[index]
    clips = _waves(pathlib.Path(_CLIPS.value) / path.name) if speech else {}
    folder.write(index, outcomes(path, clips, speech, text, _VOICES.value))

  total, left = sum(sizes), sum(sizes[k] for k in missing)
  workers.run(task, missing, 0, total, total - left, 'features')


def outcomes(
  path: pathlib.Path,
  waves: Mapping[str, Float[np.ndarray, '_']],
  speech: audio.AudioFeatures | None,
  text: 'TextEncoder | None',
  voices: int,
) -> Iterator[shards.Outcome]:
  """One record for each of a latents shard.

  `audio` becomes float16 [V N Ca] and `front_end` says so; `text` float16
  [L Ct] is new. Changed voices are seeded by the id.
  """
  for record in shards.read_shard(path):
    clip = str(record['id'])
    if speech is not None:
      if clip not in waves:
        raise UserError(
          f'{path}: {clip} is not in the clips shard of that name'
        )
      others = [wave for other, wave in waves.items() if other != clip]
      tokens = []
      for variant in range(voices):
        wave = waves[clip]
        if variant:
          rng = np.random.default_rng([zlib.crc32(clip.encode()), variant])
          wave = augment.augment_wave(wave, rng, others)
        tokens.append(speech(wave, int(record['num_frames'])))
      record['audio'] = half(np.stack(tokens), clip)
      record['front_end'] = np.array('speech encoder')
    if text is not None:
      record['text'] = half(text(str(record['caption'])), clip)
    yield shards.Outcome(clip, record)
    workers.advance()


def half(values: np.ndarray, clip: str) -> Float[np.ndarray, '*n']:
  """float16, of which no more is kept; UserError if it cannot hold them."""
  with np.errstate(over='ignore'):
    small = np.asarray(values, np.float16)
  if not np.isfinite(small).all():
    raise UserError(
      f'clip {clip}: features up to {np.abs(values).max():.3g} do not fit '
      'float16; take the last layer, or other weights'
    )
  return small


def speech_encoder(folder: str, layers: Sequence[str]) -> audio.AudioFeatures:
  """The front end that converted weights make.

  Raises:
    UserError: they are of no speech encoder, or it has no such layer.
  """
  config, params = weights(folder)
  kinds = {
    'wav2vec2': (wav2vec2.Wav2Vec2Config, frames.Wav2Vec2Features),
    'whisper': (whisper.WhisperConfig, frames.WhisperFeatures),
  }
  name = next((kind for kind in kinds if kind in config), None)
  if name is None:
    raise UserError(f'--speech={folder}: is no speech encoder')
  make_config, front_end = kinds[name]
  cfg = config_lib.build(make_config, config[name])
  allowed = ['last', *map(str, range(cfg.depth + 1))]
  if wrong := [layer for layer in layers if layer not in allowed]:
    raise UserError(
      f'--layers={",".join(layers)}: {wrong[0]!r} is none of last, 0 ... '
      f'{cfg.depth}'
    )
  picked = tuple(None if x == 'last' else int(x) for x in layers)
  return front_end(cfg, params, picked)


class TextEncoder:
  """Captions to features; one that comes again soon is not encoded again."""

  def __init__(self, folder: str, tokens: str, length: int):
    """Raises UserError for weights or a tokenizer that are none."""
    config, self._params = weights(folder)
    if 't5' not in config:
      raise UserError(f'--text={folder}: is no T5')
    self._cfg = config_lib.build(t5.T5Config, config['t5'])
    self._length, self._where = length, tokens
    self._tokens = tokenizer.load(tokens)
    self._known: dict[str, np.ndarray] = {}
    self._apply = jax.jit(t5.T5Encoder(self._cfg).apply)

  def __call__(self, caption: str) -> Float[np.ndarray, 'L Ct']:
    """Features of the caption's first tokens, of which there are any number."""
    if caption not in self._known:
      ids = np.array(self._tokens(caption)[: self._length], np.int32)
      if ids.max(initial=0) >= self._cfg.vocab or ids.min(initial=0) < 0:
        raise UserError(
          f'{self._where}: gives id {ids.max()} of {self._cfg.vocab}: it is of '
          'another checkpoint'
        )
      count = len(ids)
      ids = np.pad(ids, (0, self._length - count))
      mask = np.arange(self._length) < count
      features, _ = self._apply({'params': self._params}, ids[None], mask[None])
      if len(self._known) >= KNOWN:
        self._known.pop(next(iter(self._known)))
      self._known[caption] = np.asarray(features[0, :count], np.float32)
    return self._known[caption]


def weights(folder: str) -> tuple[Mapping[str, Any], Any]:
  """Config and parameters of what `launch.convert` wrote, on the device."""
  arrays = convert_ours.open_arrays(folder)
  flat = {
    tuple(path.split('/')[1:]): jax.device_put(arrays.get(path, None))
    for path in arrays.specs
  }
  return arrays.config, traverse_util.unflatten_dict(flat)


def _waves(path):
  if not path.exists():
    raise UserError(f'{path}: no such shard; --clips are not those of --data')
  return {str(clip['id']): clip['wave'] for clip in shards.read_shard(path)}


if __name__ == '__main__':
  sys.exit(app.run(main))
