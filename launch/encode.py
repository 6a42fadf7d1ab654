"""Shards of clips -> shards of what the transformer trains on."""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import itertools
import os
import pathlib
import zlib

import jax
from jaxtyping import Float, UInt8
import numpy as np

from launch import bundle, shards
from launch.errors import UserError
from mirage_jax import audio, augment, config, latents
from mirage_jax.vae import CHUNK, Vae, VaeConfig

GROUP = 16  # Clips in memory at a time; they babble behind each other.


@dataclasses.dataclass(frozen=True)
class LatentSettings:
  """What latents of a clip depend on.

  Attributes:
    offsets: first frames of the encodings of one clip, for windows that do not
      begin with a chunk.
    reference_every: frames between single frames encoded as references.
    repeats: times a reference is shown to the VAE; the paper has 7.
    voices: variants of the sound, the first of them unchanged.
    batch: chunks in one call of the VAE.
  """

  offsets: tuple[int, ...] = (0, 12)
  reference_every: int = 6
  repeats: int = 1
  voices: int = 4
  batch: int = 8


class ChunkEncoder:
  """The VAE's encoder in batches of one fixed shape, so that it compiles once."""

  def __init__(self, weights: bundle.Bundle, batch: int):
    self.vae = Vae(config.build(VaeConfig, weights.config['vae']))
    self.batch = batch
    self._weights = weights
    stats = weights.stats

    def encode(params, frames):
      frames = latents.to_float(frames)
      mean, _ = self.vae.apply({'params': params}, frames, method='encode')
      shape = (1, 1, 1, 1, -1)
      return (mean - stats['mean'].reshape(shape)) / stats['std'].reshape(shape)

    self._encode = jax.jit(encode)

  def __call__(
    self, chunks: Sequence[UInt8[np.ndarray, 'N Hp Wp 3']]
  ) -> Float[np.ndarray, 'K F Y X C']:
    """Normalised posterior means, as `latents.encode_video` gives them."""
    parts = []
    for start in range(0, len(chunks), self.batch):
      rows = list(chunks[start : start + self.batch])
      rows += [rows[0]] * (self.batch - len(rows))
      part = self._encode(self._weights.vae, np.stack(rows))
      parts.append(np.asarray(part))
    return np.concatenate(parts)[: len(chunks)]


def latent_outcomes(
  shard: str | os.PathLike, encoder: ChunkEncoder, settings: LatentSettings
) -> Iterator[shards.Outcome]:
  """One record for each clip of a `clips` shard.

  Records hold `id`, `caption`, `num_frames` N; `offsets` int[O] and, for each
  offset o, `latents_o` float16[F Y X C] of the whole chunks from frame o on;
  `reference` float16[R Y X C] and `reference_frame` int[R]; `audio`
  float16[V N 320], voice 0 unchanged. Augmentation is seeded by the id.
  """
  clips = shards.read_shard(shard)
  while group := list(itertools.islice(clips, GROUP)):
    yield from _group_outcomes(group, encoder, settings)


def voices(
  clip: str,
  wave: Float[np.ndarray, 'S'],
  num_frames: int,
  others: Sequence[Float[np.ndarray, '_']],
  count: int,
) -> Float[np.ndarray, 'V N 320']:
  """Log-mel tokens of the wave and of `count` - 1 changed voices."""
  tokens = [audio.log_mel(wave, num_frames)]
  for variant in range(1, count):
    rng = np.random.default_rng([zlib.crc32(clip.encode()), variant])
    changed = augment.augment_wave(wave, rng, others)
    tokens.append(audio.log_mel(changed, num_frames))
  return np.stack(tokens)


def find_clips(folder: str | os.PathLike) -> tuple[list[pathlib.Path], dict]:
  """Shards of a finished `clips` folder, and its report.

  Raises:
    UserError: not such a folder, or not finished.
  """
  folder = pathlib.Path(folder)
  if not (folder / 'manifest.json').exists():
    raise UserError(
      f'{folder}: is no folder of clips; make one with --stage clips'
    )
  stage = shards.read_json(folder / 'manifest.json').get('stage')
  if stage != 'clips':
    raise UserError(
      f'{folder}: holds {stage}, not clips; give the clips folder'
    )
  if not (folder / 'report.json').exists():
    raise UserError(f'{folder}: is not finished; run --stage clips again')
  report = shards.read_json(folder / 'report.json')
  return sorted(folder.glob('*.array_record')), report


def file_hash(path: str | os.PathLike) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()[:16]


def _group_outcomes(group, encoder, settings):
  factor = encoder.vae.cfg.space_factor
  chunks, singles, plans = [], [], []
  for clip in group:
    frames = clip['frames']
    if frames.shape[1] % factor or frames.shape[2] % factor:
      raise UserError(
        f'clips of {frames.shape[1:3]} pixels do not fit a VAE that shrinks'
        f' {factor} times; prepare them with another --size'
      )
    windows = {
      o: (len(frames) - o) // CHUNK
      for o in settings.offsets
      if len(frames) - o >= CHUNK
    }
    for o, count in windows.items():
      chunks += [frames[o + k * CHUNK :][:CHUNK] for k in range(count)]
    kept = np.arange(0, len(frames), settings.reference_every)
    singles += [np.repeat(frames[k : k + 1], settings.repeats, 0) for k in kept]
    plans.append((windows, kept))
  coded, references = encoder(chunks), encoder(singles)
  waves = [clip['wave'] for clip in group]
  for n, (clip, (windows, kept)) in enumerate(zip(group, plans, strict=True)):
    record = {k: clip[k] for k in ('id', 'caption')}
    record['num_frames'] = np.int32(len(clip['frames']))
    record['offsets'] = np.array(list(windows), np.int32)
    for o, count in windows.items():
      mine, coded = coded[:count], coded[count:]
      record[f'latents_{o}'] = _half(mine.reshape(-1, *mine.shape[2:]))
    mine, references = references[: len(kept)], references[len(kept) :]
    # With repeats a reference has several latents; all but time stays apart.
    record['reference'] = _half(mine.reshape(-1, *mine.shape[2:]))
    record['reference_frame'] = np.repeat(kept, mine.shape[1]).astype(np.int32)
    tokens = voices(
      str(clip['id']),
      waves[n],
      len(clip['frames']),
      waves[:n] + waves[n + 1 :],
      settings.voices,
    )
    record['audio'] = _half(tokens)
    yield shards.Outcome(str(clip['id']), record)


def _half(values):
  return np.asarray(values, np.float16)
