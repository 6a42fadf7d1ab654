"""Which frozen encoders made a model's conditions, and where their weights lie.

`launch.features` leaves it in a file beside its shards, a bundle has it in its
config, and sampling encodes by it.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any, NamedTuple

from launch.errors import UserError
from mirage_jax import config as config_lib
from mirage_jax.audio import LogMel

FILE = 'encoders.json'
# How binaries that sample call each place.
FLAGS = {
  'speech': 'speech_encoder',
  'text': 'text_encoder',
  'tokenizer': 'tokenizer',
}


@dataclasses.dataclass(frozen=True)
class SpeechSource:
  """What made features of sound.

  Attributes:
    kind: 'wav2vec2' (also HuBERT and WavLM) or 'whisper'.
    weights: Folder that `launch.convert` wrote.
    digest: Of the encoder's sizes and numbers, wherever they lie.
    width: Numbers in a token: those of all layers.
    layers: Hidden states side by side, 0 the blocks' input, or 'last'.
    seconds: The longest sound encoded at once.
  """

  kind: str
  weights: str
  digest: str
  width: int
  layers: tuple[str, ...]
  seconds: float


@dataclasses.dataclass(frozen=True)
class TextSource:
  """What made features of captions.

  Attributes:
    kind: 't5', also UMT5.
    weights: As of `SpeechSource`.
    digest: Likewise.
    width: Numbers in a token.
    tokenizer: File of the tokenizer.
    tokenizer_digest: Of its bytes.
    length: Tokens that the encoder saw, padding included.
  """

  kind: str
  weights: str
  digest: str
  width: int
  tokenizer: str
  tokenizer_digest: str
  length: int


@dataclasses.dataclass(frozen=True)
class Sources:
  """The encoders of a model; None for log-mel, and for bytes or no text."""

  speech: SpeechSource | None = None
  text: TextSource | None = None


class Places(NamedTuple):
  """Where weights lie, as flags give it; '' is where they were."""

  speech: str = ''
  text: str = ''
  tokenizer: str = ''


AS_RECORDED = Places()


def of_bundle(config: Mapping[str, Any]) -> Sources:
  """As a bundle's config has them.

  Raises:
    ValueError: they are of another version.
  """
  return config_lib.build(Sources, config.get('encoders') or {})


def of_run(
  config: Mapping[str, Any], folder: str | os.PathLike | None = None
) -> Sources:
  """Those that made what a run was trained on.

  Args:
    config: of the run.
    folder: what `launch.features` made; None is config.data.train.

  Raises:
    UserError: the model takes features, and the folder does not tell whose; or
      they are of another width.
  """
  model = config_lib.build(config_lib.MirageConfig, config['model'])
  hears = model.audio is not None
  reads = model.text is not None and not model.text_vocab
  mels = hears and model.audio.in_dim == LogMel.dim
  path = pathlib.Path(folder or config['data'].get('train', '')) / FILE
  if not path.exists():
    if folder or reads or (hears and not mels):
      raise UserError(
        f'{path}: is not there, but the transformer takes features of '
        'encoders; give launch.export --features=FOLDER, one that '
        'launch.features made'
      )
    return Sources()
  found = read(path)
  found = dataclasses.replace(
    found,
    speech=found.speech if hears else None,
    text=found.text if reads else None,
  )
  widths = {'audio': (found.speech, hears and not mels, model.audio)}
  widths['text'] = found.text, reads, model.text
  for name, (source, needed, stream) in widths.items():
    width = source.width if source else 0
    if (source or needed) and width != stream.in_dim:
      raise UserError(
        f'{path}: tells of {width} numbers for {name}, the transformer takes '
        f'{stream.in_dim}; give the --features that it was trained on'
      )
  return found


def read(path: pathlib.Path) -> Sources:
  """What `launch.features` left in FILE; UserError if that is damaged."""
  try:
    return config_lib.build(Sources, json.loads(path.read_text()))
  except (ValueError, TypeError, AttributeError) as error:
    raise UserError(
      f'{path}: is damaged or of another version ({error}); run '
      'launch.features again with the same flags'
    ) from error


def moved(config: Mapping[str, Any], places: Places) -> dict[str, Any]:
  """A bundle's config with weights in other places.

  Raises:
    UserError: it names the flag of an encoder that the model does not use.
  """
  encoders = {k: v and dict(v) for k, v in config.get('encoders', {}).items()}
  for name, place in places._asdict().items():
    if not place:
      continue
    entry = encoders.get('text' if name == 'tokenizer' else name)
    if not entry:
      raise UserError(
        f'--{FLAGS[name]}: this checkpoint was not trained on features of '
        'such an encoder; leave it out'
      )
    entry['tokenizer' if name == 'tokenizer' else 'weights'] = place
  return {**config, 'encoders': encoders} if encoders else dict(config)


def find(
  name: str, source: SpeechSource | TextSource, where: str, checkpoint: str
) -> str:
  """Where weights or a tokenizer are: as recorded, or beside the checkpoint.

  Args:
    name: 'speech', 'text' or 'tokenizer'.
    source: whose.
    where: as recorded.
    checkpoint: what messages call the bundle, its path.

  Raises:
    UserError: nowhere; it tells what brings them.
  """
  beside = pathlib.Path(checkpoint).parent / pathlib.Path(where).name
  for path in (where, beside):
    if os.path.exists(path):
      return str(path)
  what = f'a folder that `launch.convert --from {source.kind}` writes'
  if name == 'tokenizer':
    what = f'spiece.model or tokenizer.json of its {source.kind}'
  raise UserError(
    f'{checkpoint}: was trained on features of {source.kind} ({source.width} '
    f'numbers), and {where} is not there; give --{FLAGS[name]}={what}'
  )
