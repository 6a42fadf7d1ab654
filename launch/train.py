r"""Trains a config; run again with the same command to continue.

  python -m launch.train --config configs/mirage/grid.py:vae --workdir W

Override any key of the config, and ask for a variant after the colon:

  python -m launch.train --config configs/mirage/grid.py:dit --workdir W \
      --config.batch_size=8 --config.mesh.fsdp=4

Several processes: start the same command in each, with

  --coordinator=HOST:PORT --num_processes=N --process_id=I

or only --coordinator=auto on a TPU pod, Slurm or Kubernetes.

The workdir gets config.json, checkpoints/, metrics.jsonl and TensorBoard
events. SIGTERM saves and exits with 0; a second one exits at once.
`--profile=10:12` records these steps for xprof. `--step=FILE` starts with the step
that `launch.aot --export=FILE` compiled elsewhere.
"""

import json
import sys

from absl import app, flags
import jax
from ml_collections import config_flags

from launch import loop, saved_step
from launch.config_flag import parse_flags
from launch.errors import UserError, one_line
from launch.trace import parse_steps

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'configs/...py[:variant,key=value]', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'where the run is kept')
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of process 0, or auto; one process if unset'
)
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'how many')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'which one this is')
_PROFILE = flags.DEFINE_string(
  'profile', None, 'FIRST:LAST, the steps to record for xprof'
)
_STEP = flags.DEFINE_string(
  'step',
  None,
  'the compiled step of this config for these devices, by launch.aot --export; '
  'it runs code from the file',
)


def main(_: list[str]) -> None:
  with one_line():
    if _CONFIG.value is None or _WORKDIR.value is None:
      raise UserError('--config and --workdir are needed; see --help')
    profile = parse_steps(_PROFILE.value)
    connect(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if jax.process_index() == 0:
      devices = jax.devices()
      print(
        f'{len(devices)} x {devices[0].device_kind} in {jax.process_count()} '
        f'process(es); workdir {_WORKDIR.value}',
        flush=True,
      )
    # What a checkpoint gives back later is what the experiment gets now.
    config = json.loads(_CONFIG.value.to_json())
    step = _STEP.value and saved_step.load(_STEP.value, config)
    loop.train(config, _WORKDIR.value, profile=profile, step=step)


def connect(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
  """Joins the other processes, if there are any."""
  if coordinator is None:
    if num_processes is not None or process_id is not None:
      raise UserError('--num_processes and --process_id need --coordinator')
  elif coordinator == 'auto':
    jax.distributed.initialize()
  else:
    if num_processes is None or process_id is None:
      raise UserError(
        '--coordinator=HOST:PORT needs --num_processes and --process_id'
      )
    jax.distributed.initialize(coordinator, num_processes, process_id)


if __name__ == '__main__':
  sys.exit(app.run(main, flags_parser=parse_flags))
