"""Reads the schedule that libtpu dumps of a kernel, for `aot_cycles`.

Which bundles of instructions run, and how often, is for the scalar slots alone
to say: of the others only the rows that matrix units take are counted.
"""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
import re

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


def signed(x: int) -> int:
  """Its low 32 bits."""
  x &= 0xFFFFFFFF
  return x - (1 << 32) if x >> 31 else x
