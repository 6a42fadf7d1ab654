"""Measures a judge of sync on clips: planted offsets, and sound of others."""

from collections.abc import Iterator, Mapping, Sequence
import os
from typing import Any, NamedTuple

from jaxtyping import Float
import numpy as np

from infomax_jax.sync import data
from infomax_jax.sync.offsets import Verdict
from infomax_jax.sync.sound import FPS, RATE
from launch.errors import UserError
from launch.steps_bar import StepsBar
from launch.sync_judge import PART, Judge

PLANTED = range(-10, 11)
CLOSE = 1  # Frames by which an offset may be off.


class Clip(NamedTuple):
  """What a judge says of a clip's two sides."""

  wave: Float[np.ndarray, 'S']
  heard: Float[np.ndarray, 'T C']
  seen: Float[np.ndarray, 'T C']


def read_clips(
  judge: Judge, folder: str | os.PathLike, limit: int | None = None
) -> list[Clip]:
  """The clips of a folder of `clips` shards, at most `PART` frames of each.

  Raises:
    UserError: no shards there, or clips too short for the judge's offsets.
  """
  try:
    records = data.open_clips(os.fspath(folder))
  except FileNotFoundError as error:
    raise UserError(f'{folder}: holds no *.array_record of clips') from error
  count = len(records) if limit is None else min(limit, len(records))
  clips = []
  with StepsBar('clips', count) as advance:
    for i in np.linspace(0, len(records) - 1, count).astype(int):
      record = records[int(i)]
      crops = record['frames'][:PART]
      if len(crops) < judge.shortest:
        raise UserError(
          f'{folder}: {record["id"]} has {len(crops)} frames of '
          f'{judge.shortest}; lower --reach'
        )
      wave = record['wave'][: len(crops) * RATE // FPS]
      clips.append(Clip(wave, judge.hear(wave, len(crops)), judge.see(crops)))
      advance()
  return clips


def shifted(wave: Float[np.ndarray, 'S'], frames: int) -> np.ndarray:
  """The sound so many frames later; silence where there is none."""
  by = frames * RATE // FPS
  if by >= 0:
    return np.pad(wave, (by, 0))[: len(wave)]
  return np.pad(wave[-by:], (0, -by))


def planted(
  judge: Judge, clips: Sequence[Clip], offsets: Sequence[int]
) -> Iterator[tuple[int, Verdict]]:
  """Each offset in each clip: (what was planted, the verdict)."""
  with StepsBar('planted offsets', len(clips) * len(offsets)) as advance:
    for clip in clips:
      frames = len(clip.wave) * FPS // RATE
      for offset in offsets:
        heard = judge.hear(shifted(clip.wave, offset), frames)
        yield offset, judge.verdict([judge.scores(heard, clip.seen)])
        advance()


def unrelated(judge: Judge, clips: Sequence[Clip]) -> Iterator[Verdict]:
  """Each clip with the sound of every other one, as far as both last."""
  for sight in clips:
    for sound in clips:
      if sound is not sight:
        frames = min(len(sound.heard), len(sight.seen))
        scores = judge.scores(sound.heard[:frames], sight.seen[:frames])
        yield judge.verdict([scores])


def auc(higher: Sequence[float], lower: Sequence[float]) -> float:
  """Share of pairs in which the one that should be higher is."""
  more = np.subtract.outer(np.array(higher), np.array(lower))
  return float(np.mean((more > 0) + 0.5 * (more == 0)))


def evaluate(judge: Judge, folder: str | os.PathLike) -> dict[str, Any]:
  """How often planted offsets are found, and unrelated sound is told apart.

  Raises:
    UserError: no clips, fewer than two, too short ones, or a judge that does
      not look as far as offsets are planted.
  """
  if judge.reach < PLANTED[-1]:
    raise UserError(f'offsets are planted up to {PLANTED[-1]}; raise --reach')
  clips = read_clips(judge, folder)
  if len(clips) < 2:
    raise UserError(f'{folder}: holds one clip, there is no unrelated sound')
  together = list(planted(judge, clips, PLANTED))
  apart = list(unrelated(judge, clips))
  found = np.array([v.offset - offset for offset, v in together])
  miss = np.abs(found)
  # A clip's own offset, as recorded, is the one found where none is planted.
  own = found.reshape(len(clips), -1)[:, [PLANTED.index(0)]]
  moved = np.abs(found.reshape(len(clips), -1) - own)
  sure = [v.confidence for _, v in together]
  unsure = [v.confidence for v in apart]
  aligned = [v.confidence for offset, v in together if not offset]
  return {
    'clips': len(clips),
    'planted': len(together),
    'exact': float(np.mean(miss == 0)),
    'within_one': float(np.mean(miss <= CLOSE)),
    'worst_miss': int(miss.max()),
    'within_one_of_own': float(np.mean(moved <= CLOSE)),
    'own_offsets': sorted(own[:, 0].tolist()),
    'unrelated': len(apart),
    'auc': auc(sure, unsure),
    'auc_aligned': auc(aligned, unsure),
    'auc_evidence': auc(
      [v.evidence for _, v in together], [v.evidence for v in apart]
    ),
    'confidence': float(np.mean(sure)),
    'confidence_unrelated': float(np.mean(unsure)),
    'evidence': float(np.mean([v.evidence for _, v in together])),
    'evidence_unrelated': float(np.mean([v.evidence for v in apart])),
  }


def text(report: Mapping[str, Any]) -> str:
  """A report in lines."""
  r = report
  return '\n'.join(
    (
      f'{r["clips"]} clips, {r["planted"]} planted offsets '
      f'{PLANTED[0]}..{PLANTED[-1]}: within one frame {r["within_one"]:.1%}, '
      f'exact {r["exact"]:.1%}, worst miss {r["worst_miss"]}',
      'relative to what is found without planting: within one frame '
      f'{r["within_one_of_own"]:.1%}; that is '
      f'{r["own_offsets"][0]:+d}..{r["own_offsets"][-1]:+d} frames',
      f'{r["unrelated"]} pairs with unrelated sound: AUC of the confidence '
      f'{r["auc"]:.3f} ({r["auc_aligned"]:.3f} without planted offsets), of '
      f'the nats {r["auc_evidence"]:.3f}',
      f'mean confidence {r["confidence"]:.3f}, unrelated '
      f'{r["confidence_unrelated"]:.3f}; nats a frame {r["evidence"]:.2f}, '
      f'unrelated {r["evidence_unrelated"]:.2f}',
    )
  )
