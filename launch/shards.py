"""Folders of shards: resumable, repeatable, never half-written.

A folder holds `manifest.json` (the settings that made it), one
`NNNNN-of-NNNNN.array_record` per fixed group of clips, one report per shard in
`report/`, and at the end `report.jsonl` and `report.json`. The report of a
shard is written last: it marks the shard as done.
"""

from collections.abc import Iterable, Mapping
import json
import os
import pathlib
from typing import Any, NamedTuple

from array_record.python import array_record_module
import numpy as np

from launch.atomic import replacing
from launch.errors import UserError
from mirage_jax import records


class Outcome(NamedTuple):
  """What became of a clip: a record, or the reason why there is none."""

  id: str
  record: Mapping[str, np.ndarray | str] | None = None
  reason: str = ''


class ShardFolder:
  """A folder of shards that is being made, or was."""

  def __init__(
    self, path: str | os.PathLike, settings: Mapping[str, Any], count: int
  ):
    """Claims the folder, or takes up work in it.

    Args:
      path: the folder; made when absent.
      settings: JSON values; all that the content depends on.
      count: number of shards.

    Raises:
      UserError: the folder was made with other settings.
    """
    self.path = pathlib.Path(path)
    self.count = count
    # Through JSON, so that a tuple compares equal to what is read back.
    settings = json.loads(json.dumps(dict(settings)))
    manifest = self.path / 'manifest.json'
    if manifest.exists():
      _check_same(manifest, read_json(manifest), settings)
    elif self.path.exists() and any(self.path.iterdir()):
      raise UserError(
        f'{self.path}: is not empty and has no manifest.json; give --out a new'
        ' folder'
      )
    else:
      write_json(manifest, settings)

  def shard(self, index: int) -> pathlib.Path:
    name = f'{index:05}-of-{self.count:05}.array_record'
    return self.path / name

  def missing(self) -> list[int]:
    """Indices of the shards that are still to be made."""
    return [k for k in range(self.count) if not self._report(k).exists()]

  def write(self, index: int, outcomes: Iterable[Outcome]) -> None:
    """Writes one shard and then its report; a full disk leaves neither."""
    shard, lines = self.shard(index), []
    with replacing(shard) as half:
      writer = array_record_module.ArrayRecordWriter(str(half), 'group_size:1')
      try:
        for clip, record, reason in outcomes:
          line = {'id': clip, 'ok': record is not None}
          lines.append(line if record else line | {'reason': reason})
          if record is not None:
            writer.write(records.pack(record))
      finally:
        writer.close()
    if not any(line['ok'] for line in lines):
      shard.unlink()  # Readers refuse a shard without records.
    with replacing(self._report(index)) as half:
      half.write_text(''.join(json.dumps(line) + '\n' for line in lines))

  def finish(self) -> dict[str, Any]:
    """Joins the reports into report.jsonl and report.json, and returns it."""
    for stale in self.path.rglob('.*.part*'):
      stale.unlink()  # Left by a run that was killed.
    texts = [self._report(k).read_text() for k in range(self.count)]
    with replacing(self.path / 'report.jsonl') as half:
      half.write_text(''.join(texts))
    bad, sizes = {}, {}
    for k, text in enumerate(texts):
      lines = [json.loads(line) for line in text.splitlines()]
      bad |= {x['id']: x['reason'] for x in lines if not x['ok']}
      if size := sum(x['ok'] for x in lines):
        sizes[self.shard(k).name] = size
    report = {
      'clips': sum(sizes.values()),
      'per_shard': sizes,
      'quarantined': bad,
    }
    write_json(self.path / 'report.json', report)
    return report

  def _report(self, index):
    return self.path / 'report' / f'{index:05}-of-{self.count:05}.jsonl'


def read_shard(path: str | os.PathLike) -> Iterable[dict[str, np.ndarray]]:
  """Unpacked records of one shard, in order."""
  reader = array_record_module.ArrayRecordReader(str(path))
  try:
    for k in range(reader.num_records()):
      yield records.unpack(reader.read([k])[0])
  finally:
    reader.close()


def read_json(path: str | os.PathLike) -> Any:
  """Raises UserError for a file that is absent or not JSON."""
  try:
    return json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  except FileNotFoundError as error:
    raise UserError(f'{path}: no such file') from error
  except ValueError as error:
    raise UserError(f'{path}: is not JSON ({error})') from error


def write_json(path: str | os.PathLike, value: Any) -> None:
  with replacing(path) as half:
    half.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')


def _check_same(path, old, new):
  for key in sorted(old.keys() | new.keys()):
    if old.get(key) != new.get(key):
      raise UserError(
        f'{path}: was made with {key}={old.get(key)!r}, not {new.get(key)!r};'
        ' give --out a new folder, or the old setting'
      )
