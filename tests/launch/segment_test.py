"""launch.segment on pictures with an object in one corner."""

import json

from flax import linen as nn
import grain
import jax
import numpy as np
from PIL import Image
import pytest

from infomax_jax import experiment
from launch import segment_picture
from launch.checkpoint import Checkpoints

# Whole models are compiled: tens of seconds.
pytestmark = pytest.mark.full

CONFIG = dict(
  experiment='infomax_jax.experiment',
  seed=0,
  batch_size=4,
  data=dict(train='', recipe='cifar', hold_out=4),
  encoder=dict(image_size=32, ndf=4, n_rkhs=32, n_depth=1, components=3),
  objective=dict(),
  heads=dict(num_classes=2),
  optimizer=dict(),
)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  folder, rng = tmp_path_factory.mktemp('pictures'), np.random.default_rng(0)
  for name in ('a', 'b', 'masks'):
    (folder / name).mkdir()
  for n in range(10):
    for name in ('a', 'b'):
      image = rng.integers(0, 60, (32, 32, 3))
      image[: 8 + n, 16:] += 180
      Image.fromarray(image.astype('u1')).save(folder / name / f'{n}.png')
    mask = np.zeros((32, 32), 'u1')
    mask[: 8 + n, 16:] = 255
    Image.fromarray(mask).save(folder / 'masks' / f'{n}.png')
  (folder / 'masks').rename(folder.parent / 'masks')
  return folder


@pytest.fixture(scope='module')
def make_run(tmp_path_factory, pictures):
  def make(components):
    path = tmp_path_factory.mktemp('run')
    config = json.loads(json.dumps(CONFIG))
    config['data']['train'] = str(pictures)
    config['encoder']['components'] = components
    state = nn.unbox(jax.jit(experiment.make(config).init)(jax.random.key(0)))
    with Checkpoints(path) as checkpoints:
      rows = iter(grain.MapDataset.range(9).to_iter_dataset())
      checkpoints.save(1, state, rows)
    (path / 'config.json').write_text(json.dumps(config))
    return path

  return make


@pytest.fixture(scope='module')
def workdir(make_run):
  return make_run(3)


def test_maps_and_numbers(workdir, pictures, tmp_path, binary, capsys):
  out, numbers = tmp_path / 'maps.png', tmp_path / 'maps.json'
  places = ('--workdir', workdir, '--out', out, '--json', numbers)
  masks = ('--masks', pictures.parent / 'masks', '--shown=3')
  assert binary('segment')(*places, *masks) == 0
  found = json.loads(numbers.read_text())
  assert found['images'] == 8 and found['components'] == 3
  assert 1 <= found['used'] <= 3
  for kind in ('own segments', "another image's segments", 'spatial k-means'):
    assert 0 <= found[f'colour, {kind}'] <= 1
    assert -1 <= found[f'mask, {kind}'] <= 1
  tile, gap = segment_picture.TILE, segment_picture.GAP
  with Image.open(out) as picture:
    assert picture.size == (5 * tile + 4 * gap, 3 * tile + 2 * gap)
  assert 'colour, own segments' in capsys.readouterr().out


def test_the_picture_shows_the_maps():
  images = np.full((1, 14, 14, 3), 100, np.uint8)
  maps = np.zeros((1, 7, 7, 2))
  maps[0, :3, :, 1] = 1
  maps[0, 3:, :, 0] = 1
  picture = np.asarray(segment_picture.draw(images, maps))
  tile, gap = segment_picture.TILE, segment_picture.GAP
  first = picture[:, 2 * (tile + gap) :][:, :tile]
  assert (first[: 3 * tile // 7] == 0).all()
  assert (first[3 * tile // 7 :] == 255).all()
  mixed = picture[:, tile + gap :][:, :tile].reshape(-1, 3)
  assert len(np.unique(mixed, axis=0)) == 2


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    ((), '--workdir and --out are needed'),
    (('--masks=nowhere',), 'nowhere/'),
    (('--images=nowhere',), "there is no 'nowhere'"),
  ],
)
def test_mistakes(arguments, said, workdir, tmp_path, binary, one_error):
  given = ('--workdir', workdir, '--out', tmp_path / 'x.png')
  assert binary('segment')(*(given if arguments else ()), *arguments) == 1
  assert said in one_error()


def test_a_run_without_a_mixture(make_run, tmp_path, binary, one_error):
  given = ('--workdir', make_run(0), '--out', tmp_path / 'x.png')
  assert binary('segment')(*given) == 1
  assert 'has no mixture' in one_error()
