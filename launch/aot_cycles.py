"""A cycle model of one TPU kernel, from the schedule that libtpu dumps of it.

A TensorCore issues one bundle of instructions a clock, in order. Which bundles
and how often is for the scalar slots alone to say, so these are executed here:
loop counters, predicates, scalar memory, branches with their four delay slots.
Vector slots are only counted, and a kernel takes

  cycles = max(bundles issued + delays + waits for DMA, rows of the MXU + waits)

with a DMA of n bytes taking n / bandwidth behind those before it, and LATENCY.

Against medians on real TPUs (splash attention forward, not causal, with its
transposes; bfloat16, 1,024 to 16,384 tokens, head sizes 64 to 256; tokamax's
shipped autotuning files), model / measured:

  generation  cases  geometric mean [range]   of those over 2 ms
  v5p         13     0.94 [0.85, 0.99]        0.97 [0.95, 0.98]
  v6e         15     0.91 [0.82, 0.96]        0.94 [0.91, 0.96]
  tpu7x       8      0.85 [0.76, 0.93]        0.93 (one case)

It is optimistic by what starting a kernel takes (0.05 to 0.1 ms). tpu7x's clock
was chosen to fit, so that generation is calibrated and not validated; v5e,
backward kernels and XLA's fusions have not been compared with hardware.
"""

import collections
from collections.abc import Sequence
import dataclasses
import functools
import operator
import os

from launch.aot_bundles import Kernel, parse, signed
from launch.aot_chips import Chip

LATENCY = 700  # clocks from a DMA's last byte to the end of the wait for it
LOCAL_LATENCY, LOCAL_BYTES = 100, 256  # and for one that stays on the chip
GRANULE = 32  # bytes, the unit of a DMA's size
DELAY_SLOTS = 4
MAX_STEPS = 40_000_000  # bundles executed one by one; about a minute

# An int, a (symbol, offset) of some memory, or None if it is not known.
Value = int | tuple[str, int] | None


@dataclasses.dataclass(frozen=True)
class Cycles:
  """What one execution of a kernel takes on its slowest core, in clocks.

  `unknown` names loops and sizes that depend on data: not empty, `cycles` is no
  estimate. Where only branches do, they go as if all data were zeros.
  """

  cycles: float
  waits: float  # for DMA
  matmul: float  # that the busiest matrix unit needs for its rows
  unknown: tuple[str, ...]
  assumed: bool = False  # that some data are zeros


class Data(int):
  """A number that depends on data, which are taken for zeros."""


def simulate(path: str | os.PathLike, chip: Chip) -> Cycles:
  """A dumped `*-final_bundles.txt` on the slowest of the device's cores."""
  with open(path, errors='replace') as file:
    kernel = parse(file.read())
  cores = [Core(kernel, chip, number).run() for number in range(chip.cores)]
  return max(cores, key=lambda x: x.cycles)


class Core:
  """Executes the scalar slots of one core; what DMA brings them is zeros."""

  def __init__(self, kernel: Kernel, chip: Chip, number: int):
    self._kernel, self._chip = kernel, chip
    self._registers = {}
    self._memory = {(symbol, 0): number for symbol in kernel.core_symbols}
    self._bytes_per_clock = chip.bandwidth / chip.cores / chip.clock
    self._clock, self._waits, self._engine = 0.0, 0.0, 0.0
    self._flights = collections.defaultdict(collections.deque)
    self._unknown, self._assumed, self._goto = {}, False, None
    self._visits = [0] * (len(kernel.bundles) + 1)  # as differences

  def run(self) -> Cycles:
    bundles, visits = self._kernel.bundles, self._visits
    ahead = [0] * (len(bundles) + 1)  # bundles without a scalar instruction
    for i in reversed(range(len(bundles))):
      ahead[i] = 0 if bundles[i] else ahead[i + 1] + 1
    at = countdown = 0
    for _ in range(MAX_STEPS):
      if at >= len(bundles):
        break
      run = 1 if countdown else max(1, ahead[at])
      visits[at] += 1
      visits[at + run] -= 1
      self._clock += run
      if bundles[at]:
        self._execute(bundles[at], at)
      at += run
      if self._goto is not None and not countdown:
        countdown, target, self._goto = DELAY_SLOTS + 1, self._goto, None
      if countdown:
        countdown -= 1
        if not countdown:
          at = target
    else:
      self._unknown['no end'] = None
    return self._result()

  def _result(self):
    rows, count = collections.Counter(), 0
    for change, pushed in zip(self._visits, self._kernel.matmuls, strict=False):
      count += change
      for unit, n in pushed.items():
        rows[unit] += count * n
    matmul = max(rows.values(), default=0) / self._chip.mxu_rows
    flights = [end for queue in self._flights.values() for end in queue]
    end = max([self._clock, matmul + self._waits, *flights])
    unknown = tuple(self._unknown)
    return Cycles(end, self._waits, matmul, unknown, self._assumed)

  def _execute(self, ops, at):
    """Reads all slots, then writes: slots of a bundle do not see each other."""
    writes = []
    for op in ops:
      holds, data = self._holds(op.guard)
      if holds is False:
        if data and op.kind == 'set':
          old = self._registers.get(op.target)
          writes.append((self._registers, op.target, _marked(old)))
        elif data and op.kind == 'branch':
          self._branch(op, holds, data, at)
        continue
      values = [self._value(x) for x in op.args]
      if op.kind in ('set', 'load'):
        value = None
        if holds and op.kind == 'set':
          value = compute(op.name, values)
        elif holds and values[0] is not None:
          value = self._memory.get(values[0], Data(0))
        value = _marked(value) if data else value
        writes.append((self._registers, op.target, value))
      elif op.kind == 'store':
        writes.append((self._memory, values[0], values[1] if holds else None))
      elif op.kind == 'branch':
        self._branch(op, holds, data, at)
      elif op.kind == 'dma':
        self._start(op.name, *values)
      elif op.kind == 'wait':
        self._wait(values[0])
      else:
        self._clock += op.args[0].offset
    for place, key, value in writes:
      place[key] = value

  def _branch(self, op, holds, data, at):
    target = self._kernel.regions.get(op.name, len(self._kernel.bundles))
    unsure = data or holds is None
    if unsure and target <= at:
      self._unknown[f'loop to region {op.name}'] = None
      return
    self._assumed |= unsure
    if holds:
      self._goto = target

  def _start(self, name, size, flag):
    if not isinstance(size, int) or type(size) is Data:
      self._unknown['size of a DMA'], size = None, 0
    size *= GRANULE
    if 'hbm' in name or name == 'dma.general':
      begin = max(self._engine, self._clock)
      self._engine = begin + size / self._bytes_per_clock
      end = self._engine + LATENCY
    else:
      end = self._clock + size / LOCAL_BYTES + LOCAL_LATENCY
    self._flights[flag].append(end)

  def _wait(self, flag):
    if queue := self._flights.get(flag) or self._flights.get(None):
      late = max(0.0, queue.popleft() - self._clock)
      self._waits += late
      self._clock += late

  def _holds(self, guard):
    """True, False, or None if it is not known; and whether data say so."""
    if guard is None:
      return True, False
    value = self._registers.get(guard[1])
    holds = None if value is None else bool(value) != guard[0]
    return holds, type(value) is Data

  def _value(self, operand) -> Value:
    if operand is None:
      return None
    value = operand.offset
    if operand.symbol is not None:
      value = (operand.symbol, value)
    for register in operand.registers:
      value = plus(value, self._registers.get(register))
    return value


def _marked(x: Value) -> Value:
  return Data(x) if isinstance(x, int) else x


def plus(a: Value, b: Value) -> Value:
  """Numbers, or a pointer and a number."""
  if isinstance(b, tuple):
    a, b = b, a
  if a is None or not isinstance(b, int):
    return None
  if isinstance(a, tuple):
    return a[0], plus(a[1], b)
  total = signed(a + b)
  return Data(total) if Data in (type(a), type(b)) else total


_ARITHMETIC = {
  'ssub': operator.sub,
  'smul': operator.mul,
  'sand': operator.and_,
  'sor': operator.or_,
  'sxor': operator.xor,
  'smin': min,
  'smax': max,
  'sshll': lambda a, b: a << b if 0 <= b < 32 else 0,
  'sshra': lambda a, b: a >> min(b, 31),
  'sshrl': lambda a, b: (a & 0xFFFFFFFF) >> b if 0 <= b < 32 else 0,
}


def compute(name: str, args: Sequence[Value]) -> Value:
  """The result of a scalar instruction, or None if it cannot be known."""
  value = _compute(name, args)
  if Data not in map(type, args):
    return value
  # Data have no say in what is known without them.
  without = _compute(name, [None if type(x) is Data else x for x in args])
  return _marked(value) if without is None else without


def _compute(name, args):
  short, *detail = name.split('.')
  if short in ('smov', 'pmov', 'int_to_ptr'):
    return args[-1] if args else None
  if short in ('sadd', 'scalar_lea'):
    return functools.reduce(plus, args)
  if short in ('por', 'pand', 'pnand', 'pneg'):
    # What is known may decide without what is not.
    bits, decides = [x if x is None else bool(x) for x in args], short == 'por'
    if decides not in bits and None in bits:
      return None
    value = (decides in bits) == decides
    return int(value != (short in ('pnand', 'pneg')))
  if short == 'scalar_select':
    where, yes, no = args
    yes, no = (yes, no) if where is None or where else (no, yes)
    return yes if where is not None or yes == no else None
  if not all(isinstance(x, int) for x in args) or len(args) != 2:
    return None
  if 'u32' in detail:
    args = [x & 0xFFFFFFFF for x in args]
  if short == 'scmp':
    return int(getattr(operator, detail[0])(*args))
  return signed(_ARITHMETIC[short](*args)) if short in _ARITHMETIC else None
