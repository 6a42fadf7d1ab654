"""Walks the scheduled program that XLA made and adds up what its parts take.

The order of instructions in a compiled TPU program is the order they run in, so
one walk with a clock gives a step's time: loops times their trip counts, an
asynchronous collective from its start to its done beside the work between them.
Kernels take the cycles of `aot_cycles`; a fusion without a dumped schedule takes
XLA's own `estimated_cycles`. Collectives take what crosses the chip's links at
their nameplate rate, all links busy, one collective after another. Copies
between HBM and VMEM count as hidden. All of this is a model: use it to compare.
"""

import collections
from collections.abc import Callable, Mapping
import dataclasses
import re

from launch.aot_chips import Chip

COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
)
_COLLECTIVE = re.compile('|'.join(sorted(COLLECTIVES, key=len, reverse=True)))
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-<>]+) \(.*\{\s*$')
_INSTRUCTION = re.compile(r'  (?:ROOT )?%([\w.\-<>]+) = ')
_ARRAY = re.compile(r'\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]')
_BITS = {'pred': 8, 's4': 4, 'u4': 4, 'c64': 64}


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of the program; `rest` starts with the operands."""

  name: str
  type: str
  op: str
  rest: str

  @property
  def base(self) -> str:
    return re.sub(r'-(start|done|update)$', '', self.op)

  def called(self, key: str) -> list[str]:
    """Names of the computations under an attribute."""
    found = re.search(rf'\b{key}=(\{{[^}}]*\}}|%?[\w.\-<>]+)', self.rest)
    return re.findall(r'[\w.\-<>]+', found[1]) if found else []

  @property
  def scope(self) -> str:
    """Where in the Python program it comes from."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else self.name.rstrip('.0123456789')

  @property
  def estimate(self) -> int:
    """XLA's own cycles, 0 if it gives none."""
    found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
    return int(found[1]) if found else 0


@dataclasses.dataclass
class Row:
  """What one kind of work takes in a step."""

  count: int = 0
  seconds: float = 0.0
  size: float = 0.0  # bytes, of a collective's result
  exposed: float = 0.0  # seconds during which nothing else ran


@dataclasses.dataclass
class Timeline:
  """A step on one device; all times in seconds.

  Attributes:
    seconds: The whole.
    kernels: Of Mosaic kernels, by name.
    fusions: Of everything that XLA made, by place in the Python program.
    collectives: By (operation, 'async' or 'sync', devices in a group).
    simulated: How many of the counted executions have cycles of `aot_cycles`.
    estimated: And how many XLA's.
    unknown: Kernels without a time, and why; if there is one, `seconds` lacks
      it.
    assumed: Pallas kernels with branches that go as if data were zeros.
  """

  seconds: float = 0.0
  kernels: dict = dataclasses.field(
    default_factory=lambda: collections.defaultdict(Row)
  )
  fusions: dict = dataclasses.field(
    default_factory=lambda: collections.defaultdict(Row)
  )
  collectives: dict = dataclasses.field(
    default_factory=lambda: collections.defaultdict(Row)
  )
  simulated: int = 0
  estimated: int = 0
  unknown: dict = dataclasses.field(default_factory=dict)
  assumed: set = dataclasses.field(default_factory=set)

  @property
  def exposed(self) -> float:
    return sum(row.exposed for row in self.collectives.values())


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """Computations by name, in schedule order, and the name of the entry."""
  computations, entry, current = {}, '', None
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      current = computations[match[2]] = []
      entry = match[2] if match[1] else entry
    elif line.rstrip() == '}':  # Attributes of several lines have '}}, ...'.
      current = None
    elif current is not None and _INSTRUCTION.match(line):
      current.append(line)
    elif current:
      current[-1] += '\n' + line
  return {k: [_instruction(x) for x in v] for k, v in computations.items()}, (
    entry
  )


def _instruction(line):
  match = _INSTRUCTION.match(line)
  rest, end, depth = line[match.end() :], 0, 0
  while rest[end] != ' ' or depth:
    depth += (rest[end] in '([{') - (rest[end] in ')]}')
    end += 1
  op = re.match(r'[\w\-]*', rest[end + 1 :])[0]
  return Instruction(match[1], rest[:end], op, rest[end + 1 + len(op) :])


def size(type: str) -> float:
  """Bytes of an array type, or of all the arrays of a tuple."""
  total = 0.0
  for name, dims in _ARRAY.findall(type):
    digits = re.match(r'[a-z]+(\d+)', name)
    if name not in _BITS and not digits:
      continue
    bits = _BITS.get(name) or int(digits[1])
    count = 1
    for n in filter(None, dims.split(',')):
      count *= int(n)
    total += count * bits / 8
  return total


def trips(loop: Instruction, computations: Mapping) -> int:
  """How often a while loop runs."""
  if found := re.search(r'known_trip_count"?:\s*\{"?n"?:"?(\d+)', loop.rest):
    return int(found[1])
  (condition,) = loop.called('condition')
  limits = [
    int(n)
    for x in computations.get(condition, [])
    if x.op == 'constant'
    for n in re.findall(r'^\((\d+)\)', x.rest)
  ]
  return max(limits, default=1)


def group_size(rest: str, devices: int) -> int:
  """How many devices take part in one collective."""
  if found := re.search(r'replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}', rest):
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
    group = 1
    for axis in re.findall(r"'([^']+)'", found[2]):
      group *= int(sizes.get(axis, 1))
    return group
  if found := re.search(r'replica_groups=\[(\d+),(\d+)\]', rest):
    return int(found[2])
  if found := re.search(r'replica_groups=\{\{([\d,]+)\}', rest):
    return len(found[1].split(','))
  return devices


def collective_seconds(op: str, result: float, group: int, chip: Chip) -> float:
  """Time on the links of a ring over all links of a chip; `result` in bytes."""
  if op in ('collective-permute', 'collective-broadcast'):
    return result / chip.link
  share = (group - 1) / group
  crossing = {
    'all-gather': result * share,
    'all-reduce': 2 * result * share,
    'reduce-scatter': result * (group - 1),
    # To everyone: a byte passes an eighth of the group on its way.
    'all-to-all': result * share * max(1, group / 8),
    'ragged-all-to-all': result * share * max(1, group / 8),
  }[op]
  return crossing / (chip.link * chip.links / chip.devices)


def _started(done: Instruction) -> str:
  """The name of the instruction that this one ends."""
  found = re.match(r'\(%([\w.\-<>]+)', done.rest)
  return re.sub('-update(?=$|[.])', '-start', found[1]) if found else ''


class Walk:
  """One pass over a program.

  Args of the constructor:
    text: `compiled.as_text()`.
    cycles: name of an instruction -> `aot_cycles.Cycles`, or None if its
      schedule was not dumped.
    devices: of the whole program.
  """

  def __init__(
    self, text: str, chip: Chip, devices: int, cycles: Callable
  ) -> None:
    self._computations, entry = parse(text)
    self._chip, self._devices, self._cycles = chip, devices, cycles
    self._links_free = 0.0
    self.timeline = Timeline()
    self.timeline.seconds = self._run(entry, 1, 0.0)

  def _run(self, name: str, times: int, clock: float) -> float:
    """The clock after one execution of a computation, counted `times` times."""
    pending = {}
    for x in self._computations.get(name, []):
      if x.op == 'while':
        n = trips(x, self._computations)
        self._links_free = 0.0
        clock += n * self._run(x.called('body')[0], times * n, 0.0)
        self._links_free = 0.0
      elif x.op == 'conditional':
        branches = [
          branch
          for key in (
            'branch_computations',
            'true_computation',
            'false_computation',
          )
          for branch in x.called(key)
        ]
        clock += max((self._run(b, times, 0.0) for b in branches), default=0)
      elif x.op == 'call':
        clock = self._run(x.called('to_apply')[0], times, clock)
      elif x.op.endswith('-done'):
        clock = self._finish(x, pending, times, clock)
      elif not x.op.endswith('-update'):
        clock = self._one(x, name, pending, times, clock)
    return clock

  def _finish(self, done, pending, times, clock):
    key, end = pending.pop(_started(done), (None, clock))
    if end > clock:
      self.timeline.collectives[key].exposed += (end - clock) * times
    return max(clock, end)

  def _one(self, x, computation, pending, times, clock):
    """An instruction that is neither control flow nor the end of another."""
    if found := self._collective(x, computation):
      op, result, group = found
      seconds = collective_seconds(op, result, group, self._chip)
      hidden = x.op.endswith('-start') or (
        x.op == 'fusion' and 'async' in x.name
      )
      key = op, 'async' if hidden else 'sync', group
      row = self.timeline.collectives[key]
      row.count += times
      row.seconds += seconds * times
      row.size += result * times
      end = self._links_free = max(clock, self._links_free) + seconds
      if hidden:
        pending[x.name] = key, end
        return clock
      row.exposed += (end - clock) * times
      return end
    if x.op == 'custom-call' and 'tpu_custom_call' in x.rest:
      return clock + self._kernel(x, times)
    return clock + self._fusion(x, times)

  def _collective(self, x, computation):
    """(operation, bytes of the result, group), or None if it is another."""
    if x.base in COLLECTIVES:
      return x.base, self._result(x, x.base), self._group(x)
    if x.op in ('fusion', 'async-start', 'call-start'):
      for name in x.called('calls') + x.called('to_apply'):
        for inner in self._computations.get(name, []):
          if inner.base in COLLECTIVES:
            result = self._result(inner, inner.base)
            return inner.base, result, self._group(inner)
    match = _COLLECTIVE.match(x.name)
    if x.op == 'custom-call-start' and match:  # offloaded to a SparseCore
      inside = [
        y
        for name in x.called('called_computations')
        for y in self._computations.get(name, [])
        if 'replica_groups' in y.rest
      ]
      done = [
        y
        for y in self._computations[computation]
        if y.op == 'custom-call-done' and _started(y) == x.name
      ]
      result = size(done[0].type) if done else size(x.type)
      return match[0], result, self._group(inside[0] if inside else x)
    return None

  def _group(self, x):
    return group_size(x.rest, self._devices)

  @staticmethod
  def _result(x, op):
    """Bytes of the result; the type of a start has the operand before it."""
    if not x.op.endswith('-start'):
      return size(x.type)
    arrays = [m[0] for m in _ARRAY.finditer(x.type)]
    second = op != 'collective-permute' and len(arrays) > 1
    return size(arrays[1 if second else 0])

  def _kernel(self, x, times):
    found = self._cycles(x.name, True)
    if found is None:
      self.timeline.unknown[x.name] = 'its schedule was not dumped'
    elif found.unknown:
      self.timeline.unknown[x.name] = ', '.join(found.unknown)
    elif found.assumed:
      self.timeline.assumed.add(x.name)
    seconds = found.cycles / self._chip.clock if found else 0.0
    row = self.timeline.kernels[x.name]
    row.count += times
    row.seconds += seconds * times
    self.timeline.simulated += times
    return seconds

  def _fusion(self, x, times):
    if not x.estimate:
      return 0.0
    found = self._cycles(x.name, False)
    if found is not None and not found.unknown:
      cycles = found.cycles
      self.timeline.simulated += times
    else:
      cycles = x.estimate
      self.timeline.estimated += times
    seconds = cycles / self._chip.clock
    row = self.timeline.fusions[x.scope]
    row.count += times
    row.seconds += seconds * times
    return seconds
