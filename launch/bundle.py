"""Weights for use: one safetensors file with the VAE, the DiT and how they fit.

Arrays are float16 under `vae/...` and `dit/...`; the file's metadata has the
config as JSON. A bundle of a VAE alone serves `launch.prepare`. What a run with
config.lora learned, a distilled student too, may be a small file of its own:
under `changes/...` is what it adds to the transformer of another bundle.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from launch import encoder_sources, weights_file
from launch.errors import UserError
import mirage_jax
from mirage_jax import config as config_lib, distil, lora
from mirage_jax.vae import VaeConfig

DEFAULT = pathlib.Path(mirage_jax.__file__).parent / 'assets/grid.safetensors'
FAST = DEFAULT.with_name('grid_fast.safetensors')
# What a --checkpoint may be called instead of by its path.
NAMES = {'fast': FAST}
KIND = weights_file.Kind('config', 'checkpoint', 'launch.export')
# What sampling needs to know of a transformer's training data.
WINDOW = ('num_chunks', 'text_length', 'past')


@dataclasses.dataclass(frozen=True)
class Bundle:
  """Plain numpy weights with their configs.

  Attributes:
    config: Plain dict with `vae` (VaeConfig's fields) and, with a DiT, `dit`
      (MirageConfig's fields), and `data` (what the model was trained on: `size`,
      rows and columns of a frame, and, with a DiT, `num_chunks`, `text_length`
      and `past` of data.LatentConfig). A distilled transformer has `sigmas`,
      the only noise levels it knows; one of encoders' features `encoders`, see
      `encoder_sources.Sources`.
    vae: Parameters of the VAE, float32.
    stats: 'mean' and 'std' [C] of its latents.
    dit: Parameters of the transformer, float32, or None.
  """

  config: Mapping[str, Any]
  vae: Any
  stats: Mapping[str, np.ndarray]
  dit: Any = None

  def fingerprint(self) -> str:
    """Tells these weights from others under the same name."""
    return digest({'vae': self.vae, 'dit': self.dit or {}})


def join(
  vae: Bundle,
  config: Mapping[str, Any],
  params: Any,
  features: str | os.PathLike | None = None,
) -> Bundle:
  """A transformer's parameters with the VAE that made its latents.

  Args:
    vae: a bundle; a transformer in it is left out.
    config: of the transformer's run, see `configs/mirage/grid.py`.
    params: the transformer's.
    features: folder of `launch.features` that it was trained on, if it was and
      config.data.train is no longer there.

  Raises:
    UserError: the VAE makes latents of another shape, or nothing tells which
      encoders made the features that the transformer takes.
  """
  cfg = config_lib.build(VaeConfig, vae.config['vae'])
  grid = vae.config['data']['size'] // cfg.space_factor
  model = config_lib.build(config_lib.MirageConfig, config['model'])
  has = (grid, grid, cfg.latent_channels)
  needs = (*config['latent_size'], model.latent_channels)
  if has != needs:
    raise UserError(
      f'the VAE makes latents of {has} rows, columns and channels, the '
      f'transformer was trained on {needs}: give the VAE it was trained with'
    )
  about = {
    'vae': vae.config['vae'],
    'dit': config['model'],
    'data': {
      'size': vae.config['data']['size'],
      **{name: config['data'][name] for name in WINDOW},
    },
  } | own_sigmas(config)
  sources = encoder_sources.of_run(config, features)
  if sources != encoder_sources.Sources():
    about['encoders'] = dataclasses.asdict(sources)
  return Bundle(about, vae.vae, vae.stats, params)


def own_sigmas(config: Mapping[str, Any]) -> dict[str, list[float]]:
  """{"sigmas": noise levels} of a distilled student; {} of any other run."""
  if 'distil' not in config:
    return {}
  cfg = config_lib.build(distil.DistilConfig, config['distil'])
  path = config_lib.build(config_lib.FlowConfig, config['flow'])
  return {'sigmas': distil.student_sigmas(cfg, path).tolist()}


def relocated(bundle: Bundle, places: encoder_sources.Places) -> Bundle:
  """With its encoders in other places; see `encoder_sources.moved`."""
  moved = encoder_sources.moved(bundle.config, places)
  return dataclasses.replace(bundle, config=moved)


def average(bundle: Bundle, others: Mapping[str, Bundle]) -> Bundle:
  """The mean of several transformers of one ancestry, with one VAE.

  What runs that went on from one another have in common stays, what each made
  of its last batches falls out (model soups, arXiv 2203.05482).

  Args:
    bundle: gives the VAE and one transformer.
    others: by the path that messages call them.

  Raises:
    UserError: a transformer is missing, or of another model.
  """
  if not others:
    return bundle
  for name, other in others.items():
    if other.dit is None or other.config['dit'] != bundle.config['dit']:
      raise UserError(f'--average={name}: holds no transformer of this model')
  trees = [bundle.dit, *(other.dit for other in others.values())]
  mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *trees)
  return dataclasses.replace(bundle, dit=mean)


def save(path: str | os.PathLike, bundle: Bundle) -> None:
  """Writes a bundle under a temporary name, then renames it.

  Raises:
    UserError: a weight is not finite in float16, the disk is full, or the
      folder cannot be written.
  """
  tree = {'vae': bundle.vae, 'stats': dict(bundle.stats)}
  if bundle.dit is not None:
    tree['dit'] = bundle.dit
  weights_file.write(path, KIND, tree, bundle.config, whole=('stats',))


def digest(params: Any) -> str:
  """Of all names and values: what tells one transformer from another."""
  found = hashlib.sha256()
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  for name in sorted(flat):
    found.update(name.encode() + flat[name].tobytes())
  return found.hexdigest()


def load(path: str | os.PathLike = DEFAULT) -> Bundle:
  """Reads a bundle; changes together with their base.

  Args:
    path: the file, or one of NAMES.

  Raises:
    UserError: it is missing, cut short, or no bundle of this project; or it
      holds changes of another base than the one beside it, or of none.
  """
  path = NAMES.get(str(path), path)
  with weights_file.reading(path, KIND) as (config, tree):
    if 'lora' in config:
      if 'base' not in config:
        raise UserError(
          f'{path}: holds changes alone; merge them, by launch.export '
          f'--changes={path} --vae=BUNDLE'
        )
      beside = pathlib.Path(path).with_name(config['base'])
      return _changed(path, config, tree, beside)
    _check(config, 'dit' in tree)
    return Bundle(config, tree['vae'], tree['stats'], tree.get('dit'))


def changed(path: str | os.PathLike, base: str | os.PathLike) -> Bundle:
  """The bundle `base` with the changes of a file in its transformer.

  Raises:
    UserError: the file holds none, or those of another transformer.
  """
  with weights_file.reading(path, KIND) as (config, tree):
    if 'lora' not in config:
      raise UserError(
        f'{path}: holds no changes; give a file of `launch.export '
        '--changes_only`'
      )
    return _changed(path, config, tree, base)


def _changed(path, config, tree, base):
  made = load(base)
  same = made.dit is not None and (
    digest(made.dit) == config['sha256']
    if 'base' in config
    else made.config['dit'] == config['model']
  )
  if not same:
    raise UserError(
      f'{path}: changes another transformer than that of {base}; give that '
      'one, or train the changes again'
    )
  cfg = config_lib.build(lora.LoraConfig, config['lora'])
  dit = lora.merge(made.dit, tree['changes'], cfg)
  sigmas = {k: config[k] for k in ('sigmas',) if k in config}
  return dataclasses.replace(made, config={**made.config, **sigmas}, dit=dit)


def _check(config, has_dit):
  """Raises KeyError for a part of the config that is not there."""
  parts = ('vae', 'data', 'dit') if has_dit else ('vae', 'data')
  lacking = [name for name in parts if name not in config]
  facts = ('size', *WINDOW) if has_dit else ('size',)
  lacking = lacking or [name for name in facts if name not in config['data']]
  if lacking:
    raise KeyError(lacking[0])
