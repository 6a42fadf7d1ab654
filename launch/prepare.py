"""Turns a folder of videos into shards to train on.

  python -m launch.prepare --input videos/ --out data/ --vae vae.safetensors

Three ways to use it:

  --stage clips    videos -> OUT: 25 fps square face crops with 16 kHz sound,
                   which is what the VAE trains on
  --stage latents  a folder made by `clips` -> OUT: VAE latents, audio tokens
                   and references, which is what the transformer trains on
  --stage all      videos -> OUT/clips and OUT/latents

Frame and sample rates of any kind are converted. A file that cannot be used
(damaged, without sound, silent, without a face, shorter than a second) is put
down with the reason in report.jsonl and report.json, and the work goes on.

Run the same command again after a kill: it continues, and the result is the
same to the byte. When all is done it says so and does nothing. With other
settings it refuses to touch the folder.

A subset of the videos, from a JSON file of name -> list of ids (paths without
suffix):

  python -m launch.prepare --input grid/clips --out data/train --stage clips \
      --split grid/split.json --subset train
"""

import dataclasses
import functools
import os
import pathlib
import sys

from absl import app, flags

from launch import clips, shards, workers
from launch.errors import UserError, one_line

_INPUT = flags.DEFINE_string('input', None, 'folder of videos, or of clips')
_OUT = flags.DEFINE_string('out', None, 'folder for the shards')
_STAGE = flags.DEFINE_enum('stage', 'all', ['clips', 'latents', 'all'], 'what')
_VAE = flags.DEFINE_string(
  'vae', None, 'bundle with the VAE for latents; the shipped one if unset'
)
_SPLIT = flags.DEFINE_string('split', None, 'JSON of name -> list of ids')
_SUBSET = flags.DEFINE_string('subset', None, 'name in --split')
_CAPTIONS = flags.DEFINE_string(
  'captions', 'auto', 'auto (colour of the wall), none, or JSON of id -> text'
)
_FACE_CROP = flags.DEFINE_bool(
  'face_crop', True, 'cut around the face; else the centred square'
)
_SIZE = flags.DEFINE_integer('size', 96, 'side of the square, in pixels', 8)
_SECONDS = flags.DEFINE_float(
  'max_seconds', 10, 'longer videos are cut into several clips', 1
)
_TOLERANT = flags.DEFINE_bool(
  'tolerant', False, 'use damaged files too, without the damaged parts'
)
_PER_SHARD = flags.DEFINE_integer('per_shard', 64, 'videos in one shard', 1)
_WORKERS = flags.DEFINE_integer('workers', 2, 'processes for clips', 0)
_VOICES = flags.DEFINE_integer(
  'voices', 4, 'variants of the sound; the first is unchanged', 1
)
_OFFSETS = flags.DEFINE_list(
  'offsets', ['0', '12'], 'first frames of the encodings of a clip'
)
_REFERENCE_EVERY = flags.DEFINE_integer(
  'reference_every', 6, 'frames from one reference image to the next', 1
)
_REPEATS = flags.DEFINE_integer(
  'reference_repeats', 1, 'times the VAE sees a reference frame', 1
)


def main(_: list[str]) -> None:
  with one_line():
    if _INPUT.value is None or _OUT.value is None:
      raise UserError('--input and --out are needed; see --help')
    source, out = pathlib.Path(_INPUT.value), pathlib.Path(_OUT.value)
    if _STAGE.value == 'clips':
      make_clips(source, out)
      return
    # Only latents need JAX, whose start takes seconds.
    from launch import bundle

    vae = _VAE.value or bundle.DEFAULT
    bundle.load(vae)  # A wrong file is told before the long work, not after.
    if _STAGE.value == 'all':
      make_clips(source, out / 'clips')
      source, out = out / 'clips', out / 'latents'
    make_latents(source, out, vae)


def make_clips(source: pathlib.Path, out: pathlib.Path) -> None:
  """The `clips` stage, by the flags."""
  settings = clips.ClipSettings(
    size=_SIZE.value,
    face_crop=_FACE_CROP.value,
    max_seconds=_SECONDS.value,
    captions=_CAPTIONS.value,
    tolerant=_TOLERANT.value,
  )
  videos = clips.find_videos(source, read_subset(_SPLIT.value, _SUBSET.value))
  captions = clips.read_captions(settings, list(videos))
  groups = split_groups(list(videos), _PER_SHARD.value)
  manifest = {'stage': 'clips', 'per_shard': _PER_SHARD.value}
  manifest |= {'files': clips.fingerprint(videos)}
  folder = shards.ShardFolder(
    out, manifest | dataclasses.asdict(settings), len(groups)
  )
  task = functools.partial(
    _clip_shard, folder, videos, groups, settings, captions
  )
  run(folder, task, [len(g) for g in groups], _WORKERS.value, 'clips')


def make_latents(
  source: pathlib.Path, out: pathlib.Path, vae: str | os.PathLike
) -> None:
  """The `latents` stage, by the flags."""
  from launch import bundle, encode

  if not all(o.isdigit() for o in _OFFSETS.value):
    raise UserError(f'--offsets={",".join(_OFFSETS.value)}: frames, as in 0,12')
  settings = encode.LatentSettings(
    offsets=tuple(int(o) for o in _OFFSETS.value),
    reference_every=_REFERENCE_EVERY.value,
    voices=_VOICES.value,
    repeats=_REPEATS.value,
  )
  paths, report = encode.find_clips(source)
  weights = bundle.load(vae)
  manifest = {'stage': 'latents', 'vae': encode.file_hash(vae)}
  manifest |= {'clips': encode.file_hash(source / 'manifest.json')}
  folder = shards.ShardFolder(
    out, manifest | dataclasses.asdict(settings), len(paths)
  )
  encoder = encode.ChunkEncoder(weights, settings.batch)

  def task(index):
    outcomes = encode.latent_outcomes(paths[index], encoder, settings)
    folder.write(index, _counted(outcomes))

  sizes = [report['per_shard'][p.name] for p in paths]
  run(folder, task, sizes, 0, 'latents')


def run(folder, task, sizes: list[int], count: int, label: str) -> None:
  """Makes the missing shards of `folder` and sums up.

  Raises:
    UserError: nothing could be used.
  """
  missing = folder.missing()
  if missing:
    total, left = sum(sizes), sum(sizes[k] for k in missing)
    workers.run(task, missing, count, total, total - left, label)
  report = folder.finish()
  bad = report['quarantined']
  if not report['clips']:
    some = next(iter(bad.values()), 'no clips')
    raise UserError(
      f'{folder.path}: not one of {len(bad)} files could be used ({some});'
      ' see report.json'
    )
  state = 'ready' if missing else 'was ready; nothing to do'
  print(f'{folder.path}: {report["clips"]} clips, {state}')
  if bad:
    print(
      f'{len(bad)} quarantined, reasons in {folder.path}/report.json; first:'
      f' {next(iter(bad))}: {next(iter(bad.values()))}',
      file=sys.stderr,
    )


def read_subset(split: str | None, subset: str | None) -> list[str] | None:
  """The ids of a subset; None without flags.

  Raises:
    UserError: one flag without the other, or no such subset.
  """
  if split is None and subset is None:
    return None
  if split is None or subset is None:
    raise UserError('--split and --subset go together; give both')
  subsets = shards.read_json(split)
  if subset not in subsets:
    raise UserError(f'{split}: has no {subset!r}; it has {sorted(subsets)}')
  return subsets[subset]


def split_groups(ids: list[str], size: int) -> list[list[str]]:
  return [ids[k : k + size] for k in range(0, len(ids), size)]


def _clip_shard(folder, videos, groups, settings, captions, index):
  def outcomes():
    for clip in groups[index]:
      yield from clips.clip_outcomes(clip, videos[clip], settings, captions)
      workers.advance()

  folder.write(index, outcomes())


def _counted(outcomes):
  for outcome in outcomes:
    yield outcome
    workers.advance()


if __name__ == '__main__':
  app.run(main)
