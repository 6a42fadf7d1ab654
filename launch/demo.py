"""The first talking video: a sentence, or your own recording, on a real face.

  make demo
  make demo TEXT="Please bring the blue box to me by Monday."
  make demo AUDIO=speech.mp3 OUT=out/mine.mp4
  python -m launch.demo --checkpoint=fast

Writes the video with its sound, the speech, and a filmstrip with waveform and
mouth curve; prints how well the lips keep to the sound, and what took how long.
"""

import pathlib
import sys

from absl import app, flags
from jaxtyping import Float, UInt8
import numpy as np
import soundfile

from launch import (
  atomic,
  bundle,
  clip_scores,
  closures,
  faces,
  filmstrip,
  guidance_flags,
  loudness,
  programs,
  speech as speech_lib,
  talk,
)
from launch.errors import one_line
from launch.stopwatch import Stopwatch
from mirage_jax import evals
from mirage_jax.audio import RATE, TOKEN_RATE

SENTENCE = 'Bob may bring a big map, so please put my blue bag by the lamp.'

_TEXT = flags.DEFINE_string('text', SENTENCE, 'what to say')
_AUDIO = flags.DEFINE_string('audio', None, 'a recording, instead of --text')
_IMAGE = flags.DEFINE_string(
  'image', None, 'the face; the shipped one if unset: the model knows no other'
)
_OUT = flags.DEFINE_string('out', 'out/demo.mp4', 'the video to write')
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'bundle or workdir; fast, the shipped student of 4 steps; or, if unset, the '
  'shipped bundle',
)
_SAMPLING = guidance_flags.SamplingFlags()
_SEED = flags.DEFINE_integer('seed', 0, 'of the noise')


def main(_: list[str]) -> None:
  with one_line(), Stopwatch() as watch:
    out = pathlib.Path(_OUT.value)
    strip = out.with_suffix('.png')
    talk.check_out(out)
    with watch('load'):
      generator = talk.load_generator(
        _CHECKPOINT.value,
        quantised=_SAMPLING.quantised,
        programs=programs.keep(),
      )
    audio, phones = _AUDIO.value, []
    if audio:
      print(f'1/3 reading {audio}', flush=True)
    else:
      print(f'1/3 speaking: {_TEXT.value}', flush=True)
      audio = out.with_suffix('.wav')
      with watch('speech'):
        phones = speak(_TEXT.value, audio)
    seconds = generator.window_frames / TOKEN_RATE
    print(f'2/3 drawing, {seconds:g} s of video at a time', flush=True)
    settings = _SAMPLING.settings(_SEED.value, generator.own_steps)
    image = _IMAGE.value or bundle.DEFAULT.with_name('face.png')
    job = talk.Job(str(audio), str(out), str(image))
    windows = []
    wave = talk.make_video(generator, job, settings, watch, windows.append)
    print('3/3 looking at the lips', flush=True)
    with watch('judge'):
      figures = judge(np.concatenate(windows), wave, phones, strip)
    report(figures, watch.seconds, len(wave) / RATE)
    print(f'\nwatch {out}\nthe lips frame by frame: {strip}')


def speak(text: str, path: pathlib.Path) -> list[speech_lib.Phone]:
  """Writes the sentence as a wave file; returns its phone times."""
  spoken = speech_lib.synthesise(text)
  with atomic.replacing(path) as half:
    soundfile.write(half, spoken.wave, RATE)
  return spoken.phones


def judge(
  frames: UInt8[np.ndarray, 'N H W 3'],
  wave: Float[np.ndarray, 'S'],
  phones: list[speech_lib.Phone],
  strip: pathlib.Path,
) -> dict[str, str]:
  """Measures the lips, draws the filmstrip; returns figures in words."""
  try:
    look = clip_scores.look(frames, faces.default_mesh())
  except faces.NoFaceError:
    none = np.full(len(frames), np.nan)
    filmstrip.save_filmstrip(strip, frames, wave, none)
    return {'lips': 'none: no face is found in the video'}
  filmstrip.save_filmstrip(strip, frames, wave, look.mouth)
  level = loudness.level(wave, len(frames))
  blinks = evals.blink_rate(look.eyes, TOKEN_RATE)
  figures = {
    'mouth opening and loudness': f'r = {evals.pearson(look.mouth, level):.2f}',
    'blinks': f'{blinks:.0f} a minute',
  }
  if phones:
    lips = closures.count(look.mouth, phones)
    if count := len(lips.hits):
      figures['lips closed at /p b m/'] = (
        f'{lips.hits.sum()} of {count} (by chance {lips.chance * count:.1f})'
      )
  return figures


def report(
  figures: dict[str, str], seconds: dict[str, float], length: float
) -> None:
  """Prints how good it came out and where the time went."""
  print()
  for name, value in figures.items():
    print(f'  {name:28}{value}')
  for name, value in seconds.items():
    print(f'  {"seconds: " + name:28}{value:.1f}')
  total = f'{sum(seconds.values()):.1f}'
  print(f'  {"seconds in all":28}{total} for {length:.1f} s of video')


if __name__ == '__main__':
  sys.exit(app.run(main))
