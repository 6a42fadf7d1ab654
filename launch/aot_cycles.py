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
from collections.abc import Mapping, Sequence
import dataclasses
import functools
import operator
import os
import re

from launch.aot_chips import Chip

LATENCY = 700  # clocks from a DMA's last byte to the end of the wait for it
LOCAL_LATENCY, LOCAL_BYTES = 100, 256  # and for one that stays on the chip
GRANULE = 32  # bytes, the unit of a DMA's size
DELAY_SLOTS = 4
MAX_STEPS = 40_000_000  # bundles executed one by one; about a minute

_BUNDLE = re.compile(
  r'^\s*(?:0x)?[0-9a-f]+\s+(?:L[HBE]|P[BF]|CT)?\s*:[\s>]*\{', re.M
)
_COMMENT = re.compile(r'/\*.*?\*/', re.S)
_REGION = re.compile(r'Start(?:/End empty)? region (\d+)')
_REGISTER = re.compile(r'%(?:\w+_)?([sp]\d+)$')
_CORE = re.compile(r'sld \[smem:\[(#\w+)\]\][^/]*/\*[^*]*core (?:id|index)')
_INSTRUCTION = re.compile(r'(%\w+) = ([\w.]+)\s*(.*)$', re.S)
_GUARD = re.compile(r'\((!?)(%\w+)(?:, [^)]*)?\),?\s*')
_ADDRESS = re.compile(r'(\[(?:[^\[\]]|\[[^\]]*\])*\])[\s,]*')
_MATMUL = re.compile(r'= vmatmul([\w.\[\]]*?)mxu(\d)')
_ROWS = {'bf16': 16, 'f32': 8, 'f8': 32, 's8': 32, 'u8': 32, 's4': 32, 'u4': 32}

# An int, a (symbol, offset) of some memory, or None if it is not known.
Value = int | tuple[str, int] | None


@dataclasses.dataclass(frozen=True)
class Operand:
  """symbol + offset + the sum of registers."""

  symbol: str | None
  offset: int
  registers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Op:
  """A scalar instruction; it happens if the guard's register is (not) zero."""

  kind: str  # set, load, store, branch, dma, wait or delay
  name: str  # the opcode; of a branch, the region it goes to
  target: str | None = None  # the register it writes
  args: tuple[Operand | None, ...] = ()  # of a DMA: size and flag
  guard: tuple[bool, str] | None = None  # (negated, register)


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A parsed schedule."""

  bundles: Sequence[Sequence[Op]]
  regions: Mapping[str, int]  # name -> its first bundle, but for the end's
  matmuls: Sequence[Mapping[str, int]]  # per bundle, rows pushed to each MXU
  core_symbols: frozenset[str]  # where the number of the core is read


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


def parse(text: str) -> Kernel:
  """Reads a `*-final_bundles.txt`."""
  bundles, regions, matmuls = [], {}, []
  for raw in _BUNDLE.split(text)[1:]:
    for comment in _COMMENT.findall(raw):
      for region in _REGION.findall(comment):
        regions.setdefault(region, len(bundles))
    code = _COMMENT.sub('', raw)
    bundles.append([op for op in map(_decode, code.split(';;')) if op])
    matmuls.append(_matmul_rows(code))
  return Kernel(
    _that_matter(bundles), regions, matmuls, frozenset(_CORE.findall(text))
  )


def _matmul_rows(code):
  rows = collections.Counter()
  for kind, unit in _MATMUL.findall(code):
    # `.lmr` streams one register of eight rows again.
    known = [8] * ('.lmr' in kind)
    known += [n for name, n in _ROWS.items() if f'.{name}' in kind]
    rows[unit] += known[0] if known else 0
  return rows


def _decode(text):
  match = _INSTRUCTION.match(text.strip().rstrip('}').strip())
  if not match:
    return None
  target, name, rest = _register(match[1]), match[2], match[3].strip()
  if name in ('vdelay', 'sdelay'):
    return Op('delay', name, args=(_operand(rest.split()[0]),))
  if name[0] == 'v' or name in ('sphi', 'sfence'):
    return None
  address = []
  if name in ('sld', 'sst'):
    found = _ADDRESS.match(rest)
    address, rest = [_operand(found[1])], rest[found.end() :]
  guard, rest = None, re.sub(r'^\[thread:[^\]]*\]\s*', '', rest)
  if found := _GUARD.match(rest):
    guard, rest = (bool(found[1]), _register(found[2])), rest[found.end() :]
  if name == 'sbr.rel':
    return Op('branch', rest.rpartition('$region')[2].strip(), guard=guard)
  parts = [x for x in re.split(r',(?![^\[]*\])', rest) if x.strip()]
  args = (*address, *map(_operand, parts))
  if name == 'dma.done.wait':
    return Op('wait', name, args=args[:1], guard=guard)
  if name.startswith('dma.'):  # Source, size, destination, flag.
    args = (args[1], args[3]) if len(args) > 3 else (None, None)
    return Op('dma', name, args=args, guard=guard)
  if name == 'sst':
    return Op('store', name, args=args, guard=guard)
  kind = 'load' if name == 'sld' else 'set'
  return Op(kind, name, target, args, guard) if target else None


def _register(text):
  match = _REGISTER.match(text)
  return match[1] if match else None


def _operand(text):
  """Parses `%s3_s4`, `-5`, `0x1f`, `[#allocation2 + $0x8]`, `[smem:[...]]`."""
  symbol, offset, registers = None, 0, []
  for part in re.sub(r'smem:|[\[\]]', '', text).split('+'):
    part = part.strip().removeprefix('$')
    if part.startswith('#'):
      symbol = (symbol or '') + part
    elif _register(part):
      registers.append(_register(part))
    elif re.fullmatch(r'-?(0x[0-9a-f]+|\d+)', part):
      offset = signed(offset + int(part, 0))
    elif part in ('true', 'false'):
      offset += part == 'true'
    else:
      return None
  return Operand(symbol, offset, tuple(registers))


def _that_matter(bundles):
  """Only the instructions that some branch, DMA or wait depends on."""
  ops = [op for bundle in bundles for op in bundle]
  writers = collections.defaultdict(list)
  for op in ops:
    writers[op.target].append(op)
  needed, memory = set(), False
  todo = [op for op in ops if op.kind in ('branch', 'dma', 'wait')]
  while todo:
    op = todo.pop()
    if op.kind == 'load' and not memory:
      memory = True
      todo += [x for x in ops if x.kind == 'store']
    reads = {r for arg in op.args if arg for r in arg.registers}
    reads |= {op.guard[1]} if op.guard else set()
    for register in reads - needed:
      needed.add(register)
      todo += writers[register]
  always = ('branch', 'dma', 'wait', 'delay') + ('store',) * memory
  return [
    [op for op in bundle if op.kind in always or op.target in needed]
    for bundle in bundles
  ]


def simulate(path: str | os.PathLike, chip: Chip) -> Cycles:
  """A dumped `*-final_bundles.txt` on the slowest of the device's cores."""
  with open(path, errors='replace') as file:
    kernel = parse(file.read())

  def run(data):
    cores = [Core(kernel, chip, n, data).run() for n in range(chip.cores)]
    return max(cores, key=lambda x: x.cycles)

  found = run(None)
  if not found.assumed or found.unknown:
    return found
  return dataclasses.replace(run(0), assumed=True)


class Core:
  """Executes the scalar slots of one core; `data` is what DMA brings them."""

  def __init__(self, kernel: Kernel, chip: Chip, number: int, data: Value):
    self._kernel, self._chip, self._data = kernel, chip, data
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
      holds = self._holds(op.guard)
      if holds is False:
        continue
      values = [self._value(x) for x in op.args]
      if op.kind == 'set':
        value = compute(op.name, values) if holds else None
        writes.append((self._registers, op.target, value))
      elif op.kind == 'load':
        known = holds and values[0] is not None
        value = self._memory.get(values[0], self._data) if known else None
        writes.append((self._registers, op.target, value))
      elif op.kind == 'store':
        writes.append((self._memory, values[0], values[1] if holds else None))
      elif op.kind == 'branch':
        self._branch(op, holds, at)
      elif op.kind == 'dma':
        self._start(op.name, *values)
      elif op.kind == 'wait':
        self._wait(values[0])
      else:
        self._clock += op.args[0].offset
    for place, key, value in writes:
      place[key] = value

  def _branch(self, op, holds, at):
    target = self._kernel.regions.get(op.name, len(self._kernel.bundles))
    if holds:
      self._goto = target
    elif target > at:
      self._assumed = True
    else:
      self._unknown[f'loop to region {op.name}'] = None

  def _start(self, name, size, flag):
    if not isinstance(size, int):
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
    """True, False, or None if it is not known."""
    if guard is None:
      return True
    value = self._registers.get(guard[1])
    return None if value is None else bool(value) != guard[0]

  def _value(self, operand) -> Value:
    if operand is None:
      return None
    value = operand.offset
    if operand.symbol is not None:
      value = (operand.symbol, value)
    for register in operand.registers:
      value = plus(value, self._registers.get(register))
    return value


def signed(x: int) -> int:
  """Its low 32 bits."""
  x &= 0xFFFFFFFF
  return x - (1 << 32) if x >> 31 else x


def plus(a: Value, b: Value) -> Value:
  """Numbers, or a pointer and a number."""
  if isinstance(b, tuple):
    a, b = b, a
  if a is None or not isinstance(b, int):
    return None
  return (a[0], a[1] + b) if isinstance(a, tuple) else signed(a + b)


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
