"""One page to compare many videos: players, prompts, figures, filters.

  python -m launch.sheet --input out/eval --out out/eval/sheet.html
  python -m launch.sheet --input out/weight1,out/weight3 --out out/weights.html
  python -m launch.sheet --input jobs.jsonl --out out/jobs.html --embed

An input is a folder of videos or a manifest of launch.sample, whose prompts are
shown. Figures are those of launch.evaluate, or stand in a JSON object beside a
video (talk.json for talk.mp4): numbers are figures, texts are prompts. Videos of
one name from several folders stand side by side.

The page is opened from disk and needs nothing else. It links to the videos:
move them together, or --embed them.
"""

import base64
from collections.abc import Iterator
import json
import math
import os
import pathlib
import sys
from typing import Any
import urllib.parse

from absl import app, flags

from launch import atomic
from launch.errors import UserError, one_line

TEMPLATE = pathlib.Path(__file__).with_name('web') / 'sheet.html'
SUFFIXES = ('.mp4', '.mov', '.m4v', '.webm')
ROWS = ('generated', 'rebuilt')  # Of launch.evaluate, the first that is there.

_INPUT = flags.DEFINE_list('input', [], 'folders and manifests, commas between')
_OUT = flags.DEFINE_string('out', 'out/sheet.html', 'the page to write')
_EMBED = flags.DEFINE_bool(
  'embed', False, 'put the videos into the page: a third larger, but one file'
)
_TITLE = flags.DEFINE_string('title', 'Samples', 'of the page')


def main(_: list[str]) -> None:
  with one_line():
    if not _INPUT.value:
      raise UserError('--input is needed; see --help')
    out = pathlib.Path(_OUT.value)
    samples = read_all(_INPUT.value)
    write(out, samples, _TITLE.value, _EMBED.value)
    print(f'{len(samples)} samples: open {out}')


def read_all(inputs: list[str]) -> list[dict[str, Any]]:
  """Samples of all inputs; each has group, name, video, prompts, figures.

  Raises:
    UserError: an input is not there, or has no video.
  """
  samples = []
  for name in inputs:
    path = pathlib.Path(name)
    if path.is_dir():
      found = list(read_folder(path))
    elif path.is_file():
      found = list(read_manifest(path))
    else:
      raise UserError(f'--input={name}: no such folder or manifest')
    if not found:
      raise UserError(f'--input={name}: has no video; make some first')
    samples += found
  return samples


def read_folder(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The videos of a folder, in order of their names."""
  for video in sorted(folder.iterdir()):
    if video.suffix.lower() in SUFFIXES and not video.name.startswith('.'):
      prompts, figures = read_about(video)
      yield sample(folder.resolve().name, video, prompts, figures)


def read_manifest(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The videos of a manifest that are made, with what was asked for."""
  try:
    lines = path.read_text(encoding='utf-8').split('\n')
  except UnicodeDecodeError as error:
    raise UserError(f'{path}: is no manifest: {error}') from error
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      video = pathlib.Path(row.pop('out'))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise UserError(
        f'{path}:{number}: is no job of launch.sample; mend it'
      ) from error
    if video.exists():
      prompts, figures = read_about(video)
      asked = {k: v for k, v in row.items() if isinstance(v, str) and v}
      yield sample(path.stem, video, asked | prompts, figures)


def read_about(
  video: pathlib.Path,
) -> tuple[dict[str, str], dict[str, float]]:
  """Prompts and figures that stand in a JSON object beside a video.

  Raises:
    UserError: it cannot be read.
  """
  name = f'{video.stem}.json'
  for path in (video.with_name(name), video.parent / 'clips' / name):
    if not path.exists():
      continue
    try:
      row = json.loads(path.read_text(encoding='utf-8'))
      rows = row.pop('rows', {})
      row |= next((rows[kind] for kind in ROWS if kind in rows), {})
    except (ValueError, AttributeError, TypeError) as error:
      raise UserError(
        f'{path}: is no JSON object ({error}); mend it'
      ) from error
    figures = {k: v for k, v in row.items() if _is_number(v)}
    return {k: v for k, v in row.items() if isinstance(v, str)}, figures
  return {}, {}


def sample(
  group: str,
  video: pathlib.Path,
  prompts: dict[str, str],
  figures: dict[str, float],
) -> dict[str, Any]:
  """One card of the page."""
  about = {'name': video.stem, 'video': video, 'prompts': prompts}
  return {'group': group, **about, 'figures': figures}


def write(
  out: pathlib.Path,
  samples: list[dict[str, Any]],
  title: str = 'Samples',
  embed: bool = False,
) -> None:
  """Writes the page.

  Raises:
    UserError: it cannot be written there.
  """
  if out.suffix.lower() not in ('.html', '.htm'):
    raise UserError(f'--out={out}: the page is an .html; name it so')
  cards = [s | {'video': _source(s['video'], out, embed)} for s in samples]
  page = TEMPLATE.read_text(encoding='utf-8')
  # In a script, nothing but </script> ends it; in JSON, < may be written so.
  data = json.dumps({'title': title, 'samples': cards}).replace('<', '\\u003c')
  with atomic.replacing(out) as half:
    half.write_text(page.replace('{"samples": []}', data), encoding='utf-8')


def _source(video, out, embed):
  if embed:
    data = base64.b64encode(video.read_bytes()).decode()
    return f'data:video/mp4;base64,{data}'
  path = os.path.relpath(video.resolve(), out.resolve().parent)
  return urllib.parse.quote(pathlib.Path(path).as_posix())


def _is_number(value):
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and math.isfinite(value)
  )


if __name__ == '__main__':
  sys.exit(app.run(main))
