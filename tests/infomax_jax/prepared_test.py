"""What TFDS writes is read, without TensorFlow."""

import io
import pickle
import sys

import numpy as np
from PIL import Image
import pytest

from infomax_jax import images, prepared, subset

tfds = pytest.importorskip('tensorflow_datasets')

SIZES = {'train': 6, 'unlabelled': 3}


def png(value):
  data = io.BytesIO()
  Image.new('RGB', (4, 4), (value, 0, 0)).save(data, 'PNG')
  data.seek(0)
  return data


class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Red images 0 to 5 of two classes, whose names run backwards; 6 to 8."""

  name = 'toy'
  code_path = None  # TFDS would look for checksums beside it.
  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {
      'image': tfds.features.Image(shape=(4, 4, 3)),
      'label': tfds.features.ClassLabel(names=['cat', 'dog']),
      'id': tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, _):
    return {
      'train': self._generate_examples(range(6)),
      'unlabelled': self._generate_examples(range(6, 9)),
    }

  def _generate_examples(self, values):
    for n in values:
      label = n % 2 if n < 6 else -1
      yield n, {'image': png(n), 'label': label, 'id': f'{9 - n}'}


@pytest.fixture(scope='module', params=['array_record', 'parquet'])
def data_dir(request, tmp_path_factory):
  if request.param == 'parquet':
    pytest.importorskip('pyarrow')
  folder = str(tmp_path_factory.mktemp(request.param))
  Toy(data_dir=folder, file_format=request.param).download_and_prepare()
  return folder


def contents(source):
  return sorted(
    (int(image[0, 0, 0]), label)
    for image, label in (source[i] for i in range(len(source)))
  )


def test_splits_labels_and_names(data_dir):
  train = prepared.Prepared('toy', 'train', data_dir)
  assert train.classes == ('cat', 'dog')
  assert contents(train) == [(n, n % 2) for n in range(6)]
  both = prepared.Prepared('toy:1.0.0', 'train+unlabelled', data_dir)
  assert contents(both)[6:] == [(n, images.UNLABELLED) for n in range(6, 9)]
  assert len(both) == sum(SIZES.values())
  for index in range(len(both)):
    image, label = both[index]
    assert image.shape == (4, 4, 3) and image.dtype == np.uint8
    assert both.labels[index] == label
    name = both.name(index)
    assert name == f'tfds:toy:1.0.0:train+unlabelled/{9 - image[0, 0, 0]}'
    assert both.ranks[index] == 8 - image[0, 0, 0]  # Names run backwards.
  assert 'tensorflow' not in sys.modules


def test_rules_go_by_name(data_dir):
  train = prepared.Prepared('toy', 'train', data_dir)
  kept = subset.first_of_each(train, 2, skip_last=1)
  assert contents(kept) == [(2, 0), (3, 1), (4, 0), (5, 1)]
  assert contents(subset.last_of_each(train, 1)) == [(0, 0), (1, 1)]


def test_it_can_be_sent_to_a_worker(data_dir):
  source = prepared.Prepared('toy', 'unlabelled', data_dir)
  copy = pickle.loads(pickle.dumps(source))
  assert contents(copy) == contents(source) != []


def test_what_is_not_there_is_said(data_dir, tmp_path):
  with pytest.raises(ValueError, match="toy: Unknown split 'test'"):
    prepared.Prepared('toy', 'test', data_dir)
  with pytest.raises(ValueError, match="TFDS has no data set 'cifar_ten'"):
    prepared.Prepared('cifar_ten', 'train', str(tmp_path))


@pytest.mark.parametrize(
  'name', ['cifar10', 'cifar100', 'stl10', 'imagenet2012', 'places365_small']
)
def test_the_command_that_prepares_is_told(name, tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    prepared.Prepared(name, 'train', str(tmp_path))
  command = f'tfds build {name} --file_format=array_record'
  assert f'`{command} --data_dir={tmp_path}`' in str(error.value)
  by_hand = 'ILSVRC2012_img_train.tar' in str(error.value)
  assert by_hand == (name == 'imagenet2012')
  assert '\n' not in str(error.value)


def test_a_format_without_random_access_is_said(data_dir, monkeypatch):
  def refuse(*args, **kwargs):
    raise NotImplementedError

  builder = tfds.core.DatasetBuilder
  monkeypatch.setattr(builder, 'as_data_source', refuse)
  with pytest.raises(
    FileNotFoundError, match='tfds convert_format .*toy/1.0.0'
  ):
    prepared.Prepared('toy', 'train', data_dir)
