"""Checkpoints: the train state, the data iterator and the config of a run.

A workdir holds `config.json` and `checkpoints/<step>/{state,data}`. A step is
visible only once it is complete, so a run killed while saving loses that save
and nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import fcntl
import json
import os
import pathlib
import shutil
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from launch import atomic
from launch.errors import UserError, disk_is_full

# Keys that may differ when a run is continued: they change what is written and
# where it runs, not what is learnt.
FREE_KEYS = frozenset(
  ('num_steps', 'log_every', 'eval_every', 'eval_batches', 'save_every')
  + ('keep', 'keep_every', 'mesh')
)


class Checkpoints:
  """Saves and restores {state, data iterator} under `workdir`/checkpoints."""

  def __init__(
    self, workdir: str | os.PathLike, keep: int = 2, keep_every: int = 0
  ):
    """Keeps the last `keep` steps, and every `keep_every`-th for good."""
    self.directory = pathlib.Path(workdir).resolve() / 'checkpoints'
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        keep_period=keep_every or None,
        cleanup_tmp_directories=True,
      ),
    )

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def save(self, step: int, state: Any, data: Any) -> None:
    """Starts to save; returns once the state is copied off the device.

    Raises:
      UserError: the disk is full, now or in the save before this one.
    """
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      data=grain.checkpoint.CheckpointSave(data),
    )
    self._guard(lambda: self._manager.save(step, args=args, force=True))

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *_) -> None:
    """Returns when every save is complete on disk; raises as `save` does."""
    self._guard(self._manager.close)

  def restore(self, step: int, target: Any, data: Any) -> tuple[Any, Any]:
    """The state, laid out like the abstract `target`, and the data iterator.

    Raises:
      UserError: the checkpoint is damaged, or was saved by another number of
        processes (each keeps its own data position).
    """
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(target),
      data=grain.checkpoint.CheckpointRestore(data),
    )
    path = self.directory / str(step)
    saved_by = len(list((path / 'data').glob('process_*.json')))
    if saved_by != jax.process_count():
      raise UserError(
        f'{path} was saved by {saved_by} processes, this run has '
        f'{jax.process_count()}: start the same number'
      )
    try:
      restored = self._manager.restore(step, args=args)
    except Exception as error:  # Orbax raises anything on damaged files.
      raise damaged(path, error) from error
    return restored.state, restored.data

  def _guard(self, action) -> None:
    try:
      action()
    except Exception as error:
      if not disk_is_full(error):
        raise
      if jax.process_index() == 0:
        for half in self.directory.glob('*orbax-checkpoint-tmp*'):
          shutil.rmtree(half, ignore_errors=True)
      saved = saved_steps(self.directory.parent)
      last = f'step {saved[-1]} is intact' if saved else 'none was saved yet'
      raise UserError(
        f'{self.directory}: the disk is full, the checkpoint was not saved '
        f'({last}): free some space and run the same command'
      ) from error


def damaged(path: pathlib.Path, error: Exception) -> UserError:
  reason = str(error).strip().split('\n')[0][:200]
  return UserError(
    f'{path} cannot be restored ({type(error).__name__}: {reason}): it is '
    'damaged or of another model; delete it to fall back on an earlier step'
  )


@contextlib.contextmanager
def claimed(workdir: str | os.PathLike, config: Mapping) -> Iterator[None]:
  """Claims a workdir, and keeps other runs out while this one is at work there.

  A killed run leaves the lock's file, not the lock.

  Raises:
    UserError: another run is there, the folder cannot be written to, or see
      `claim_workdir`.
  """
  # One for each process: those of one run may share the folder.
  path = pathlib.Path(workdir) / f'.lock.{jax.process_index()}'
  with atomic.told(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open('w')
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(
        f'{workdir}: another run is at work there: stop it first, or give '
        'this one a new --workdir'
      ) from error
    claim_workdir(workdir, config)
    yield


def claim_workdir(workdir: str | os.PathLike, config: Mapping) -> None:
  """Writes config.json, or checks that the workdir belongs to this config.

  A workdir without a checkpoint has nothing to protect and is taken over.

  Raises:
    UserError: the workdir holds a run of another config; names the keys.
  """
  path = pathlib.Path(workdir) / 'config.json'
  if path.exists() and saved_steps(workdir):
    old, new = _flatten(read_config(workdir)), _flatten(config)
    changes = {
      key: f'{key} ({old.get(key, "absent")} there, '
      f'{new.get(key, "absent")} now)'
      for key in sorted(old | new)
      if old.get(key, ...) != new.get(key, ...)
    }
    free = [key for key in changes if key.split('.')[0] in FREE_KEYS]
    told = ', '.join(changes.pop(key) for key in free)
    if changes:
      raise UserError(
        f'{path} is of another run, it differs in '
        f'{", ".join(changes.values())}: give a new --workdir, or the old '
        'values'
      )
    if told:
      print(f'{path} changes in {told}', flush=True)
  if jax.process_index() == 0:
    with atomic.replacing(path) as half:
      half.write_text(json.dumps(config, indent=2) + '\n')


def saved_steps(workdir: str | os.PathLike) -> list[int]:
  """The steps with a complete checkpoint, in order."""
  directory = pathlib.Path(workdir) / 'checkpoints'
  if not directory.is_dir():
    return []
  return sorted(ocp.utils.checkpoint_steps(directory.resolve()))


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
  """The config a run was started with; UserError if there is none."""
  path = pathlib.Path(workdir) / 'config.json'
  if not path.exists():
    raise UserError(f'{path} not found: is {workdir} the --workdir of a run?')
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise UserError(f'{path} is not JSON ({error}): restore it') from error


def restore_params(
  workdir: str | os.PathLike, step: int | None = None, ema: bool = True
) -> tuple[dict[str, Any], Any]:
  """The config of a run and its parameters, without building the experiment.

  Args:
    workdir: where the run was trained.
    step: which checkpoint; the latest by default.
    ema: the averaged parameters (what one samples with), or the raw ones.

  Returns:
    The config as a plain dict and the tree of parameters as numpy arrays.

  Raises:
    UserError: no such directory, no such step, or a damaged checkpoint.
  """
  name = 'ema' if ema else 'params'
  config, trees = restore_trees(workdir, (name,), step)
  return config, trees[name]


def restore_trees(
  workdir: str | os.PathLike, names: Sequence[str], step: int | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The config of a run and parts of its state, as `restore_params`.

  Args:
    workdir: where the run was trained.
    names: fields of its train state, such as 'params' and 'batch_stats'.
    step: which checkpoint; the latest by default.

  Returns:
    The config as a plain dict and {name: tree of numpy arrays}.

  Raises:
    UserError: no such directory, step or field, or a damaged checkpoint.
  """
  config = read_config(workdir)
  path = step_path(workdir, step)
  try:
    handler = ocp.PyTreeCheckpointHandler()
    held = handler.metadata(path / 'state').tree
  except Exception as error:  # Orbax raises anything on damaged files.
    raise damaged(path, error) from error
  if missing := [name for name in names if name not in held]:
    raise UserError(
      f'{path} holds no {" or ".join(missing)}, only {", ".join(sorted(held))}: '
      'it is of another kind of run'
    )
  tree = {name: held[name] for name in names}
  kind = ocp.RestoreArgs(restore_type=np.ndarray)
  try:
    restored = handler.restore(
      path / 'state',
      args=ocp.args.PyTreeRestore(
        item=tree,
        restore_args=jax.tree.map(lambda _: kind, tree),
        partial_restore=True,
      ),
    )
  except Exception as error:  # As above.
    raise damaged(path, error) from error
  return config, restored


def step_path(
  workdir: str | os.PathLike, step: int | None = None
) -> pathlib.Path:
  """Where a checkpoint is, the latest by default; UserError if nowhere."""
  directory = pathlib.Path(workdir).resolve() / 'checkpoints'
  steps = saved_steps(workdir)
  if not steps:
    raise UserError(f'{directory} holds no checkpoint: train first')
  step = steps[-1] if step is None else step
  if step not in steps:
    raise UserError(f'{directory} has no step {step}; it has {steps}')
  return directory / str(step)


def _flatten(config: Mapping, prefix: str = '') -> dict[str, Any]:
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat
