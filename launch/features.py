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
OUT/encoders.json tells which encoders those were: launch.export takes it into
the bundle, and whoever samples computes the same features with them.

Run the same command again after a kill: it continues, and the result is the
same to the byte.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import os
import pathlib
import sys
from typing import Any
import zlib

from absl import app, flags
from jaxtyping import Float
import numpy as np

from launch import encode, encoder_sources, encoders, shards, workers
from launch.encoder_sources import Sources
from launch.encoders import half
from launch.errors import UserError, one_line
from mirage_jax import augment

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
    made_by = sources()
    paths, sizes, manifest = inputs(data, made_by)
    folder = shards.ShardFolder(_OUT.value, manifest, len(paths))
    about = folder.path / encoder_sources.FILE
    shards.write_json(about, dataclasses.asdict(made_by))
    if missing := folder.missing():
      make(folder, paths, sizes, missing, made_by)
    report = folder.finish()
    state = 'ready' if missing else 'was ready; nothing to do'
    print(f'{folder.path}: {report["clips"]} clips, {state}')


def sources() -> Sources:
  """The encoders that the flags ask for; UserError if they are none."""
  speech = text = None
  if _SPEECH.value:
    finished(pathlib.Path(_CLIPS.value), 'clips')
    made = shards.read_json(pathlib.Path(_CLIPS.value) / 'manifest.json')
    speech = encoders.speech_source(
      os.path.abspath(_SPEECH.value), _LAYERS.value, made['max_seconds']
    )
  if _TEXT.value:
    text = encoders.text_source(
      os.path.abspath(_TEXT.value),
      os.path.abspath(_TOKENIZER.value),
      _LENGTH.value,
    )
  return Sources(speech, text)


def inputs(
  data: pathlib.Path, made_by: Sources
) -> tuple[list[pathlib.Path], list[int], dict[str, Any]]:
  """The shards of --data, their clips, and all that the result depends on.

  Raises:
    UserError: a folder is not what its flag says.
  """
  paths, report = finished(data, 'latents')
  manifest: dict[str, Any] = {'stage': 'features'}
  manifest |= {'latents': encode.file_hash(data / 'manifest.json')}
  if made_by.speech:
    clips = pathlib.Path(_CLIPS.value)
    made_of = shards.read_json(data / 'manifest.json').get('clips')
    if encode.file_hash(clips / 'manifest.json') != made_of:
      raise UserError(f'{clips}: are not the clips that {data} was made of')
    manifest |= {'speech': made_by.speech.digest}
    manifest |= {'layers': _LAYERS.value, 'voices': _VOICES.value}
  if made_by.text:
    manifest |= {'text': made_by.text.digest, 'text_length': _LENGTH.value}
    manifest |= {'tokenizer': made_by.text.tokenizer_digest}
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


def make(
  folder: shards.ShardFolder,
  paths: Sequence[pathlib.Path],
  sizes: Sequence[int],
  missing: Sequence[int],
  made_by: Sources,
) -> None:
  """Writes the shards that are missing."""
  speech = text = None
  if made_by.speech:
    ear, seconds = encoders.load_speech(made_by.speech), made_by.speech.seconds
    speech = lambda wave, count: encoders.hear(ear, wave, count, seconds)
  if made_by.text:
    text = functools.lru_cache(KNOWN)(encoders.TextEncoder(made_by.text))

  def task(index):
    path = paths[index]
    clips = _waves(pathlib.Path(_CLIPS.value) / path.name) if speech else {}
    folder.write(index, outcomes(path, clips, speech, text, _VOICES.value))

  total, left = sum(sizes), sum(sizes[k] for k in missing)
  workers.run(task, missing, 0, total, total - left, 'features')


def outcomes(
  path: pathlib.Path,
  waves: Mapping[str, Float[np.ndarray, '_']],
  speech: Callable[..., Float[np.ndarray, 'N Ca']] | None,
  text: Callable[[str], Float[np.ndarray, 'L Ct']] | None,
  voices: int,
) -> Iterator[shards.Outcome]:
  """One record for each of a latents shard.

  `speech` turns a wave and a number of frames into as many tokens. `audio`
  becomes float16 [V N Ca] and `front_end` says so; `text` float16
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
      record['audio'] = half(np.stack(tokens), f'clip {clip}')
      record['front_end'] = np.array('speech encoder')
    if text is not None:
      record['text'] = text(str(record['caption']))
    yield shards.Outcome(clip, record)
    workers.advance()


def _waves(path):
  if not path.exists():
    raise UserError(f'{path}: no such shard; --clips are not those of --data')
  return {str(clip['id']): clip['wave'] for clip in shards.read_shard(path)}


if __name__ == '__main__':
  sys.exit(app.run(main))
