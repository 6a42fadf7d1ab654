"""Makes a talking video from a sound, and an image and a text if you like.

  python -m launch.sample --audio speech.wav --image face.jpg --out out/talk.mp4

Audio may have any length, rate, container and number of channels. The face in
the image is found and cropped; without an image the model invents a person.

From words alone, or from a request that a language model turns into words and a
prompt (any server that speaks OpenAI's chat completions):

  python -m launch.sample --text_to_speech "Good morning. The train is late."
  python -m launch.sample --request "a nurse cheers up a boy" \
    --script_endpoint http://localhost:8000/v1 --script_model qwen3

To watch it while it is being made:

  python -m launch.sample --audio speech.wav --stream - | ffplay -

Many videos in one go, one JSON object a line with the keys audio (or
text_to_speech), image, text and out (image and text may be left out; paths are
relative to where you are). All have the same shapes, whatever their length, so
that they share what the first one compiles; a second start finds it on disk:

  python -m launch.sample --manifest jobs.jsonl

Guidance makes a condition count for more than the model gives it by itself, by
pushing each step away from what it would be without; every weight that is not 1
costs one more run of the network a step:

  --audio_cfg=3                             keep closer to the sound
  --audio_cfg=4 --reference_cfg=2           and closer to the image
  --text_cfg=4 --negative_text=dark         to the text, away from another one
  --audio_cfg=5 --guidance_schedule=cosine  strong at first, none at the end

--solver=dpmpp_2m follows the flow more exactly than the default in as many
steps, so that fewer may do.

A job that fails says why and does not stop the others; the exit code is then 1.

Without --checkpoint the shipped model speaks: one speaker of the GRID corpus.
Its student, --checkpoint=fast, takes 4 steps without guidance instead of 8 to 64
guided ones.
A --checkpoint is a bundle of launch.export, or the workdir of a training, whose
autoencoder is then --vae.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import time
from typing import BinaryIO

from absl import app, flags

from launch import (
  encoder_flags,
  generate,
  guidance_flags,
  programs,
  script,
  speech,
  talk,
)
from launch.errors import UserError, one_line
from launch.stopwatch import Stopwatch
from mirage_jax.audio import RATE

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'bundle or workdir; fast, the shipped student of 4 steps; or, if unset, the '
  'shipped bundle',
)
_VAE = flags.DEFINE_string(
  'vae', None, "for a workdir: its VAE's bundle; the shipped one if unset"
)
_AUDIO = flags.DEFINE_string('audio', None, 'file with sound')
_SPEECH = flags.DEFINE_string(
  'text_to_speech', '', 'words to say, instead of --audio'
)
_ENGINE = flags.DEFINE_string(
  'speech_engine',
  speech.PIPER,
  'who says them: piper; piper:VOICE.onnx; or a command that writes a sound '
  "file, as 'espeak-ng -w {out} -f {text_file}'",
)
_REQUEST = flags.DEFINE_string(
  'request', '', 'what the video is for, instead of --audio; an endpoint writes'
)
_ENDPOINT = flags.DEFINE_string(
  'script_endpoint',
  '',
  f'of chat completions, up to /v1; ${script.URL} if unset, and the key is '
  f'${script.KEY}',
)
_SCRIPT_MODEL = flags.DEFINE_string(
  'script_model', '', f'its model; ${script.MODEL} if unset'
)
_IMAGE = flags.DEFINE_string('image', None, 'picture with the face to animate')
_TEXT = flags.DEFINE_string('text', '', 'what is to be seen')
_OUT = flags.DEFINE_string('out', 'out/sample.mp4', 'the video to write')
_STREAM = flags.DEFINE_string(
  'stream', None, 'a growing MP4 besides --out, to watch at once; - is stdout'
)
_PROGRAMS = flags.DEFINE_string(
  'programs',
  None,
  "folder of compiled programs; unset, that of JAX's environment variable or "
  "one in the user's cache",
)
_MANIFEST = flags.DEFINE_string('manifest', None, 'JSON lines, a video each')
_SEED = flags.DEFINE_integer('seed', 0, 'of the noise')
_SAMPLING = guidance_flags.SamplingFlags()
_ENCODERS = encoder_flags.EncoderFlags()


def main(_: list[str]) -> None:
  with one_line(), contextlib.ExitStack() as stack:
    engine = speech.get_engine(_ENGINE.value)
    jobs = read_jobs()
    for job in jobs:
      talk.check_out(job.out)
    _SAMPLING.settings(_SEED.value)  # Flags that are wrong are told at once.
    live = open_stream(stack)
    generator = talk.load_generator(
      _CHECKPOINT.value,
      _VAE.value,
      _SAMPLING.quantised,
      _ENCODERS.places,
      programs.keep(_PROGRAMS.value),
    )
    settings = _SAMPLING.settings(_SEED.value, generator.own_steps)
    if _REQUEST.value:
      jobs = [write_script(job, generator.text_length) for job in jobs]
    run(generator, jobs, settings, engine, live)


def open_stream(stack: contextlib.ExitStack) -> BinaryIO | None:
  """Where --stream goes, closed with the stack; print goes to stderr if to -."""
  if _STREAM.value == '-':
    live = sys.stdout.buffer
    stack.enter_context(contextlib.redirect_stdout(sys.stderr))
    return live
  if not _STREAM.value:
    return None
  try:
    return stack.enter_context(open(_STREAM.value, 'wb'))
  except OSError as error:
    raise UserError(
      f'--stream={_STREAM.value}: cannot be written ({error.strerror}); name '
      'another file, or - for the output'
    ) from error


def read_jobs() -> list[talk.Job]:
  """What the flags ask for."""
  sources = (_AUDIO, _SPEECH, _REQUEST, _MANIFEST)
  if sum(bool(flag.value) for flag in sources) != 1:
    raise UserError(
      'give either --audio or --manifest, or else --text_to_speech or '
      '--request; see --help'
    )
  if _MANIFEST.value:
    for flag in (_OUT, _IMAGE, _TEXT):
      if flag.present:
        raise UserError(
          f'--{flag.name} goes with --audio; with --manifest it stands in each '
          'line'
        )
    if _STREAM.value:
      raise UserError('--stream shows one video; leave out --manifest')
    return read_manifest(_MANIFEST.value)
  job = talk.Job(
    _AUDIO.value or '', _OUT.value, _IMAGE.value, _TEXT.value, _SPEECH.value
  )
  return [job]


def write_script(job: talk.Job, text_length: int) -> talk.Job:
  """`job` with the words and the prompt that --script_endpoint writes.

  A model that reads less than the prompt goes without it; that is told.
  """
  endpoint = script.get_endpoint(_ENDPOINT.value, _SCRIPT_MODEL.value)
  if endpoint is None:
    raise UserError(f'--request: needs --script_endpoint, or ${script.URL}')
  image = pathlib.Path(job.image).read_bytes() if job.image else None
  written = endpoint.write(_REQUEST.value, image)
  print(f'it says: {written.script}\nit shows: {written.prompt}', flush=True)
  text = ' '.join(filter(None, (job.text, written.prompt)))
  if len(text.encode()) > text_length:
    print(
      f'this checkpoint reads {text_length} bytes of text, not the '
      f'{len(text.encode())} of the prompt: it is left out',
      flush=True,
    )
    text = job.text
  return dataclasses.replace(job, text_to_speech=written.script, text=text)


def read_manifest(path: str | os.PathLike) -> list[talk.Job]:
  """The jobs of a file of JSON lines; empty lines are passed over.

  Raises:
    UserError: it names the file, the line and the key.
  """
  try:
    text = pathlib.Path(path).read_text(encoding='utf-8')
  except FileNotFoundError as error:
    raise UserError(f'--manifest={path}: no such file') from error
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f'--manifest={path}: is no text that can be read ({error})'
    ) from error
  jobs, lines = [], {}
  # Not splitlines: a JSON string may hold other line separators.
  for number, line in enumerate(text.split('\n'), 1):
    if line.strip():
      job = parse_job(line, f'{path}:{number}')
      if job.out in lines:
        raise UserError(
          f'{path}:{number}: out {job.out!r} is that of line {lines[job.out]}; '
          'give each video its own'
        )
      lines[job.out] = number
      jobs.append(job)
  if not jobs:
    raise UserError(f'--manifest={path}: holds no job; give one a line')
  return jobs


def parse_job(line: str, where: str) -> talk.Job:
  """One line of a manifest; `where` begins the message of its UserError."""
  try:
    row = json.loads(line)
  except ValueError as error:
    raise UserError(f'{where}: is not JSON ({error}); mend it') from error
  if not isinstance(row, Mapping):
    raise UserError(f'{where}: must be a JSON object, {{"audio": ...}}')
  names = [field.name for field in dataclasses.fields(talk.Job)]
  for key, value in row.items():
    if key not in names:
      raise UserError(
        f'{where}: unknown key {key!r}; there are {", ".join(names)}'
      )
    if not isinstance(value, str | None):
      raise UserError(f'{where}: {key} must be a string, not {value!r}')
  row = {k: v for k, v in row.items() if v}
  if 'out' not in row:
    raise UserError(f"{where}: lacks 'out'")
  if ('audio' in row) + ('text_to_speech' in row) != 1:
    wrong = 'has both' if 'audio' in row else 'lacks'
    raise UserError(f"{where}: {wrong} 'audio' or 'text_to_speech'; give one")
  return talk.Job(**{'audio': ''} | row)


def run(
  generator: generate.Generator,
  jobs: list[talk.Job],
  settings: generate.Settings,
  engine: speech.Engine = speech.synthesise,
  live: BinaryIO | None = None,
) -> None:
  """Makes every video that can be made; tells where the time went.

  Raises:
    UserError: the only one could not be, or how many of them.
  """
  made, length, spent = 0, 0.0, {}
  for job in jobs:
    first = FirstCall()
    try:
      with Stopwatch() as watch:
        wave = talk.make_video(
          generator, job, settings, watch, first, engine, live
        )
    except UserError as error:
      if len(jobs) == 1:
        raise
      print(f'error: {job.out}: {error}', file=sys.stderr, flush=True)
      continue
    made, length = made + 1, length + len(wave) / RATE
    for stage, seconds in watch.seconds.items():
      spent[stage] = spent.get(stage, 0.0) + seconds
    stages = ', '.join(f'{k} {v:.1f}' for k, v in watch.seconds.items())
    after = f'first frame after {first.seconds:.1f} s'
    print(f'{job.out}: {stages} s; {after}', flush=True)
  if len(jobs) > 1 and made:
    compiling = spent.pop('compile', 0.0)
    running = sum(spent.values())
    print(
      f'{made} videos of {length:.1f} s in all: compile {compiling:.1f} s, run '
      f'{running:.1f} s, {running / length:.2f} a second of video',
      flush=True,
    )
  if made < len(jobs):
    raise UserError(
      f'{len(jobs) - made} of {len(jobs)} videos were not made, see above'
    )


class FirstCall:
  """Seconds from here to its first call."""

  def __init__(self):
    self._start, self.seconds = time.monotonic(), 0.0

  def __call__(self, *_) -> None:
    self.seconds = self.seconds or time.monotonic() - self._start


if __name__ == '__main__':
  sys.exit(app.run(main))
