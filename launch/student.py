"""Distilled students as small files beside their teacher's bundle."""

import os

import jax
import numpy as np

from launch import bundle, checkpoint
from launch.errors import UserError


def export(
  workdir: str | os.PathLike,
  step: int | None,
  base: str | os.PathLike,
  out: str | os.PathLike,
) -> None:
  """Writes the averaged changes of a distillation.

  Args:
    workdir: a run of `configs/mirage/grid_distil.py`.
    step: of which checkpoint; None is the last.
    base: the bundle of its teacher.
    out: the file, in the same folder.

  Raises:
    UserError: it is another kind of run, had another teacher, or the file
      cannot be written.
  """
  if 'distil' not in checkpoint.read_config(workdir):
    raise UserError(f'--base goes with a distillation, which {workdir} is not')
  teacher = bundle.load(base).dit
  config, held = checkpoint.restore_trees(workdir, ('base', 'ema'), step)
  params = held['base']
  same = jax.tree.map(np.shape, teacher) == jax.tree.map(np.shape, params)
  pairs = zip(jax.tree.leaves(teacher), jax.tree.leaves(params), strict=False)
  # Apart by more than rounding to float16 are others.
  if not same or not all(np.allclose(a, b, atol=5e-3) for a, b in pairs):
    raise UserError(f'--base={base}: is not the teacher of {workdir}')
  bundle.save_changes(out, base, held['ema'], config)
