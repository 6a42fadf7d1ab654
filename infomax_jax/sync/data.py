"""Grain pipelines over the clips that `launch.prepare --stage clips` writes."""

import dataclasses
import glob
import io
import os
import re
import zipfile

import grain
import jax
import numpy as np
import soxr

from infomax_jax.sync import mouth, sound
from infomax_jax.sync.config import REACH

# What numpy's format says of an array in front of its bytes. Not read by np.load:
# it has Python's parser do it, which in CPython 3.11 fails in a thread while any
# other parses, as in python/cpython#106905.
_HEADER = re.compile(
  rb"\x93NUMPY\x01\x00..{'descr': '([<>|][biufU]\d+)', "
  rb"'fortran_order': False, 'shape': \(([\d, ]*)\), } *\n",
  re.DOTALL,
)
SAMPLES = sound.RATE // sound.FPS  # Of one frame.


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Windows of talking-face clips.

  Attributes:
    train: Folder of `clips` shards: square face crops at 25 fps, 16 kHz sound.
    eval: Folder of held-out ones.
    num_frames: N, frames in a window; 10 fewer are scored.
    augment: Change voices, faces, speed and frame rate of what is trained on.
  """

  train: str
  eval: str
  num_frames: int = 55
  augment: bool = True

  def __post_init__(self):
    if self.num_frames < 2 * REACH:
      raise ValueError(f'data.num_frames must be {2 * REACH} or more')


def open_clips(folder: str) -> grain.MapDataset:
  """Records of all shards: id, frames uint8 [N S S 3], wave float32 [640 N].

  Raises:
    FileNotFoundError: the folder holds no shard.
  """
  paths = sorted(glob.glob(os.path.join(folder, '*.array_record')))
  if not paths:
    raise FileNotFoundError(
      f'no *.array_record in {folder!r}: make them with `python -m '
      'launch.prepare --stage clips`, or point config.data at them'
    )
  source = grain.sources.ArrayRecordDataSource(paths)
  return grain.MapDataset.source(source).map(_unpack)


def _unpack(data):
  with zipfile.ZipFile(io.BytesIO(data)) as arrays:
    return {
      name: _array(arrays.read(f'{name}.npy'))
      for name in ('id', 'frames', 'wave')
    }


def _array(data):
  header = _HEADER.match(data)
  if not header:
    raise ValueError('a record holds no plain arrays: prepare the clips again')
  dtype, shape = (group.decode() for group in header.groups())
  shape = [int(n) for n in shape.split(',') if n.strip()]
  flat = np.frombuffer(data, np.dtype(dtype), offset=header.end())
  return flat.reshape(shape).copy()


def plain_window(record, cfg: DataConfig) -> dict[str, np.ndarray]:
  """The middle of a clip: 'mels' [W M] and 'mouth' [N 40 40]."""
  start = _room(record, cfg.num_frames) // 2
  frames = slice(start, start + cfg.num_frames)
  wave = record['wave'][start * SAMPLES :]
  return {
    'mels': sound.log_mel(wave, cfg.num_frames),
    'mouth': mouth.mouth_frames(record['frames'][frames]),
  }


def changed_window(
  record, rng: np.random.Generator, cfg: DataConfig
) -> dict[str, np.ndarray]:
  """A random window of a clip, with another voice, face and camera.

  The whole plays up to a tenth faster or slower, which moves the pitch too; in
  3 of 10 the camera takes 10 to 25 frames a second.
  """
  num_frames, total = cfg.num_frames, len(record['frames'])
  room = _room(record, num_frames)
  speed = min(2 ** rng.uniform(-0.15, 0.15), total / num_frames)
  room = int(total - num_frames * speed)
  start = int(rng.integers(0, room + 1))
  times = start + speed * (np.arange(num_frames) + 0.5) - 0.5
  if rng.random() < 0.3:
    period, phase = sound.FPS / rng.uniform(10, sound.FPS), rng.random()
    times = (np.round(times / period + phase) - phase) * period
  index = np.clip(np.round(times), 0, total - 1).astype(int)
  end = start + round(num_frames * speed)
  wave = record['wave'][start * SAMPLES : end * SAMPLES]
  wave = sound.change_wave(soxr.resample(wave, speed, 1), rng)
  warp, tilt = 2 ** rng.uniform(-0.25, 0.25), rng.uniform(-15, 15)
  return {
    'mels': sound.log_mel(wave, num_frames, warp, tilt),
    'mouth': mouth.mouth_frames(
      record['frames'][index], mouth.draw_look(rng), rng
    ),
  }


def _room(record, num_frames):
  room = len(record['frames']) - num_frames
  if room < 0:
    raise ValueError(
      f'clip {record["id"]} has {len(record["frames"])} frames, a window '
      f'{num_frames}: lower data.num_frames or prepare longer clips'
    )
  return room


def windows(cfg: DataConfig, batch_size: int, seed: int) -> grain.IterDataset:
  """Shuffled, endless batches to train on: this process's rows.

  `batch_size` counts the rows of all processes.

  Returns:
    Batches {'mels': float32 [B W M], 'mouth': float32 [B N 40 40]}.
  """
  # Finite, since an endless dataset has no length to divide.
  ds = open_clips(cfg.train).seed(seed).shuffle().repeat(1_000_000)
  if cfg.augment:
    ds = ds.random_map(lambda record, rng: changed_window(record, rng, cfg))
  else:
    ds = ds.map(lambda record: plain_window(record, cfg))
  return _batches(ds, batch_size)


def plain(cfg: DataConfig, batch_size: int) -> grain.IterDataset:
  """The middles of all held-out clips, once, as far as they fill batches."""
  ds = open_clips(cfg.eval).map(lambda record: plain_window(record, cfg))
  return _batches(ds, batch_size)


def _batches(ds, batch_size):
  count = jax.process_count()
  ds = ds[jax.process_index() :: count]
  ds = ds.batch(batch_size // count, drop_remainder=True)
  return ds.to_iter_dataset(
    grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
  )
