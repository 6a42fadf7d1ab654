"""What a run with config.lora learned: merged, or as a file of its own.

The file has float16 arrays named as in `mirage_jax.lora` and, as its config,
`lora`, `sigmas` if it is a distilled student, and what it changes: `model`, any
transformer of that config; or `base` and `sha256`, that of one bundle in the same
folder, with which the file is a checkpoint as it is, see `bundle.load`.
"""

import os
import pathlib
from typing import Any

import jax
import numpy as np

from launch import bundle, checkpoint, weights_file
from launch.errors import UserError
from mirage_jax import config as config_lib, lora


def export(
  workdir: str | os.PathLike,
  step: int | None,
  out: str | os.PathLike,
  base: str | os.PathLike | None = None,
) -> None:
  """Writes the averaged changes of a run.

  Args:
    workdir: of the run.
    step: of which checkpoint; None is the last.
    out: the file.
    base: the bundle that the run changes, in the same folder; None: the file is
      for any of the same transformer.

  Raises:
    UserError: the run has no changes, or changes another transformer, or the
      file cannot be written.
  """
  config = checkpoint.read_config(workdir)
  if not config.get('lora'):
    raise UserError(f'{workdir}: trained all parameters, not changes (no lora)')
  about = {'lora': config['lora']} | bundle.own_sigmas(config)
  if base is None:
    _, learned = checkpoint.restore_params(workdir, step)
    about |= {'model': config['model']}
  else:
    _, held = checkpoint.restore_trees(workdir, ('base', 'ema'), step)
    about |= _told(base, held['base'], workdir, pathlib.Path(out))
    learned = held['ema']
  weights_file.write(out, bundle.KIND, {'changes': learned}, about)


def _told(base, params, workdir, out):
  """How a file beside its base names it."""
  base = pathlib.Path(base)
  if out.resolve().parent != base.resolve().parent:
    raise UserError(
      f'{out}: changes are looked for beside their base; write them into '
      f'{base.parent}'
    )
  begun = bundle.load(base).dit
  same = jax.tree.map(np.shape, begun) == jax.tree.map(np.shape, params)
  pairs = zip(jax.tree.leaves(begun), jax.tree.leaves(params), strict=False)
  # Apart by more than rounding to float16 are others.
  if not same or not all(np.allclose(a, b, atol=5e-3) for a, b in pairs):
    raise UserError(f'--base={base}: is not what {workdir} changes')
  return {'base': base.name, 'sha256': bundle.digest(begun)}


def transformer(
  workdir: str | os.PathLike, step: int | None = None
) -> tuple[dict[str, Any], Any]:
  """`checkpoint.restore_params`, with what config.lora made merged."""
  if not checkpoint.read_config(workdir).get('lora'):
    return checkpoint.restore_params(workdir, step)
  config, held = checkpoint.restore_trees(workdir, ('base', 'ema'), step)
  cfg = config_lib.build(lora.LoraConfig, config['lora'])
  return config, lora.merge(held['base'], held['ema'], cfg)
