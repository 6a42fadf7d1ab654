"""What `launch.aot` found, as text, as one line of JSON and as a page."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import html
import json
import math
from typing import Any

from launch.aot_chips import Chip
from launch.aot_memory import GIB, Memory
from launch.aot_schedule import Timeline

TOP = 12  # rows of a table of kernels


@dataclasses.dataclass(frozen=True)
class Report:
  """A compiled step, modelled.

  Attributes:
    title: Config and topology.
    chip: The generation.
    devices: JAX devices.
    mesh: Axis -> size.
    memory: Of one device.
    timeline: Of one device.
    flops: Model FLOPs of a step on all devices, see `aot_flops`.
    compile_seconds: Of tracing and compiling.
    warnings: What to know before one believes it.
  """

  title: str
  chip: Chip
  devices: int
  mesh: Mapping[str, int]
  memory: Memory
  timeline: Timeline
  flops: float
  compile_seconds: float
  warnings: Sequence[str] = ()

  @property
  def chips(self) -> int:
    return self.devices // self.chip.devices

  @property
  def mfu(self) -> float | None:
    """Model FLOPs over what the chips could do meanwhile; None if unknown."""
    seconds = self.timeline.seconds
    if self.timeline.unknown or not seconds or math.isnan(self.flops):
      return None
    return self.flops / (seconds * self.chips * self.chip.peak_per_chip)

  def line(self) -> str:
    """One line of JSON."""
    unknown = bool(self.timeline.unknown)
    return json.dumps(
      {
        'mfu': None if self.mfu is None else round(self.mfu, 4),
        'step_seconds': None if unknown else self.timeline.seconds,
        'memory_gb': round(self.memory.total / 1e9, 3),
        'collectives': [
          {
            'op': op,
            'how': how,
            'group': group,
            'count': row.count,
            'gb': round(row.size / 1e9, 6),
            'seconds': row.seconds,
            'exposed_seconds': row.exposed,
          }
          for (op, how, group), row in _sorted(self.timeline.collectives)
        ],
        'compile_seconds': round(self.compile_seconds, 1),
      }
    )

  def sections(self) -> Iterator[tuple[str, list[tuple]]]:
    """(heading, rows), the first row naming the columns."""
    memory, timeline = self.memory, self.timeline
    parts = [(f'arguments: {k}', v) for k, v in memory.arguments.items()]
    parts += [('output', memory.output), ('temp', memory.temp)]
    parts += [('code', memory.code), ('all', memory.total)]
    yield (
      f'memory a device, of {self.chip.memory / GIB:.4g} GiB',
      [('', 'GiB')] + [(k, f'{v / GIB:.3f}') for k, v in parts],
    )
    yield 'step, modelled', [('', ''), *self._step()]
    rows = [
      (op, how, group, row.count, *_figures(row.size / 1e9, row.seconds * 1e3))
      + _figures(row.exposed * 1e3)
      for (op, how, group), row in _sorted(timeline.collectives)
    ]
    if rows:
      yield (
        'collectives, a step on one device',
        [('', 'how', 'group', 'count', 'GB', 'ms', 'ms exposed'), *rows],
      )
    for name, table in (
      ('Pallas kernels', timeline.kernels),
      ('what XLA made', timeline.fusions),
    ):
      rows = [
        (row.count, *_figures(row.seconds * 1e3), name)
        for name, row in _sorted(table)[:TOP]
      ]
      if rows:
        yield f'{name}, the longest', [('count', 'ms', ''), *rows]

  def _step(self):
    timeline = self.timeline
    kernels, fusions = (
      sum(row.seconds for row in table.values())
      for table in (timeline.kernels, timeline.fusions)
    )
    yield 'seconds', f'{timeline.seconds:.4g}'
    yield 'Pallas kernels', f'{kernels:.4g} s'
    yield 'what XLA made', f'{fusions:.4g} s'
    share = timeline.exposed / (timeline.seconds or 1)
    yield 'exposed collectives', f'{timeline.exposed:.4g} s ({share:.1%})'
    peak = self.chip.peak_per_chip / 1e12
    formula = (
      f'{self.flops:.4g} model FLOP / ({timeline.seconds:.4g} s x {self.chips} '
      f'chips x {peak:g} TFLOP/s bf16 a chip)'
    )
    yield 'MFU', 'n/a' if self.mfu is None else f'{self.mfu:.3f} = {formula}'
    yield (
      'cycles of',
      f'the schedule {timeline.simulated}, XLA {timeline.estimated} executions',
    )
    yield 'compiling', f'{self.compile_seconds:.0f} s'

  def notes(self) -> list[str]:
    missing = [
      f'no time of {name}: {why}' for name, why in self.timeline.unknown.items()
    ]
    assumed = [
      f'branches of {name} that depend on data go as if they were zeros'
      for name in sorted(self.timeline.assumed)
    ]
    return [*self.warnings, *missing, *assumed]

  def text(self) -> str:
    lines = [f'{self.title}: {self._what()}']
    for heading, rows in self.sections():
      lines += ['', heading, *_columns(rows)]
    lines += [''] + [f'warning: {note}' for note in self.notes()]
    return '\n'.join(lines).rstrip()

  def _what(self) -> str:
    sizes = ' x '.join(f'{axis} {n}' for axis, n in self.mesh.items())
    return (
      f'{self.devices} devices on {self.chips} chips, mesh {sizes}. Memory is '
      'of the compiled program; times are modelled, not measured'
    )

  def page(self) -> str:
    """A page of HTML that needs no other file."""
    body = [f'<h1>{html.escape(self.title)}</h1><p>{self._what()}</p>']
    body += [f'<p class=note>{html.escape(x)}</p>' for x in self.notes()]
    for heading, (first, *rows) in self.sections():
      body.append(f'<h2>{html.escape(heading)}</h2><table>')
      body.append(_row('th', first))
      body += [_row('td', row) for row in rows]
      body.append('</table>')
    return _PAGE.format(title=html.escape(self.title), body='\n'.join(body))


def _sorted(table: Mapping[Any, Any]) -> list[tuple]:
  return sorted(table.items(), key=lambda item: -item[1].seconds)


def _figures(*values: float) -> tuple[str, ...]:
  return tuple(f'{value:.3f}' for value in values)


def _columns(rows):
  """Aligned, without a heading of no words."""
  rows = [[str(x) for x in row] for row in rows if any(row)]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    cells = [f'{x:<{n}}' for x, n in zip(row, widths, strict=True)]
    yield '  ' + '  '.join(cells).rstrip()


def _row(tag, cells):
  inside = ''.join(f'<{tag}>{html.escape(str(x))}</{tag}>' for x in cells)
  return f'<tr>{inside}</tr>'


_PAGE = """<!doctype html>
<meta charset=utf-8>
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em;
  color: #222; background: #fff }}
table {{ border-collapse: collapse }}
th, td {{ text-align: left; padding: .15em 1em .15em 0;
  border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums }}
.note {{ color: #a00 }}
</style>
{body}
"""
