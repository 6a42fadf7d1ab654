"""Makes a talking video from a sound, and an image and a text if you like.

  python -m launch.sample --audio speech.wav --image face.jpg --out out/talk.mp4

Audio may have any length, rate, container and number of channels. The face in
the image is found and cropped; without an image the model invents a person.

Many videos in one go, one JSON object a line with the keys audio, image, text
and out (image and text may be left out; paths are relative to where you are):

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
A --checkpoint is a bundle of launch.export, or the workdir of a training, whose
autoencoder is then --vae.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
import sys

from absl import app, flags

from launch import generate, guidance_flags, talk
from launch.errors import UserError, one_line
from launch.guidance_flags import make_guidance
from launch.stopwatch import Stopwatch

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'bundle or workdir; the shipped bundle if unset'
)
_VAE = flags.DEFINE_string(
  'vae', None, "for a workdir: its VAE's bundle; the shipped one if unset"
)
_AUDIO = flags.DEFINE_string('audio', None, 'file with sound')
_IMAGE = flags.DEFINE_string('image', None, 'picture with the face to animate')
_TEXT = flags.DEFINE_string('text', '', 'what is to be seen')
_OUT = flags.DEFINE_string('out', 'out/sample.mp4', 'the video to write')
_MANIFEST = flags.DEFINE_string('manifest', None, 'JSON lines, a video each')
_SEED = flags.DEFINE_integer('seed', 0, 'of the noise')
_STEPS = flags.DEFINE_integer(
  'steps', generate.STEPS, 'steps for each window', 2
)
_SOLVER = flags.DEFINE_string(
  'solver',
  'euler',
  'what takes the steps: euler; heun, of second order, with two runs of the '
  'network a step; or dpmpp_2m, of second order with one',
)
_AUDIO_CFG = flags.DEFINE_float(
  'audio_cfg',
  generate.AUDIO_CFG,
  'weight of the sound, 0 to 30; 1 is as trained',
)
_TEXT_CFG = flags.DEFINE_float('text_cfg', 1.0, 'weight of the text')
_REFERENCE_CFG = flags.DEFINE_float('reference_cfg', 1.0, 'weight of the image')
_JOINT_CFG = flags.DEFINE_float('joint_cfg', 1.0, 'weight of all three at once')
_NEGATIVE_TEXT = flags.DEFINE_string(
  'negative_text', '', 'what is not to be seen; needs --text_cfg or --joint_cfg'
)
_SKIP_CFG = flags.DEFINE_float(
  'skip_cfg',
  0.0,
  'scale of skip guidance, 0 to 10: away from the network without --skip_blocks',
)
_SKIP_BLOCKS = flags.DEFINE_string(
  'skip_blocks', '', 'blocks that it skips, as 3 or 3,4; the first is 0'
)
_SCHEDULE = flags.DEFINE_string(
  'guidance_schedule',
  'constant',
  'how the weights change: constant; cosine, from the whole weight at the first '
  'step to none after the last; window:HIGH:LOW, only between these noise '
  'levels (1 is noise, 0 the video), and at no cost outside. Or one for each '
  'by name, as audio=cosine,text=window:0.95:0.3 (audio, text, reference, '
  'joint, skip)',
)
_RESCALE = flags.DEFINE_float(
  'guidance_rescale',
  0.0,
  'against too much contrast under strong guidance, 0 to 1; 0.7 is usual',
)
_CACHE = flags.DEFINE_string('cache', 'none', guidance_flags.CACHE_HELP)
_QUANTISE = flags.DEFINE_string(
  'quantise', 'none', guidance_flags.QUANTISE_HELP
)
_SEQUENTIAL = flags.DEFINE_bool(
  'sequential_guidance',
  False,
  'run the network once for each weight instead of on one larger batch: less '
  'memory, the same video but for rounding',
)


def main(_: list[str]) -> None:
  with one_line():
    jobs = read_jobs()
    for job in jobs:
      talk.check_out(job.out)
    settings = read_settings()
    generator = talk.load_generator(
      _CHECKPOINT.value, _VAE.value, _QUANTISE.value
    )
    run(generator, jobs, settings)


def read_settings() -> generate.Settings:
  """How the flags want it sampled; UserError names one that is wrong."""
  guidance = make_guidance(
    _SCHEDULE.value,
    _SKIP_BLOCKS.value,
    _SEQUENTIAL.value,
    audio=_AUDIO_CFG.value,
    text=_TEXT_CFG.value,
    reference=_REFERENCE_CFG.value,
    joint=_JOINT_CFG.value,
    skip=_SKIP_CFG.value,
    rescale=_RESCALE.value,
  )
  return generate.Settings(
    _STEPS.value,
    guidance,
    _SEED.value,
    _SOLVER.value,
    _NEGATIVE_TEXT.value,
    guidance_flags.make_caching(_CACHE.value),
  )


def read_jobs() -> list[talk.Job]:
  """What the flags ask for."""
  if bool(_MANIFEST.value) == bool(_AUDIO.value):
    raise UserError('give either --audio or --manifest; see --help')
  if not _MANIFEST.value:
    return [talk.Job(_AUDIO.value, _OUT.value, _IMAGE.value, _TEXT.value)]
  for flag in (_OUT, _IMAGE, _TEXT):
    if flag.present:
      raise UserError(
        f'--{flag.name} goes with --audio; with --manifest it stands in each '
        'line'
      )
  return read_manifest(_MANIFEST.value)


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
  for key in ('audio', 'out'):
    if not row.get(key):
      raise UserError(f'{where}: lacks {key!r}')
  return talk.Job(**{k: v for k, v in row.items() if v is not None})


def run(
  generator: generate.Generator,
  jobs: list[talk.Job],
  settings: generate.Settings,
) -> None:
  """Makes every video that can be made.

  Raises:
    UserError: the only one could not be, or how many of them.
  """
  failed = 0
  for job in jobs:
    try:
      with Stopwatch() as watch:
        talk.make_video(generator, job, settings, watch)
    except UserError as error:
      if len(jobs) == 1:
        raise
      failed += 1
      print(f'error: {job.out}: {error}', file=sys.stderr, flush=True)
      continue
    spent = ', '.join(f'{k} {v:.1f}' for k, v in watch.seconds.items())
    print(f'{job.out}: {spent} s', flush=True)
  if failed:
    raise UserError(f'{failed} of {len(jobs)} videos were not made, see above')


if __name__ == '__main__':
  sys.exit(app.run(main))
