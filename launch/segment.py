r"""Draws what the mixture of a trained encoder says of which part of an image.

  python -m launch.segment --workdir runs/mixture --out segments.png

Each row of the picture is an image, its segments, and one map per component:
the posterior over components at each position of the 7x7 map, of held-out
images or of those at `--images`. A number tells whether segments follow what is
in the image: the share of its colour variance that lies between them, beside
that of another image's segments (chance) and of clusters by nearness alone
(spatial k-means). With `--masks`, a folder of pictures named like the images
whose bright part is the object, the adjusted Rand index with these as well.
"""

import json
import pathlib
import sys
from typing import Any

from absl import app, flags
import jax
import numpy as np
from PIL import Image

from infomax_jax import (
  augment,
  batches,
  config as config_lib,
  data,
  segment,
  subset,
)
from infomax_jax.encoder import Encoder
from launch import atomic, segment_picture
from launch.checkpoint import restore_trees
from launch.errors import UserError, one_line

_WORKDIR = flags.DEFINE_string('workdir', None, 'of the run')
_STEP = flags.DEFINE_integer('step', None, 'which checkpoint; the latest')
_IMAGES = flags.DEFINE_string('images', None, 'a place; held-out ones if unset')
_MASKS = flags.DEFINE_string('masks', None, 'a folder of masks, NAME.png')
_OUT = flags.DEFINE_string('out', None, 'PNG of the maps')
_JSON = flags.DEFINE_string('json', None, 'file for the numbers')
_COUNT = flags.DEFINE_integer('count', 256, 'images to score', 2)
_SHOWN = flags.DEFINE_integer('shown', 12, 'of these, in the picture', 1)
_SEED = flags.DEFINE_integer('seed', 0, 'of the choice of images')


def main(_: list[str]) -> None:
  with one_line():
    if not _WORKDIR.value or not _OUT.value:
      raise UserError('--workdir and --out are needed; see --help')
    names = ('params', 'batch_stats')
    config, trees = restore_trees(_WORKDIR.value, names, _STEP.value)
    try:
      images, files = read(config['data'])
      maps = np.asarray(posterior(config, trees, images))
      masks = read_masks(_MASKS.value, files, images.shape[1])
    except ValueError as error:  # Of the config, or of images: which, and why.
      raise UserError(str(error)) from error
    numbers = scores(images, maps, masks, _SEED.value)
    print('\n'.join(f'{name:<36}{x:.3f}' for name, x in numbers.items()))
    picture = segment_picture.draw(images[: _SHOWN.value], maps)
    with atomic.replacing(pathlib.Path(_OUT.value)) as half:
      picture.save(half)
    if _JSON.value:
      with atomic.replacing(pathlib.Path(_JSON.value)) as half:
        half.write_text(json.dumps(numbers, indent=2) + '\n')


def read(run: dict[str, Any]) -> tuple[np.ndarray, list[str]]:
  """Some images, uint8 [N Y X 3] as evaluation shows them, and their names."""
  changes = {}
  if _IMAGES.value:
    changes = {'train': _IMAGES.value, 'eval': '', 'first': 0, 'hold_out': 0}
  cfg = config_lib.build(data.DataConfig, {**run, **changes})
  splits = data.Splits(cfg)
  source = splits.train if _IMAGES.value else splits.eval
  count = min(_COUNT.value, len(source))
  order = np.random.default_rng(_SEED.value).permutation(len(source))[:count]
  some = subset.Subset(source, order)
  (batch,) = batches.plain(some, cfg, count)
  kept = np.flatnonzero(batch['mask'])
  return batch['image'][kept], [some.name(i) for i in kept.tolist()]


def posterior(
  config: dict[str, Any], trees: dict[str, Any], images: np.ndarray
) -> jax.Array:
  """[N Y X k], see `segment.posterior_maps`."""
  encoder = Encoder(
    config_lib.build(config_lib.EncoderConfig, config['encoder'])
  )
  cfg = config_lib.build(config_lib.ObjectiveConfig, config['objective'])
  recipe = config_lib.build(data.DataConfig, config['data']).build_recipe()
  variables = {
    'params': trees['params']['encoder'],
    'batch_stats': trees['batch_stats'].get('encoder', {}),
  }

  @jax.jit
  def run(variables, images):
    x = augment.normalize(images, recipe)
    return segment.posterior_maps(encoder.apply(variables, x), cfg)

  return run(variables, images)


def read_masks(
  folder: str | None, files: list[str], rows: int
) -> np.ndarray | None:
  """0 or 1 [N rows rows] for each image; None without a folder."""
  if folder is None:
    return None
  masks = []
  for name in files:
    path = pathlib.Path(folder) / f'{pathlib.PurePosixPath(name).stem}.png'
    if not path.exists():
      raise UserError(f'{path}: there is no mask for {name}')
    with Image.open(path) as image:
      small = image.convert('L').resize((rows, rows), Image.Resampling.BOX)
    masks.append(np.asarray(small) >= 128)
  return np.stack(masks).astype(int)


def scores(
  images: np.ndarray, maps: np.ndarray, masks: np.ndarray | None, seed: int
) -> dict[str, float]:
  """Means over images: of their segments, and of both controls."""
  rows, k = images.shape[1], maps.shape[-1]
  grid = segment.spatial_kmeans(maps.shape[1], k, seed)
  found = maps.argmax(-1)
  kinds = {
    'own segments': found,
    "another image's segments": np.roll(found, 1, axis=0),
    'spatial k-means': np.broadcast_to(grid, found.shape),
  }
  used = [len(np.unique(one)) for one in found]
  out = {'images': len(images), 'components': k, 'used': np.mean(used)}
  for name, segments in kinds.items():
    pixels = segment.enlarge(segments, rows)
    explained = segment.colour_explained(images / 255, pixels)
    out[f'colour, {name}'] = explained.mean()
    if masks is not None:
      agreement = segment.rand_index(pixels, masks)
      out[f'mask, {name}'] = agreement.mean()
  return {name: float(x) for name, x in out.items()}


if __name__ == '__main__':
  sys.exit(app.run(main))
