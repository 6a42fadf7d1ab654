"""What a model hears and reads, made of a sound and a text as for its training.

Log-mel and bytes; or features of frozen encoders, which are then those that
`launch.features` would put into its shards.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxtyping import Bool, Float, Int
import numpy as np

from launch import encoder_sources, tokenizer
from launch.errors import UserError
from launch.windows import num_frames
from mirage_jax import text as text_lib
from mirage_jax.audio import RATE, TOKEN_RATE, AudioFeatures, LogMel
from mirage_jax.config import MirageConfig

FRAME = RATE // TOKEN_RATE  # Samples of one video frame.
KNOWN = 64  # Texts whose features are kept.
# Of one token of a text encoder, for a first guess: English has about four.
BYTES = 3


class Conditions:
  """The front ends of one model.

  A speech encoder stays once it is loaded. A text encoder may well be larger
  than the model itself, and is asked once a text: it is loaded for texts that
  are new, and let go.

  Args:
    model: the transformer.
    config: of its bundle.
    name: what messages call it, its path.

  Raises:
    UserError: it takes no sound, or features of an encoder that is not there.
  """

  def __init__(self, model: MirageConfig, config: Mapping[str, Any], name: str):
    self._name, self._model, self._window = name, model, config['data']
    self._sources = encoder_sources.of_bundle(config)
    self._speech: AudioFeatures | None = None
    self._known: dict[str, np.ndarray] = {}
    hears = LogMel.dim
    if self._sources.speech:
      hears = self._sources.speech.width
    if model.audio is None or model.audio.in_dim != hears:
      raise UserError(
        f'{name}: does not take {hears} '
        f'{"features" if self._sources.speech else "log-mel features"} of '
        'sound; give a checkpoint that was trained on them'
      )
    # What is not there is told at once.
    self._speech_place = self._find_speech() if self._sources.speech else None

  @property
  def text_length(self) -> int:
    """Bytes of text that the model reads; 0 if it takes none.

    A text encoder reads tokens; then it is about what they come to.
    """
    if self._sources.text:
      return BYTES * self._num_tokens
    return self._window['text_length'] if self._model.text_vocab else 0

  def check_text(self, flag: str, text: str) -> None:
    """UserError, naming the flag, for a text that the model cannot read."""
    if not text:
      return
    if not self.text_length:
      raise UserError(f'{flag}: this checkpoint takes no text; leave it out')
    length, most, unit = len(text.encode()), self.text_length, 'bytes'
    if self._sources.text:
      ids = tokenizer.load(self._find_text().tokenizer)
      length, most, unit = len(ids(text)), self._num_tokens, 'tokens'
    if length > most:
      raise UserError(
        f'{flag}: has {length} {unit}, this checkpoint reads {most}; shorten it'
      )

  @property
  def _num_tokens(self):
    return min(self._window['text_length'], self._sources.text.length)

  def sound(
    self, wave: Float[np.ndarray, 'S'], count: int
  ) -> Float[np.ndarray, 'N Ca']:
    """`count` tokens: those of the sound, then those of silence.

    The sound's own do not depend on what is asked for after its end, as in
    training, where a clip is encoded whole and alone. A sound longer than the
    longest clip there is encoded in stretches of that length, which overlap.
    """
    if not self._sources.speech:
      return LogMel()(wave, count)
    heard = min(num_frames(len(wave)), count)
    tokens = self._encode(wave, heard)
    if count == heard:
      return tokens
    # Of what comes after, with as much before it as is heard at once.
    size = round(self._sources.speech.seconds * TOKEN_RATE)
    begin = min(max(count - size, 0), heard)
    rest = self._encode(wave[begin * FRAME :], count - begin)
    return np.concatenate([tokens, rest[heard - begin :]])

  def _encode(self, wave, count):
    """Tokens of some frames, as of a clip that is no more than them."""
    from launch import encoders  # Brings Orbax, which takes a second.

    if self._speech is None:
      self._speech = encoders.load_speech(self._speech_place)
    seconds = self._sources.speech.seconds
    tokens = encoders.hear(self._speech, wave, count, seconds)
    return encoders.half(tokens, 'the sound').astype(np.float32)

  def learn(self, texts: Iterable[str]) -> None:
    """Encodes texts at once, so that an encoder is loaded once for all."""
    new = {text for text in texts if text and text not in self._known}
    if not new or not self._sources.text:
      return
    from launch import encoders

    encode = encoders.TextEncoder(self._find_text())
    for text in sorted(new):
      if len(self._known) >= KNOWN:
        self._known.pop(next(iter(self._known)))
      self._known[text] = encode(text)

  def text(
    self, text: str
  ) -> tuple[
    Int[np.ndarray, 'L'] | Float[np.ndarray, 'L Ct'], Bool[np.ndarray, 'L']
  ]:
    """Ids or features, and which of them there are; none of ''."""
    length = self._window['text_length']
    if not self._sources.text:
      return text_lib.byte_ids(text, length)
    self.learn([text])
    found = np.zeros((0, self._model.text.in_dim))
    return text_lib.pad(self._known.get(text, found), length)

  def _find_speech(self):
    from launch import encoders

    source = self._sources.speech
    where = encoder_sources.find('speech', source, source.weights, self._name)
    found = encoders.speech_source(where, source.layers, source.seconds)
    self._check_same('speech', where, found.digest, source.digest)
    return found

  def _find_text(self):
    from launch import encoders

    source = self._sources.text
    where, tokens = (
      encoder_sources.find(name, source, place, self._name)
      for name, place in (
        ('text', source.weights),
        ('tokenizer', source.tokenizer),
      )
    )
    found = encoders.text_source(where, tokens, source.length)
    self._check_same('text', where, found.digest, source.digest)
    digest = found.tokenizer_digest
    self._check_same('tokenizer', tokens, digest, source.tokenizer_digest)
    return found

  def _check_same(self, name, where, found, wanted):
    if found != wanted:
      raise UserError(
        f'--{encoder_sources.FLAGS[name]}={where}: is another one than that of '
        f'the features that {self._name} was trained on; give that'
      )
