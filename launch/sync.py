"""Tells by how many frames the sound of videos is late, and how surely.

  python -m launch.sync clip.mp4
  python -m launch.sync --json videos/*.mkv

Any container with a face and speech, from two seconds on. An offset of +3
frames says that the sound is heard 120 ms after the lips have moved; offsets
count frames of 1/25 s, whatever the file's own rate is. The confidence is the
probability that sound and lips belong together at all: trust no offset of a
low one. Of several faces, the one that fits best counts. A file that cannot be
judged gets a line that says why, and the exit code is 1.

The shipped judge was trained on one speaker of the GRID corpus. `--evaluate
CLIPS`, a folder that `launch.prepare --stage clips` made, measures a judge:
offsets planted in clips, and clips with the sound of others.
"""

import json
import sys

from absl import app, flags
import rich.console
import rich.table

from launch import steps_bar, sync_evaluation, sync_judge, sync_weights
from launch.errors import UserError, one_line

_JSON = flags.DEFINE_bool('json', False, 'one JSON object a line, no table')
_WEIGHTS = flags.DEFINE_string(
  'weights',
  str(sync_weights.DEFAULT),
  'of launch.sync_export; the shipped ones',
)
_REACH = flags.DEFINE_integer(
  'reach', sync_judge.REACH, 'largest offset to look for, in frames', 8, 40
)
_TOLERANT = flags.DEFINE_bool(
  'tolerant', False, 'use damaged files too, without the damaged parts'
)
_EVALUATE = flags.DEFINE_string(
  'evaluate', None, 'folder of clips shards to measure the judge on'
)


def main(argv: list[str]) -> None:
  files = argv[1:]
  with one_line():
    if bool(files) == bool(_EVALUATE.value):
      raise UserError('give videos, or --evaluate=CLIPS; see --help')
    weights = sync_weights.load(_WEIGHTS.value)
    judge = sync_judge.Judge(weights, _REACH.value)
    if _EVALUATE.value:
      report = sync_evaluation.evaluate(judge, _EVALUATE.value)
      print(json.dumps(report) if _JSON.value else sync_evaluation.text(report))
      return
    rows = judge_all(judge, files)
    if _JSON.value:
      for row in rows:
        print(json.dumps(row))
    elif len(rows) > 1:
      rich.console.Console().print(table(rows))
    elif 'error' not in rows[0]:
      print(sentence(rows[0]))
    errors = [row['error'] for row in rows if 'error' in row]
    if len(rows) == 1 and errors:
      raise UserError(errors[0])
    for error in errors:
      print(error, file=sys.stderr)
    if errors:
      raise UserError(f'{len(errors)} of {len(rows)} files were not judged')


def judge_all(judge: sync_judge.Judge, files: list[str]) -> list[dict]:
  """A row per file; an error is one too and does not keep from the others."""
  rows = []
  for path in files:
    try:
      with steps_bar.StepsBar(path, sync_judge.count_parts(path)) as advance:
        found = judge.judge_file(path, advance, _TOLERANT.value)
    except UserError as error:
      rows.append({'file': path, 'error': ' '.join(str(error).split())})
      continue
    verdict = found.verdict
    rows.append(
      {
        'file': path,
        'offset': verdict.offset,
        'milliseconds': verdict.offset * 1000 // sync_judge.FPS,
        'confidence': round(verdict.confidence, 3),
        'evidence': round(verdict.evidence, 3),
        'height': round(verdict.height, 2),
        'seconds': round(found.seconds, 2),
        'faces': found.faces,
      }
    )
  return rows


def sentence(row: dict) -> str:
  """What a row says."""
  late = 'late' if row['offset'] > 0 else 'early'
  by = f'{row["offset"]:+d} frames: the sound is {abs(row["milliseconds"])} ms'
  said = f'{by} {late}' if row['offset'] else '0 frames: in sync'
  return (
    f'{row["file"]}: {said}; confidence {row["confidence"]:.2f} '
    f'({row["evidence"]:.2f} nats a frame over {row["seconds"]:.1f} s)'
  )


def table(rows: list[dict]) -> rich.table.Table:
  """All rows; those of errors are empty."""
  out = rich.table.Table(
    rich.table.Column('file', overflow='fold'), box=None, pad_edge=False
  )
  for name in ('offset', 'ms', 'confidence', 'nats a frame', 'seconds'):
    out.add_column(name, justify='right', no_wrap=True)
  for row in rows:
    if 'error' in row:
      out.add_row(row['file'], *'-----')
      continue
    out.add_row(
      row['file'],
      f'{row["offset"]:+d}',
      f'{row["milliseconds"]:+d}',
      f'{row["confidence"]:.2f}',
      f'{row["evidence"]:.2f}',
      f'{row["seconds"]:.1f}',
    )
  return out


if __name__ == '__main__':
  sys.exit(app.run(main))
