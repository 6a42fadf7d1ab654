"""Labelled images of data sets that TFDS prepared, read without TensorFlow."""

import functools

from jaxtyping import Int, UInt8
import numpy as np

from infomax_jax import images

# Where data sets keep the name of an image.
_NAMES = ('file_name', 'filename', 'id')


class Prepared:
  """One split of a data set in array_record or parquet files, in their order.

  Parquet files are read into memory whole.
  """

  def __init__(self, name: str, split: str, data_dir: str | None = None):
    """Opens the files.

    Args:
      name: TFDS's, such as 'cifar10', 'stl10' or 'imagenet2012:5.1.0'.
      split: such as 'train' or 'train+unlabelled'.
      data_dir: where TFDS keeps data sets; None for ~/tensorflow_datasets, or
        what the variable TFDS_DATA_DIR says.

    Raises:
      FileNotFoundError: the data set is not prepared, or in a format that has
        no random access; the message has the command to run.
      ValueError: no such data set or split, or one without images.
    """
    self._where = f'tfds:{name}:{split}'
    self._arguments = (name, split, data_dir)
    self._records, features = _open(name, split, data_dir)
    self._key = next((key for key in _NAMES if key in features), None)
    label = features['label'] if 'label' in features else None
    self.classes = tuple(getattr(label, 'names', None) or ())

  def __getstate__(self):
    return self._arguments

  def __setstate__(self, state):
    self.__init__(*state)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, 'Y X 3'], int]:
    record = self._records[index]
    image = images.decode(record['image'], self._name(index, record))
    return image, _label(record)

  def name(self, index: int) -> str:
    return self._name(index, self._records[index])

  def _name(self, index, record):
    if self._key is None:
      return f'{self._where}[{index}]'
    return f'{self._where}/{record[self._key].decode()}'

  @property
  def labels(self) -> Int[np.ndarray, 'N']:
    return self._scan[0]

  @property
  def ranks(self) -> Int[np.ndarray, 'N']:
    return self._scan[1]

  @functools.cached_property
  def _scan(self):
    """Labels and ranks by name; reads every record, though no pixels."""
    labels, names = [], []
    for index in range(len(self)):
      record = self._records[index]
      labels.append(_label(record))
      names.append(record[self._key] if self._key else index)
    order = sorted(range(len(names)), key=names.__getitem__)
    return np.array(labels, np.int32), np.argsort(order)


def _label(record):
  return int(record.get('label', images.UNLABELLED))


def _open(name, split, data_dir):
  """Records with encoded images, and the features of the data set."""
  # Takes seconds, and runs that read folders need none of it.
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    raise ValueError(f'TFDS has no data set {name!r}') from error
  if not builder.info.splits:
    raise FileNotFoundError(
      f'{name} is not prepared in {builder.data_dir!s}: run '
      f'`{_command(name, data_dir)}`{_by_hand(builder)}; TFDS needs TensorFlow '
      'for that, here or on another machine'
    )
  if 'image' not in builder.info.features:
    raise ValueError(f'the data set {name!r} of TFDS has no images')
  try:
    records = builder.as_data_source(
      split, decoders={'image': tfds.decode.SkipDecoding()}
    )
  except NotImplementedError as error:
    raise FileNotFoundError(
      f'{builder.data_dir!s} holds files of a format that cannot be read in any '
      'order: run `tfds convert_format --out_file_format=array_record '
      f'--dataset_version_dir={builder.data_dir!s}`'
    ) from error
  except ValueError as error:
    raise ValueError(f'{name}: {str(error).splitlines()[0]}') from error
  return records, builder.info.features


def _command(name, data_dir):
  where = f' --data_dir={data_dir}' if data_dir else ''
  return f'tfds build {name} --file_format=array_record{where}'


def _by_hand(builder):
  told = ' '.join((builder.MANUAL_DOWNLOAD_INSTRUCTIONS or '').split())
  return f' ({told})' if told else ''
