r"""Compiles a config's real step for TPUs that are not there.

  python -m launch.aot --config configs/mirage/mirage_10b.py:v5p_256 \
      --topology v5p:8x8x4 --report out.html

Any config, any topology that libtpu knows (v5e:4x4, v6e:16x16, tpu7x:4x4x8,
...; 2xv5p:8x8x4 for two slices), on a CPU with `pip install 'jax[tpu]'`. Prints
what a device's memory holds, the collectives, the longest kernels and, modelled,
the time of a step and its MFU; `aot_cycles` says how good the model is. Exits
with 1 if the step does not fit, and says what would.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import sys
import tempfile

from absl import app, flags
import jax
from ml_collections import config_flags

from launch import (
  aot_chips,
  aot_compile,
  aot_cycles,
  aot_flops,
  aot_sampling,
  loop,
  saved_step,
)
from launch.aot_report import Report
from launch.aot_schedule import Walk
from launch.config_flag import parse_flags
from launch.errors import UserError, one_line

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'configs/...py[:variant,key=value]', lock_config=True
)
_TOPOLOGY = flags.DEFINE_string('topology', None, aot_chips.EXAMPLES)
_REPORT = flags.DEFINE_string('report', None, 'a page of HTML to write')
_SAMPLE = flags.DEFINE_bool(
  'sample',
  False,
  'a step of the sampler, guidance of two branches, in place of one of training; '
  'a clip has 64',
)
_JSON = flags.DEFINE_bool('json', False, 'print one line of JSON instead')
_EXPORT = flags.DEFINE_string(
  'export', None, 'a file for the compiled step, for --step of launch.train'
)
_CYCLES = flags.DEFINE_bool(
  'cycles',
  True,
  'count cycles in the schedules of all kernels; without, XLA estimates its '
  'own ones and Pallas kernels have no time; compiles a few times faster',
)


def main(_: list[str]) -> None:
  with one_line():
    if _CONFIG.value is None or _TOPOLOGY.value is None:
      raise UserError('--config and --topology are needed; see --help')
    if _SAMPLE.value and _EXPORT.value:
      raise UserError('--export saves a step of training: leave --sample out')
    config = json.loads(_CONFIG.value.to_json())
    with dumped(_CYCLES.value) as cycles:
      build = aot_sampling.experiment if _SAMPLE.value else loop.build
      report = analyse(config, _TOPOLOGY.value, cycles, build, _EXPORT.value)
    name = config_flags.get_config_filename(flags.FLAGS['config'])
    report = dataclasses.replace(report, title=f'{name} on {_TOPOLOGY.value}')
    if _REPORT.value:
      pathlib.Path(_REPORT.value).write_text(report.page())
    print(report.line() if _JSON.value else report.text())


def analyse(
  config: dict,
  topology: str,
  cycles: Callable,
  build: Callable = loop.build,
  export: str | None = None,
) -> Report:
  """Compiles and models.

  Args:
    config: a plain nested dict, as `launch.train` has it.
    topology: libtpu's name of it.
    cycles: what `dumped` gives.
    build: as for `aot_compile.compile_step`.
    export: where to save the compiled step.

  Raises:
    UserError: what the user can mend, in one line.
  """
  chip = aot_chips.chip(topology)
  devices = aot_chips.devices(topology)
  compiled = aot_compile.compile_step(config, devices, build)
  if export:
    saved_step.save(export, compiled.program, config)
  walk = Walk(
    compiled.program.as_text(),
    chip,
    len(devices),
    functools.partial(cycles, chip=chip),
  )
  counted = aot_flops.plain(config)
  exp = build(counted)
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = aot_compile.unboxed_state(exp)
  batch = aot_compile.abstract_batch(counted)
  return Report(
    title=f'{config["experiment"]} on {topology}',
    chip=chip,
    devices=len(devices),
    mesh=compiled.mesh.shape,
    memory=compiled.memory,
    timeline=walk.timeline,
    flops=aot_flops.count(exp.train_step, state, batch, key),
    compile_seconds=compiled.seconds,
    warnings=compiled.warnings,
  )


@contextlib.contextmanager
def dumped(schedules: bool) -> Iterator[Callable]:
  """Sets libtpu up, which reads this once; gives a lookup of cycles by name.

  The lookup takes (name of the instruction, whether it is a Pallas kernel,
  chip=) and returns `aot_cycles.Cycles` or None.
  """
  for name, value in aot_chips.ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  jax.config.update('jax_platforms', 'cpu')
  # What comes out of a cache has not been scheduled, and so not dumped.
  jax.config.update('jax_enable_compilation_cache', False)
  if not schedules:
    yield lambda name, pallas, chip: None
    return
  with tempfile.TemporaryDirectory(prefix='aot_') as folder:
    os.environ['LIBTPU_INIT_ARGS'] = ' '.join(
      [
        os.environ.get('LIBTPU_INIT_ARGS', ''),
        f'--xla_jf_dump_to={folder}',
        '--xla_jf_dump_llo_text=true',
        '--xla_jf_dump_llo_pass_label_regex=final_bundles',
      ]
    ).strip()
    yield Dump(folder)


class Dump:
  """Cycles of the kernels whose schedules lie in a folder."""

  def __init__(self, folder: str | os.PathLike):
    self._folder, self._known = pathlib.Path(folder), {}

  @functools.cached_property
  def _files(self):
    """name of the instruction -> file; the last one where there are more."""
    found = {}
    for file in sorted(self._folder.glob('*-final_bundles.txt')):
      name = re.fullmatch(r'\d+-(.*)-\d+-final_bundles', file.stem)
      if name:  # Not the analyses beside them.
        found[name[1]] = file
    return found

  def __call__(self, name: str, pallas: bool, chip: aot_chips.Chip):
    if name not in self._known:
      plain = re.sub(r'\.clone(\.\d+)?$', '', name)
      files = [self._files[n] for n in (name, plain) if n in self._files][:1]
      if not files and pallas:
        # libtpu compiles equal kernels once: take the slowest of that name.
        stem = re.sub(r'\.\d+$', '', name)
        files = [
          file
          for other, file in self._files.items()
          if re.sub(r'\.\d+$', '', other) == stem
        ]
      self._known[name] = max(
        (aot_cycles.simulate(file, chip) for file in files),
        key=lambda x: x.cycles,
        default=None,
      )
    return self._known[name]


if __name__ == '__main__':
  sys.exit(app.run(main, flags_parser=parse_flags))
