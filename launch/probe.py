r"""Tells what the features of a trained encoder are worth to classifiers.

  python -m launch.probe --workdir runs/cifar10 --hold_out 200 --out probe.json

r1 of plain images, by the frozen encoder with the statistics that its norms
have from training, goes into logistic regression, an MLP and a vote of the
nearest neighbours; every test image counts. Beside it stands the protocol of
AMDIM's authors, which is kinder: classifiers see augmented views while the
norms go on moving, which are then warmed up on test images, and the test leaves
out what fills no batch. `--controls` adds raw pixels and an untrained encoder.

Images are those of the run's own config, or of another data set:

  python -m launch.probe --workdir runs/imagenet --epochs 15 --falls 7,12 \
      --train data/places205/train --test data/places205/val
"""

import json
import pathlib
import sys
from typing import Any

from absl import app, flags

from infomax_jax import config as config_lib, data
from infomax_jax.encoder import Encoder
from infomax_jax.probe_heads import Plan
from launch import atomic, probe_run
from launch.checkpoint import restore_trees, step_path
from launch.errors import UserError, one_line

_WORKDIR = flags.DEFINE_string('workdir', None, 'of the run')
_STEP = flags.DEFINE_integer('step', None, 'which checkpoint; the latest')
_TRAIN = flags.DEFINE_string('train', None, "images; the config's if unset")
_TEST = flags.DEFINE_string('test', None, 'images; what --hold_out keeps back')
_RECIPE = flags.DEFINE_enum(
  'recipe', None, ['cifar', 'stl10', 'imagenet'], "the config's if unset"
)
_FIRST = flags.DEFINE_integer(
  'first', None, "training images of each class; the config's if unset, 0: all"
)
_HOLD_OUT = flags.DEFINE_integer(
  'hold_out', None, "the last of each class to test on; the config's if unset"
)
_EPOCHS = flags.DEFINE_integer('epochs', None, "the authors' if unset", 1)
_FALLS = flags.DEFINE_list(
  'falls', None, "epochs after which the rate falls; the authors' if unset"
)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', None, "the config's if unset")
_NEIGHBOURS = flags.DEFINE_integer('neighbours', 20, 'that vote', 1)
_AUTHORS = flags.DEFINE_bool('authors', True, "the authors' protocol as well")
_CONTROLS = flags.DEFINE_bool(
  'controls', False, 'also raw pixels and an untrained encoder'
)
_SEED = flags.DEFINE_integer('seed', 0, 'of classifiers and their batches')
_OUT = flags.DEFINE_string('out', None, 'JSON file for the results')

# Epochs and falls of the rate in the authors' code, by recipe.
PLANS = {
  'cifar': (120, (80, 110)),
  'stl10': (120, (80, 110)),
  'imagenet': (30, (15, 25)),
}


def main(_: list[str]) -> None:
  with one_line():
    if not _WORKDIR.value:
      raise UserError('--workdir is needed; see --help')
    names = ('params', 'batch_stats')
    config, trees = restore_trees(_WORKDIR.value, names, _STEP.value)
    if config['experiment'] != 'infomax_jax.experiment':
      raise UserError(
        f'{_WORKDIR.value} is a run of {config["experiment"]}, not of '
        'infomax_jax.experiment: it has no encoder of images'
      )
    encoder = Encoder(
      config_lib.build(config_lib.EncoderConfig, config['encoder'])
    )
    source = source_config(config['data'], encoder.cfg.image_size)
    subject = probe_run.Subject(
      encoder,
      {
        'params': trees['params']['encoder'],
        'batch_stats': trees['batch_stats'].get('encoder', {}),
      },
      source,
    )
    settings = probe_run.Settings(
      make_plan(source.recipe, _BATCH_SIZE.value or config['batch_size']),
      _NEIGHBOURS.value,
      authors=_AUTHORS.value,
      controls=_CONTROLS.value,
    )
    try:
      report = probe_run.run(subject, settings)
    except ValueError as error:  # Of the images: which, and why.
      raise UserError(str(error)) from error
    step = int(step_path(_WORKDIR.value, _STEP.value).name)
    report = {'workdir': _WORKDIR.value, 'step': step, **report}
    print('\n'.join(probe_run.table(report)))
    if _OUT.value:
      with atomic.replacing(pathlib.Path(_OUT.value)) as half:
        half.write_text(json.dumps(report, indent=2) + '\n')


def source_config(run: dict[str, Any], image_size: int) -> data.DataConfig:
  """The images to probe on: the run's, as the flags change them."""
  changes = {}
  if _TRAIN.value:
    changes |= {'train': _TRAIN.value, 'eval': '', 'first': 0, 'hold_out': 0}
  if _TEST.value:
    changes |= {'eval': _TEST.value, 'hold_out': 0}
  if _RECIPE.value:
    changes |= {'recipe': _RECIPE.value, 'size': image_size}
  if _FIRST.value is not None:
    changes['first'] = _FIRST.value
  if _HOLD_OUT.value is not None:
    changes |= {'hold_out': _HOLD_OUT.value, 'eval': _TEST.value or ''}
  try:
    return config_lib.build(data.DataConfig, {**run, **changes})
  except ValueError as error:
    raise UserError(str(error)) from error


def make_plan(recipe: str, batch_size: int) -> Plan:
  """How long classifiers are trained: as the authors', or as the flags say."""
  epochs, falls = PLANS[recipe]
  if _EPOCHS.value:
    # At the same shares of the whole, unless told.
    falls = tuple(round(n * _EPOCHS.value / epochs) for n in falls)
    epochs = _EPOCHS.value
  if _FALLS.value is not None:
    try:
      falls = tuple(int(n) for n in _FALLS.value)
    except ValueError as error:
      raise UserError(
        f'--falls={",".join(_FALLS.value)}: give epochs, such as 80,110'
      ) from error
  return Plan(epochs, falls, batch_size, _SEED.value)


if __name__ == '__main__':
  sys.exit(app.run(main))
