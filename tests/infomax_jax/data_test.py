"""Batches hold views of every image once an epoch, the same ones again."""

import itertools
import json
import logging
import pathlib
import subprocess
import sys
import textwrap

import jax
import numpy as np
from PIL import Image
import pytest

from infomax_jax import augment, batches, data, images, reader

ROOT = pathlib.Path(__file__).parents[2]
CROP = augment.recipe('imagenet', size=8)


def write(folder, counts, size=(10, 12)):
  """Class folders of images whose red tells which they are."""
  value = itertools.count(0, 5)
  for name, count in counts.items():
    (folder / name).mkdir(parents=True)
    for n in range(count):
      image = Image.new('RGB', size[::-1], (next(value), 100, 100))
      image.save(folder / name / f'{n}.png')
  return str(folder)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return write(tmp_path_factory.mktemp('data') / 'pets', {'cat': 6, 'dog': 5})


def config(place, **changes):
  """Views that are whole images, so that their red tells which they are."""
  base = dict(recipe='imagenet', size=8, without=augment.PARTS)
  return data.DataConfig(place, **base | changes)


def take(cfg, count, batch_size=4, seed=0, split='train'):
  source = getattr(data.Splits(cfg), split)
  ds = iter(batches.views(source, cfg, batch_size, seed))
  return [next(ds) for _ in range(count)]


def plain(cfg, batch_size):
  return batches.plain(data.Splits(cfg).train, cfg, batch_size)


def reds(batches):
  return np.concatenate([b['view1'][:, 0, 0, 0] for b in batches])


def test_batches_of_two_views_and_a_label(place):
  for batch in take(config(place, without=()), 3):
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
      'view1': ((4, 8, 8, 3), np.uint8),
      'view2': ((4, 8, 8, 3), np.uint8),
      'label': ((4,), np.int32),
    }
    assert (batch['view1'] != batch['view2']).any()
  for batch in take(config(place), 3):
    red = batch['view1'][:, 0, 0, 0]
    np.testing.assert_array_equal(batch['label'], red >= 30)
    np.testing.assert_array_equal(batch['view2'][:, 0, 0, 0], red)


def test_no_batch_has_an_image_twice_and_epochs_differ(place):
  """11 images in batches of 4: 2 batches an epoch, 3 images left over."""
  epochs = reds(take(config(place), 40)).reshape(20, 8)
  assert all(len(set(epoch)) == 8 for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 20
  assert set(epochs.ravel()) == set(
    range(0, 55, 5)
  )  # None is left out for ever.


def test_the_seed_the_image_and_the_epoch_decide(place):
  cfg = config(place, without=())
  first, again, other = (take(cfg, 6, seed=seed) for seed in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert any(
    (a['view1'] != b['view1']).any() for a, b in zip(first, other, strict=True)
  )
  # The same image in one epoch, whatever the size of the batch.
  small = np.concatenate([b['view1'] for b in take(cfg, 4, batch_size=2)])
  np.testing.assert_array_equal(
    small, np.concatenate([b['view1'] for b in first[:2]])
  )


def test_reading_goes_on_at_a_position(place):
  cfg = config(place, without=())
  straight = take(cfg, 6)
  source = data.Splits(cfg).train
  ds, resumed = (iter(batches.views(source, cfg, 4, 0)) for _ in range(2))
  for _ in range(3):
    next(ds)
  resumed.set_state(ds.get_state())
  for expected in straight[3:]:
    jax.tree.map(np.testing.assert_array_equal, next(resumed), expected)


def test_processes_share_each_batch(place, monkeypatch):
  cfg = config(place, without=())
  whole, singles = take(cfg, 3), list(plain(cfg, 4))
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  parts, single_parts = [], []
  for index in range(2):
    monkeypatch.setattr(jax, 'process_index', lambda index=index: index)
    parts.append(take(cfg, 3))
    single_parts.append(list(plain(cfg, 4)))
  join = lambda *x: np.concatenate(x)
  for alone, shares in ((whole, parts), (singles, single_parts)):
    for batch, *rows in zip(alone, *shares, strict=True):
      joined = jax.tree.map(join, *rows)
      jax.tree.map(np.testing.assert_array_equal, joined, batch)
  with pytest.raises(ValueError, match='batch_size 3 .* the 2 processes'):
    take(cfg, 1, batch_size=3)


@pytest.mark.full  # Two more interpreters with JAX.
def test_workers_give_the_same(place):
  """In a process of its own, since workers import what started them."""
  script = """
    import dataclasses, json, sys, zlib
    from absl import flags
    from infomax_jax import batches, data

    if __name__ == '__main__':
      flags.FLAGS.mark_as_parsed()
      cfg = data.DataConfig(sys.argv[1], recipe='imagenet', size=8)
      sums = []
      for workers in (0, 2):
        cfg = dataclasses.replace(cfg, workers=workers)
        ds = iter(batches.views(data.Splits(cfg).train, cfg, 4, 0))
        sums.append([zlib.crc32(next(ds)['view1']) for _ in range(5)])
        ds.close()
      print(json.dumps(sums))
  """
  command = [sys.executable, '-c', textwrap.dedent(script), place]
  done = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, check=True
  )
  alone, workers = json.loads(done.stdout.splitlines()[-1])
  assert alone == workers and len(set(alone)) == 5


def test_plain_images_come_once_and_in_order(place):
  batches = list(plain(config(place), 4))
  joined = jax.tree.map(lambda *x: np.concatenate(x), *batches)
  assert joined['mask'].tolist() == [True] * 11 + [False]
  assert joined['label'].tolist() == [0] * 6 + [1] * 5 + [-1]
  assert joined['image'].shape == (12, 8, 8, 3)
  assert joined['image'].dtype == np.uint8
  np.testing.assert_array_equal(
    joined['image'][:11, 0, 0, 0], np.arange(0, 55, 5)
  )


def test_splits_by_rule(place, tmp_path):
  cfg = config(place, first=2, hold_out=1)
  train, held_out = data.Splits(cfg).train, data.Splits(cfg).eval
  names = lambda s: [s.name(i).removeprefix(place) for i in range(len(s))]
  assert names(train) == [
    '/cat/0.png',
    '/cat/1.png',
    '/dog/0.png',
    '/dog/1.png',
  ]
  assert names(held_out) == ['/cat/5.png', '/dog/4.png']
  assert set(reds(take(cfg, 4, 2, split='eval'))) == {25, 50}
  other = write(tmp_path / 'other', {'cat': 1, 'dog': 2})
  assert len(data.Splits(config(place, eval=other)).eval) == 3


def test_bad_configs_are_said(place, tmp_path):
  other = write(tmp_path / 'other', {'cat': 1, 'fox': 1})
  for changes, said in (
    (dict(eval=other), 'only data.train=.* has dog; only data.eval=.* has fox'),
    (dict(), 'set data.eval, or data.hold_out'),
    (dict(hold_out=9), "class 'cat' has 6 images, asked for: 9"),
    (dict(eval='nowhere'), "there is no 'nowhere': give a folder"),
    (dict(eval='tfds:cifar10'), 'lacks a split: write tfds:NAME:SPLIT'),
    (dict(eval='x', hold_out=2), 'both name the images to evaluate on'),
    (dict(workers=-1), 'data.workers is -1, below 0'),
    (dict(recipe='svhn'), "no recipe 'svhn'"),
  ):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
      _ = data.Splits(config(place, **changes)).eval
  with pytest.raises(
    ValueError, match='are 11 images, fewer than a batch of 12'
  ):
    take(config(place), 1, batch_size=12)


def broken(tmp_path, names):
  place = write(tmp_path / 'pets', {'cat': 4, 'dog': 4})
  for name in names:
    (tmp_path / 'pets' / name).write_bytes(b'<html>')
  return place


def test_corrupt_images_are_counted_named_and_passed_over(tmp_path, caplog):
  place = broken(tmp_path, ['cat/1.png', 'dog/3.png'])
  source = images.Folder(place)
  with caplog.at_level(logging.WARNING):
    read = reader.Reader(source, CROP, limit=2)
    values = [int(read[i]['image'][0, 0, 0]) for i in range(8)]
  # The next one instead, after the last the first.
  assert values == [0, 10, 10, 15, 20, 25, 30, 0]
  assert list(read.skipped) == [source.name(1), source.name(7)]
  assert set(read.skipped.values()) == {'no image of a known kind'}
  assert [r.getMessage() for r in caplog.records] == [
    f'skipped corrupt image 1 of at most 2: {source.name(1)}: '
    'no image of a known kind',
    f'skipped corrupt image 2 of at most 2: {source.name(7)}: '
    'no image of a known kind',
  ]
  cfg = config(place, max_corrupt=2)
  assert set(reds(take(cfg, 12))) == {0, 10, 15, 20, 25, 30}
  (batch,) = plain(cfg, 8)
  assert batch['mask'].tolist() == [True, False] + [True] * 5 + [False]
  assert batch['label'].tolist() == [0, -1, 0, 0, 1, 1, 1, -1]


def test_too_many_corrupt_images_stop_the_run(tmp_path):
  bad = ['cat/1.png', 'cat/2.png', 'dog/3.png']
  place = broken(tmp_path, bad)
  with pytest.raises(ValueError) as error:
    list(plain(config(place, max_corrupt=2), 2))
  assert '3 images cannot be read, more than data.max_corrupt=2' in str(
    error.value
  )
  assert all(f'{name} (no image' in str(error.value) for name in bad)
  with pytest.raises(ValueError, match='3 images cannot be read'):
    take(config(place, max_corrupt=2), 5)
  rest = [f'cat/{n}.png' for n in (0, 3)] + [f'dog/{n}.png' for n in range(3)]
  for name in rest:
    (tmp_path / 'pets' / name).write_bytes(b'')
  read = reader.Reader(images.Folder(place), CROP, limit=8)
  with pytest.raises(ValueError, match='none of the 8 images can be read'):
    read[2]


def test_images_of_another_size_are_said(place, tmp_path, caplog):
  with pytest.raises(ValueError, match=r'cat/0.png has 10x12 pixels.*32x32'):
    next(iter(plain(data.DataConfig(place), 4)))
  with caplog.at_level(logging.WARNING):
    large = config(place, size=11)
    assert next(iter(plain(large, 4)))['image'].shape[1] == 11
  said = [r.getMessage() for r in caplog.records]
  (said,) = (message for message in said if 'crop' in message)  # Once.
  # Any of the images: which one a reading thread meets first is open.
  assert '.png has 10x12 pixels, less than the crop of 11x11' in said
  exact = write(tmp_path / 'small', {'cat': 2}, size=(32, 32))
  assert take(data.DataConfig(exact), 1, 2)[0]['view1'].shape[1:] == (32, 32, 3)
