"""launch.probe on a folder of pictures whose classes differ by colour."""

import json

from flax import linen as nn
import grain
import jax
import numpy as np
from PIL import Image
import pytest

from infomax_jax import experiment, probe_heads
from launch import probe_run
from launch.checkpoint import Checkpoints

# Whole models are compiled: tens of seconds.
pytestmark = pytest.mark.full

CONFIG = dict(
  experiment='infomax_jax.experiment',
  seed=0,
  batch_size=8,
  data=dict(train='', recipe='cifar', hold_out=4),
  encoder=dict(image_size=32, ndf=4, n_rkhs=32, n_depth=1),
  objective=dict(),
  heads=dict(num_classes=3),
  optimizer=dict(),
)


def draw(folder, seed, count):
  rng = np.random.default_rng(seed)
  for channel, name in enumerate(('red', 'green', 'blue')):
    (folder / name).mkdir(parents=True)
    for n in range(count):
      picture = rng.integers(0, 200, (4, 4, 3)).repeat(8, 0).repeat(8, 1)
      picture[..., channel] = 255
      path = folder / name / f'{n:02}.png'
      Image.fromarray(picture.astype(np.uint8)).save(path)
  return folder


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run that ended where it began."""
  path = tmp_path_factory.mktemp('run')
  pictures = draw(tmp_path_factory.mktemp('pictures') / 'train', 0, 16)
  config = CONFIG | {'data': CONFIG['data'] | {'train': str(pictures)}}
  state = nn.unbox(jax.jit(experiment.make(config).init)(jax.random.key(0)))
  with Checkpoints(path) as checkpoints:
    rows = iter(grain.MapDataset.range(9).to_iter_dataset())
    checkpoints.save(5, state, rows)
  (path / 'config.json').write_text(json.dumps(config))
  return path


@pytest.fixture(scope='module')
def other(tmp_path_factory):
  return draw(tmp_path_factory.mktemp('other') / 'test', 1, 5)


def test_both_protocols_and_the_controls(workdir, tmp_path, binary, capsys):
  out = tmp_path / 'probe.json'
  arguments = ('--workdir', workdir, '--epochs=40', '--controls', '--out', out)
  assert binary('probe')(*arguments) == 0
  report = json.loads(out.read_text())
  rows = {
    (row['protocol'], row['features'], row['probe']): row
    for row in report['results']
  }
  assert len(rows) == 3 + 2 + 2 + 3
  assert report['train']['images'] == 36 and report['test']['images'] == 12
  for key, row in rows.items():
    # Theirs leaves out what fills no batch of eight.
    assert row['images'] == (8 if key[0] == 'authors' else 12)
  # Colours are easy, for pixels and for an encoder that averages them.
  assert rows['frozen', 'pixels', 'linear']['accuracy'] > 0.9
  assert rows['frozen', 'r1', 'linear']['accuracy'] > 0.9
  assert rows['frozen', 'r1', 'knn']['accuracy'] > 0.6
  assert report['step'] == 5
  said = capsys.readouterr().out
  assert "MLP, the authors' protocol" in said
  assert all(len(line) <= 80 for line in said.splitlines()[1:])


def test_only_norms_move_in_the_protocol_of_the_authors(workdir):
  config = json.loads((workdir / 'config.json').read_text())
  source = probe_run.data.DataConfig(**config['data'])
  encoder = experiment.Encoder(
    experiment.config_lib.EncoderConfig(**config['encoder'])
  )
  fresh = jax.jit(encoder.init)(jax.random.key(0), np.zeros((2, 32, 32, 3)))
  fresh = jax.device_get(nn.unbox(fresh))
  train = probe_run.data.Splits(source).train
  plan = probe_heads.Plan(epochs=1, falls=(), batch_size=8)
  trained, moved = probe_heads.fit_moving(
    encoder,
    fresh,
    source.build_recipe(),
    probe_run.batches.views(train, source, 8, 0),
    len(train),
    3,
    plan,
  )
  assert int(trained.state.step) == 4  # 36 images make four whole batches.
  jax.tree.map(np.testing.assert_array_equal, moved['params'], fresh['params'])
  changed = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()),
    moved['batch_stats'],
    fresh['batch_stats'],
  )
  assert min(jax.tree.leaves(changed)) > 0


def test_transfer_to_other_images(workdir, other, tmp_path, binary):
  out = tmp_path / 'probe.json'
  places = ('--train', other, '--hold_out=2', '--first=3', '--batch_size=6')
  end = ('--noauthors', '--epochs=1', '--out', out)
  # Six images do not divide among eight devices.
  assert binary('probe')('--workdir', workdir, *places, *end) == 1
  places = (*places[:-1], '--batch_size=8', f'--test={other}', '--hold_out=0')
  assert binary('probe')('--workdir', workdir, *places, *end) == 0
  report = json.loads(out.read_text())
  assert report['train']['images'] == 9 and report['test']['images'] == 15


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    ((), '--workdir is needed'),
    (('--workdir=RUN', '--falls=a,b'), '--falls=a,b: give epochs'),
    (('--workdir=RUN', '--step=4'), r'has no step 4'),
    (('--workdir=RUN', '--batch_size=64'), 'a batch of 64 is larger'),
    (('--workdir=RUN', '--hold_out=40'), 'has 0 images beside the 40 held out'),
    (('--workdir=RUN', '--train=nowhere', '--test=x'), "there is no 'nowhere'"),
  ],
)
def test_mistakes(arguments, said, workdir, binary, one_error):
  given = [a.replace('RUN', str(workdir)) for a in arguments]
  assert binary('probe')(*given) == 1
  assert said in one_error()
