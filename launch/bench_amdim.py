"""A training step of AMDIM against the same step in torch, on one thread.

  python -m launch.bench_amdim

Forward, backward and Adam of both views with both classifiers, float32, on
synthetic images. Torch (`pip install -e '.[convert]'`) runs the same layers
with channels last, its best layout. Sides take turns on one processor, so that
other work slows both. Beside them stands what the authors' own code took on one
thread of an AMD EPYC, at another time: processor seconds and peak memory.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import importlib.util
import json
import os
import pathlib
import sys
from typing import Any

from absl import app, flags

from configs.infomax import cifar10
from launch import side_by_side
from launch.errors import UserError, one_line
from launch.side_by_side import Result, Rival

_JSON = flags.DEFINE_bool('json', False, 'print one line of JSON, no table')
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'steps that count, of each side', 1)
_ONLY = flags.DEFINE_list('only', None, 'some of the names of CASES')
_TORCH = flags.DEFINE_bool('torch', True, 'measure torch too')

CPUINFO = pathlib.Path('/proc/cpuinfo')
AVX512 = CPUINFO.exists() and 'avx512f' in CPUINFO.read_text()
ENVIRONMENT = {
  # XLA's matrix products by YNNPACK, a third less, and what is done to them too,
  # which pays where registers are short. One thread gains nothing by the default
  # order of operations, which allows many at once and holds what they need.
  'XLA_FLAGS': (
    f'{os.environ.get("XLA_FLAGS", "")} '
    '--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_'
    + ('INDIVIDUAL_DOT' if AVX512 else 'DOT')
    + ' --xla_cpu_enable_concurrency_optimized_scheduler=false'
  ),
  # Either side keeps what it frees, in one heap for its one thread. XLA would
  # hand back a step's whole memory, and fetching it anew is up to a third. What
  # is freed joins its neighbours, or that memory may not fit its place any more.
  'GLIBC_TUNABLES': ':'.join(
    f'glibc.malloc.{setting}'
    for setting in (
      'hugetlb=1',
      'arena_max=1',
      'mmap_max=0',
      'trim_threshold=4294967296',
      'top_pad=67108864',
      'tcache_count=0',
      'mxfast=0',
    )
  ),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """Sizes of an encoder, and what the authors' code took of them.

  Attributes:
    image_size, ndf, n_rkhs, n_depth: As in `EncoderConfig`.
    batch: Images, of two views each.
    cpu: Processor seconds of a step of the authors' code.
    peak_bytes: Its process's peak memory.
  """

  image_size: int
  ndf: int
  n_rkhs: int
  n_depth: int
  batch: int
  cpu: float
  peak_bytes: float


CASES = {
  'tiny': Case(32, 32, 128, 2, 128, 0.50, 0.73e9),
  'wide': Case(32, 128, 1024, 3, 32, 1.96, 1.09e9),
  'wider': Case(32, 256, 2048, 3, 16, 4.67, 2.20e9),
  'deep': Case(32, 256, 2048, 10, 16, 8.26, 3.27e9),
  'stl10': Case(64, 64, 512, 3, 32, 2.40, 1.14e9),
}


def main(_: list[str]) -> None:
  with one_line():
    names = _ONLY.value or list(CASES)
    if strangers := set(names) - set(CASES):
      raise UserError(
        f'--only={",".join(sorted(strangers))}: there are {", ".join(CASES)}'
      )
    if _TORCH.value and importlib.util.find_spec('torch') is None:
      raise UserError(
        "torch is not installed; `pip install -e '.[convert]'` brings it, or "
        '--notorch leaves it out'
      )
    if hasattr(os, 'sched_setaffinity'):  # The sides inherit it.
      os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    results = {}
    for name in names:
      print(f'{name}: starting', file=sys.stderr, flush=True)
      rivals = make_rivals(CASES[name], _TORCH.value)
      results[name] = side_by_side.measure(
        rivals, _ROUNDS.value, environment=ENVIRONMENT
      )
    if _JSON.value:
      print(json.dumps(summary(results)))
    else:
      print('\n'.join(table(results)))


def make_rivals(case: Case, torch: bool) -> dict[str, Rival]:
  """Ours, and torch's."""
  config = make_config(case)
  rivals = {'ours': Rival('launch.bench_amdim_jax:step', {'config': config})}
  if torch:
    sizes = {**config['encoder'], 'batch': case.batch}
    rivals['torch'] = Rival('launch.bench_amdim_torch:step', {'sizes': sizes})
  return rivals


def make_config(case: Case) -> dict[str, Any]:
  """The recipe for two cores with the sizes of a case."""
  config = json.loads(cifar10.get_config('tiny').to_json())
  config['batch_size'] = case.batch
  config['data']['recipe'] = 'cifar' if case.image_size == 32 else 'stl10'
  for name in ('image_size', 'ndf', 'n_rkhs', 'n_depth'):
    config['encoder'][name] = getattr(case, name)
  return config


def summary(results: Mapping[str, Mapping[str, Result]]) -> dict[str, Any]:
  """Everything measured, by case and side, and the ratios to torch."""
  out = {}
  for name, sides in results.items():
    out[name] = {k: dataclasses.asdict(result) for k, result in sides.items()}
    if 'torch' in sides:
      ours, theirs = sides['ours'], sides['torch']
      out[name]['cpu_ratio'] = ours.cpu / theirs.cpu
      out[name]['memory_ratio'] = ours.peak_bytes / theirs.peak_bytes
  return out


def table(results: Mapping[str, Mapping[str, Result]]) -> Sequence[str]:
  """Lines of at most 80 columns: seconds, then gigabytes."""
  lines = [
    'AMDIM, a training step, float32, one thread',
    f'{"":<28}{"processor seconds":>26}{"peak memory, GB":>26}',
    f'{"px, ndf/n_rkhs/depth, batch":<28}'
    + 2 * f'{"ours":>8}{"torch":>8}{"authors":>10}',
  ]
  for name, sides in results.items():
    case = CASES[name]
    sizes = f'{case.ndf}/{case.n_rkhs}/{case.n_depth}'
    title = f'{case.image_size}, {sizes}, {case.batch}'
    cells = []
    for field, factor in (('cpu', 1), ('peak_bytes', 1e-9)):
      for side, width in (('ours', 8), ('torch', 8)):
        shown = '-'
        if side in sides:
          shown = f'{getattr(sides[side], field) * factor:.2f}'
        cells.append(f'{shown:>{width}}')
      cells.append(f'{getattr(case, field) * factor:>10.2f}')
    lines.append(f'{title:<28}{"".join(cells)}')
  return lines


if __name__ == '__main__':
  sys.exit(app.run(main))
