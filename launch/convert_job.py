"""Converts tensor by tensor: resumable, checked, whole or not there.

Work is done in a hidden folder beside the result, with a journal of what is
written; at the end all is read back and compared with its checksums, the
manifest is written, and the folder gets its name.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import numpy as np

from launch import atomic
from launch.convert_bar import BytesBar
from launch.convert_sink import Reader, Sink, Spec
from launch.errors import UserError, disk_is_full
from launch.shards import read_json, write_json

MANIFEST = 'manifest.json'
JOURNAL, SETTINGS = 'journal.jsonl', 'settings.json'


class Unit(NamedTuple):
  """One slab of the result.

  Attributes:
    name: Of the tensor.
    lead: Entry of its first axis, or None for all of it.
    make: Gives the values, of any float dtype.
  """

  name: str
  lead: int | None
  make: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Job:
  """All that a conversion does.

  Attributes:
    specs: Every tensor of the result.
    units: Every slab of them.
    settings: JSON values; all that the result depends on.
    open_sink: Makes, or finds again, what is written to in a folder.
    texts: Small files beside the tensors: name to JSON value.
  """

  specs: Mapping[str, Spec]
  units: Sequence[Unit]
  settings: Mapping[str, Any]
  open_sink: Callable[[pathlib.Path], Sink]
  texts: Mapping[str, Any]


def run(job: Job, out: pathlib.Path) -> bool:
  """Does what is left of a job; False if it was all done before.

  Raises:
    UserError: `out` holds something else, the disk is full, or what is read
      back is not what was written.
  """
  settings = json.loads(json.dumps(dict(job.settings)))
  if out.exists():
    _check_finished(out, settings)
    return False
  half = out.with_name(f'.{out.name}.part')
  with _told(half):
    half.mkdir(parents=True, exist_ok=True)
    _claim(half, settings)
    done = read_journal(half / JOURNAL)
    _check_room(half, job, done)
    sink = job.open_sink(half)
    for name, value in job.texts.items():
      write_json(half / name, value)
    _convert(job, sink, half / JOURNAL, done)
    check(job.specs, done, sink, half)
    manifest = settings | {'tensors': _tensors(job.specs, done)}
    write_json(half / MANIFEST, manifest)
    (half / JOURNAL).unlink()
    (half / SETTINGS).unlink()
    os.replace(half, out)
  return True


def read_journal(path: pathlib.Path) -> dict[tuple[str, int | None], str]:
  """(name, lead) -> sha256 of what is written; a line cut short is left out."""
  found = {}
  if not path.exists():
    return found
  for line in path.read_text().splitlines():
    with contextlib.suppress(ValueError):
      name, lead, digest = json.loads(line)
      found[name, lead] = digest
  return found


def digest(values: np.ndarray) -> str:
  """sha256 of an array's bytes in C order."""
  flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
  return hashlib.sha256(flat).hexdigest()


def slabs(specs: Mapping[str, Spec]) -> Iterable[tuple[str, int | None]]:
  """Every slab of some tensors."""
  for name, spec in specs.items():
    leads = range(spec.shape[0]) if spec.stacked else (None,)
    yield from ((name, lead) for lead in leads)


def slab_bytes(spec: Spec) -> int:
  shape = spec.shape[1:] if spec.stacked else spec.shape
  return math.prod(shape) * spec.dtype.itemsize


def _convert(job, sink, journal, done):
  sizes = {name: slab_bytes(spec) for name, spec in job.specs.items()}
  total = sum(sizes[unit.name] for unit in job.units)
  before = sum(sizes[name] for name, _ in done)
  # A line that a kill cut short must not swallow the next one.
  with (
    BytesBar('converting', total, before) as advance,
    open(journal, 'a') as f,
  ):
    f.write('\n')
    for name, lead, make in job.units:
      if (name, lead) in done:
        continue
      values = np.asarray(make()).astype(job.specs[name].dtype, copy=False)
      sink.put(name, lead, values)
      done[name, lead] = digest(values)
      f.write(json.dumps([name, lead, done[name, lead]]) + '\n')
      f.flush()
      advance(sizes[name])


def check(
  specs: Mapping[str, Spec],
  done: Mapping[tuple[str, int | None], str],
  sink: Reader,
  where: pathlib.Path,
) -> None:
  """Reads all back; UserError for a slab that is not what was written."""
  total = sum(spec.nbytes for spec in specs.values())
  with BytesBar('checking', total) as advance:
    for name, lead in slabs(specs):
      if digest(sink.get(name, lead)) != done[name, lead]:
        raise UserError(
          f'{where}: {name} reads back other than it was written: delete that '
          'folder and run again, on another disk if it happens again'
        )
      advance(slab_bytes(specs[name]))


def read_manifest(
  manifest: Mapping[str, Any],
) -> tuple[dict[str, Spec], dict[tuple[str, int | None], str]]:
  """Specs and (name, lead) -> sha256 of a finished conversion."""
  specs, done = {}, {}
  for name, entry in manifest['tensors'].items():
    sums = entry['sha256']
    stacked = isinstance(sums, list)
    dtype = np.dtype(entry['dtype'])
    specs[name] = Spec(tuple(entry['shape']), dtype, stacked)
    done |= (
      {(name, i): x for i, x in enumerate(sums)}
      if stacked
      else {(name, None): sums}
    )
  return specs, done


def _tensors(specs, done):
  found = {}
  for name, spec in specs.items():
    leads = range(spec.shape[0]) if spec.stacked else [None]
    sums = [done[name, lead] for lead in leads]
    found[name] = {
      'shape': list(spec.shape),
      'dtype': spec.dtype.name,
      'sha256': sums if spec.stacked else sums[0],
    }
  return found


def _check_finished(out, settings):
  path = out / MANIFEST
  if not path.exists():
    raise UserError(
      f'{out}: exists and is no finished conversion; give --out a new folder'
    )
  old = read_json(path)
  _check_same(path, {k: v for k, v in old.items() if k != 'tensors'}, settings)


def _claim(half, settings):
  path = half / SETTINGS
  if path.exists():
    _check_same(path, read_json(path), settings)
  else:
    write_json(path, settings)


def _check_same(path, old, new):
  for key in sorted(old.keys() | new.keys()):
    if old.get(key) != new.get(key):
      raise UserError(
        f'{path.parent}: is of another conversion ({key} differs); give --out '
        'a new folder, or delete that one'
      )


def _check_room(half, job, done):
  """UserError if the disk cannot hold what is still to come."""
  held = sum(f.stat().st_blocks * 512 for f in half.rglob('*') if f.is_file())
  total = sum(spec.nbytes for spec in job.specs.values())
  free = shutil.disk_usage(half).free
  if total - held > free:
    raise UserError(
      f'{half.parent}: the disk has {free / 1e9:.1f} GB free, '
      f'{(total - held) / 1e9:.1f} are needed: make room, or give another --out'
    )


@contextlib.contextmanager
def _told(half):
  """A full disk takes one line, and says what becomes of the work."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # TensorStore raises its own kinds.
    full = disk_is_full(error) or 'File too large' in str(error)
    if full or getattr(error, 'errno', None) in atomic.NO_ROOM:
      raise UserError(
        f'{half}: the disk is full; the conversion is not finished: make room '
        'and run the same command, what is done is kept there'
      ) from error
    if isinstance(error, PermissionError | NotADirectoryError):
      raise UserError(f'{half}: cannot be written: {error}') from error
    raise
