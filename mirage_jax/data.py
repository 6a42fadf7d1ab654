"""Grain pipelines over the shards that `launch.prepare` writes."""

from collections.abc import Sequence
import dataclasses
import glob
import os

import grain
import jax
import numpy as np

from mirage_jax import augment, records, text
from mirage_jax.audio import TOKEN_RATE
from mirage_jax.rope import CHUNK_FRAMES, CHUNK_LATENTS, reference_times

FPS = TOKEN_RATE


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """Windows of raw frames for the VAE.

  Attributes:
    train: Folder of `clips` shards.
    eval: Folder of held-out `clips` shards.
    num_frames: Frames in a window.
    size: Rows and columns of a window; a random crop where frames are larger.
  """

  train: str
  eval: str
  num_frames: int
  size: int


def open_shards(folder: str) -> grain.MapDataset:
  """Unpacked records of all shards in a folder, in order.

  Raises:
    FileNotFoundError: the folder holds no shard.
  """
  paths = sorted(glob.glob(os.path.join(folder, '*.array_record')))
  if not paths:
    raise FileNotFoundError(
      f'no *.array_record in {folder!r}: make them with `python -m '
      'launch.prepare`, or point config.data at them'
    )
  source = grain.sources.ArrayRecordDataSource(paths)
  return grain.MapDataset.source(source).map(records.unpack)


class ProcessRows(grain.MapDataset):
  """One process's rows of every global batch, in order.

  Whatever the number of processes, row k of batch n is the same example.
  """

  def __init__(self, parent: grain.MapDataset, batch_size: int):
    super().__init__(parent)
    self._batch = batch_size
    self._share = batch_size // jax.process_count()
    self._start = jax.process_index() * self._share

  def __len__(self) -> int:
    return len(self._parent) // self._batch * self._share

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    batch, row = divmod(index, self._share)
    return self._parent[batch * self._batch + self._start + row]


def batches(
  ds: grain.MapDataset, batch_size: int, seed: int, transform
) -> grain.IterDataset:
  """Shuffled, endless batches of `transform(record, rng)`: this process's rows.

  `batch_size` counts the rows of all processes.
  """
  # Finite, since an endless dataset has no length to divide.
  ds = ds.seed(seed).shuffle().repeat(1_000_000).random_map(transform)
  ds = ProcessRows(ds, batch_size)
  return ds.batch(batch_size // jax.process_count()).to_iter_dataset(
    grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
  )


def clip_window(record, rng: np.random.Generator, *, cfg: ClipConfig):
  """A random window of one clip: {'frames': uint8 [N S S 3]}."""
  frames = record['frames']
  extent = (cfg.num_frames, cfg.size, cfg.size)
  room = np.subtract(frames.shape[:3], extent)
  if room.min() < 0:
    raise ValueError(
      f'clip {record["id"]} has {frames.shape[:3]} frames, rows and columns, '
      f'a window {extent}: lower data.num_frames or data.size'
    )
  starts = [int(rng.integers(0, r + 1)) for r in room]
  window = tuple(slice(a, a + n) for a, n in zip(starts, extent, strict=True))
  return {'frames': frames[window]}


def clips(cfg: ClipConfig, batch_size: int, seed: int, folder: str):
  """Batches {'frames': uint8 [B N S S 3]} of random windows."""

  def transform(record, rng):
    return clip_window(record, rng, cfg=cfg)

  return batches(open_shards(folder), batch_size, seed, transform)


@dataclasses.dataclass(frozen=True)
class LatentConfig:
  """Windows of latents with their conditions, for the transformer.

  Attributes:
    train: Folder of `latents` shards.
    eval: Folder of held-out `latents` shards.
    num_chunks: 25-frame chunks in a window.
    text_length: Bytes of a caption that count, or tokens of its features.
    past: Latents before the window given as clean reference tokens, so that
      long videos can go on from them; 0 for none.
    drop_past: Share of the windows with a past that go without.
    other_image: Share of the windows whose image is of another clip; only for
      shards of one person. Lips follow the sound more closely then, and a face
      is kept less like its image.
    augment: Share of the windows in which voice, level and noise of the audio
      are changed; of an encoder's features, only the voice, to one of those they
      were made of. The others have the sound as it was recorded: where all are
      changed, lips follow other voices, but their own less closely.
  """

  train: str
  eval: str
  num_chunks: int = 2
  text_length: int = 40
  past: int = 2
  drop_past: float = 0.3
  other_image: float = 0.0
  augment: float = 1.0

  def __post_init__(self):
    for name in ('other_image', 'augment'):
      share = getattr(self, name)
      if not 0.0 <= share <= 1.0:
        raise ValueError(f'data.{name} is a share, 0 to 1, not {share}.')


def latent_window(
  record,
  rng: np.random.Generator,
  *,
  cfg: LatentConfig,
  extra: Sequence[str] = (),
  others: Sequence[dict] = (),
):
  """One training sample: a window of whole chunks and what conditions it.

  Args:
    record: As `launch.prepare` made it.
    rng: What is drawn.
    cfg: The window.
    extra: Further arrays of the record to cut, of one row per frame, as each
      of `MirageConfig.extra` needs.
    others: Records that have the images of `other_image`.

  Returns:
    video [F Y X C]; reference [1 + past, Y X C] with reference_time and
    reference_mask: first an image of a clip from outside the window's time,
    then the latents that lead up to it; audio [N Ca]; text, ids [L] or, if
    `launch.features` has put them there, features [L Ct]; text_mask [L]; those
    of extra, float32 [N C].
  """
  latents, first_frame = _pick_offset(record, rng, cfg.num_chunks)
  room = len(latents) // CHUNK_LATENTS - cfg.num_chunks
  chunk = int(rng.integers(0, room + 1))
  begin = chunk * CHUNK_LATENTS
  video = latents[begin : begin + cfg.num_chunks * CHUNK_LATENTS]
  start = first_frame + chunk * CHUNK_FRAMES
  num_frames = cfg.num_chunks * CHUNK_FRAMES
  shown = record
  if rng.random() < cfg.other_image:
    shown = others[int(rng.integers(len(others)))]
  image, seconds = _outside(shown, rng, start, num_frames)
  past = np.zeros((cfg.past, *video.shape[1:]), video.dtype)
  has_past = bool(cfg.past and chunk and rng.random() >= cfg.drop_past)
  if has_past:
    past[:] = latents[begin - cfg.past : begin]
  changed = rng.random() < cfg.augment
  variants = record['audio'] if changed else record['audio'][:1]
  audio = variants[rng.integers(len(variants))][start : start + num_frames]
  audio = audio.astype(np.float32)
  if changed and 'front_end' not in record:  # It works on log-mel only.
    audio = augment.augment_features(audio, rng)
  words, text_mask = _text(record, cfg.text_length)
  return dict(
    video=video.astype(np.float32),
    reference=np.concatenate([image[None], past]).astype(np.float32),
    reference_time=reference_times(seconds, cfg.past),
    reference_mask=np.array([True] + [has_past] * cfg.past),
    audio=audio,
    text=words,
    text_mask=text_mask,
    **{n: _rows(record, n, start, num_frames) for n in extra},
  )


def _rows(record, name, start, count):
  """What a further stream has for some frames."""
  rows = record.get(name, ())[start : start + count]
  if len(rows) < count:
    raise ValueError(
      f'clip {record["id"]} has no {count} rows of {name!r} from frame {start}: '
      'put one for each frame in the shards, or leave it out of model.extra'
    )
  return rows.astype(np.float32)


def _text(record, length):
  """Features of the caption, padded with zeros, or ids of its bytes."""
  if 'text' not in record:
    return text.byte_ids(str(record['caption']), length)
  return text.pad(record['text'], length)


def _pick_offset(record, rng, num_chunks):
  """The latents of one alignment of the chunks, and its first frame."""
  offsets = [
    int(o)
    for o in record['offsets']
    if len(record[f'latents_{o}']) >= num_chunks * CHUNK_LATENTS
  ]
  if not offsets:
    raise ValueError(
      f'clip {record["id"]} is shorter than data.num_chunks={num_chunks}: '
      'prepare longer clips, or lower it'
    )
  offset = offsets[rng.integers(len(offsets))]
  return record[f'latents_{offset}'], offset


def _outside(record, rng, start, num_frames):
  """A single-frame latent from outside the window; its place in seconds."""
  frames = record['reference_frame']
  allowed = np.flatnonzero((frames < start) | (frames >= start + num_frames))
  if not len(allowed):
    raise ValueError(
      f'clip {record["id"]} has no frame outside a window of {num_frames}: '
      'lower data.num_chunks or prepare longer clips'
    )
  pick = allowed[rng.integers(len(allowed))]
  return record['reference'][pick], (int(frames[pick]) - start) / FPS


def latents(
  cfg: LatentConfig,
  batch_size: int,
  seed: int,
  folder: str,
  extra: Sequence[str] = (),
):
  """Batches of `latent_window`."""
  shards = open_shards(folder)

  def transform(record, rng):
    return latent_window(record, rng, cfg=cfg, extra=extra, others=shards)

  return batches(shards, batch_size, seed, transform)
