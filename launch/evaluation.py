"""A run over real clips: generate, rebuild, score, report; resumable by clip."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import pathlib
import time
from typing import Any, NamedTuple

from jaxtyping import Float, UInt8
import numpy as np

from launch import (
  bundle,
  clip_scores,
  evaluation_report,
  faces,
  filmstrip,
  media,
)
from launch.errors import UserError
from mirage_jax import config, evals, latents
from mirage_jax.audio import RATE, TOKEN_RATE
from mirage_jax.vae import CHUNK, Vae, VaeConfig

FPS = TOKEN_RATE

# (wave, image, seed) -> frames uint8[N size size 3], as long as the wave
Generate = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
# frames -> frames of the same shape, through the autoencoder
Rebuild = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Plan:
  """What decides the numbers; a run continues only under an equal plan.

  Attributes:
    checkpoint: file or workdir, as given.
    clips: ids, in order; the file of each is data/id.*.
    partners: for each clip another one, whose frame it is generated from and
      whose audio is the shuffled one.
    size: side of the crops in pixels.
    seed: of the generation; clip n uses seed + n.
    own_reference: generate from the clip's own first frame instead: the head's
      pose, hair and light are then the true ones, so pixels can be compared.
    shuffle_audio: whether to generate from the partner's audio as well.
    vae_only: whether to judge the autoencoder alone.
    sampling: keyword arguments of the sampler.
  """

  checkpoint: str
  clips: Sequence[str]
  partners: Sequence[str]
  size: int = 96
  seed: int = 0
  own_reference: bool = False
  shuffle_audio: bool = False
  vae_only: bool = False
  sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Clip(NamedTuple):
  frames: UInt8[np.ndarray, 'N size size 3']
  wave: Float[np.ndarray, 'S']


def make_plan(ids: Sequence[str], **settings: Any) -> Plan:
  """Pairs every clip with another one, the same way each time.

  The pairing is made before anything is skipped, so a clip's partner does not
  depend on how far a run got.
  """
  partners = tuple(ids[p] for p in evals.derangement(len(ids)))
  return Plan(clips=tuple(ids), partners=partners, **settings)


def list_clips(
  data: pathlib.Path, split: pathlib.Path | None, subset: str, limit: int | None
) -> dict[str, pathlib.Path]:
  """{id: file} of the clips to judge, by name or in the split's order.

  Raises:
    UserError: no such folder, split, subset or clip, or nothing is left.
  """
  if not data.is_dir():
    raise UserError(f'--data {data}: no such folder')
  files = {p.stem: p for p in sorted(data.iterdir()) if p.is_file()}
  ids = list(files)
  if split is not None:
    try:
      subsets = json.loads(split.read_text())
      ids = subsets[subset]
    except OSError as error:
      raise UserError(f'--split {split}: {error.strerror}') from error
    except (json.JSONDecodeError, TypeError, KeyError) as error:
      raise UserError(
        f'--split {split}: must be JSON with a list under {subset!r}'
      ) from error
    missing = [i for i in ids if i not in files]
    if missing:
      raise UserError(f'--data {data}: has no clip {missing[0]!r} of the split')
  if limit is not None:
    ids = ids[:limit]
  if len(ids) < 2:
    raise UserError(f'--data {data}: {len(ids)} clip(s); at least 2 are needed')
  return {i: files[i] for i in ids}


def load_clip(path: pathlib.Path, size: int, mesh: faces.FaceMesh) -> Clip:
  """Reads, crops the face and resizes; raises MediaError or NoFaceError."""
  frames = media.read_video(path, fps=FPS).frames
  if len(frames) < CHUNK:
    raise media.MediaError(
      f'{path}: {len(frames)} frames; give {CHUNK} or more'
    )
  box = faces.face_crop_box(frames, mesh)
  wave = fit(media.read_audio(path, rate=RATE), len(frames) * RATE // FPS)
  return Clip(faces.crop_resize(frames, box, size), wave)


def make_rebuild(weights: bundle.Bundle) -> Rebuild:
  """Frames through the bundle's autoencoder and back."""
  vae = Vae(config.build(VaeConfig, weights.config['vae']))

  def rebuild(frames: np.ndarray) -> np.ndarray:
    z = latents.encode_video(vae, weights.vae, weights.stats, frames)
    return latents.decode_video(vae, weights.vae, weights.stats, z)

  return rebuild


def rebuild_clip(frames: np.ndarray, rebuild: Rebuild) -> np.ndarray:
  """Through the autoencoder; the last frame fills up the last chunk."""
  short = -len(frames) % CHUNK
  full = np.concatenate([frames, np.repeat(frames[-1:], short, axis=0)])
  return rebuild(full)[: len(frames)]


def claim(path: pathlib.Path, plan: Plan) -> None:
  """Writes the plan to `path`, or checks that the one there is equal.

  Raises:
    UserError: it is another one.
  """
  plain = json.loads(json.dumps(dataclasses.asdict(plan)))
  if path.exists() and json.loads(path.read_text()) != plain:
    raise UserError(
      f'{path}: belongs to an evaluation with other settings: '
      'give another --out or remove it'
    )
  evaluation_report.save_json(path, plain)


class Evaluation:
  """One run over a plan; results live in `out`, one file per clip."""

  def __init__(
    self,
    plan: Plan,
    files: Mapping[str, pathlib.Path],
    out: pathlib.Path,
    rebuild: Rebuild,
    generate: Generate | None,
    num_plots: int = 4,
  ):
    self.plan, self.files, self.out = plan, files, out
    self.rebuild, self.generate = rebuild, generate
    self.num_plots = num_plots
    self.mesh = faces.default_mesh()

  def run(self) -> dict[str, dict[str, Any]]:
    """Judges every clip not judged yet, reports, returns the summary."""
    claim(self.out / 'plan.json', self.plan)
    results, start, done_here = [], time.monotonic(), 0
    count = len(self.plan.clips)
    for n, clip_id in enumerate(self.plan.clips):
      path = self.out / 'clips' / f'{clip_id}.json'
      fresh = not path.exists()
      if fresh:
        evaluation_report.save_json(path, self.judge_or_skip(n))
        done_here += 1
      results.append(json.loads(path.read_text()))
      if fresh:
        each = (time.monotonic() - start) / done_here
        left = sum(
          not (self.out / 'clips' / f'{i}.json').exists()
          for i in self.plan.clips[n + 1 :]
        )
        print(
          f'[{n + 1}/{count}] {clip_id}: {describe(results[-1])} '
          f'({each:.1f} s a clip, {left * each / 60:.1f} min left)',
          flush=True,
        )
    return self.report(results)

  def judge_or_skip(self, n: int) -> dict[str, Any]:
    """The result of clip n, or the reason why there is none."""
    try:
      return self.judge(n)
    except (media.MediaError, faces.NoFaceError) as error:
      return {'id': self.plan.clips[n], 'skipped': str(error)}

  def judge(self, n: int) -> dict[str, Any]:
    """Loads, generates, scores and, for the first few, draws clip n."""
    plan, clip_id = self.plan, self.plan.clips[n]
    clip = self.load(clip_id)
    made = {
      'truth': clip.frames,
      'rebuilt': rebuild_clip(clip.frames, self.rebuild),
    }
    if not plan.vae_only:
      other = self.load(plan.partners[n])
      image = (clip if plan.own_reference else other).frames[0]
      seed = plan.seed + n
      made['generated'] = self.generate(clip.wave, image, seed)
      if plan.shuffle_audio:
        wave = fit(other.wave, len(clip.wave))
        made['shuffled'] = self.generate(wave, image, seed)
    # Where a generated face is lost, the true one's place is looked at.
    rois = self.mesh.clip_rois(clip.frames)
    looks = {
      row: clip_scores.look(frames, self.mesh, rois)
      for row, frames in made.items()
    }
    rows = {
      row: clip_scores.score(seen, looks['truth'], looks['rebuilt'], FPS)
      for row, seen in looks.items()
    }
    if n < self.num_plots:
      self.draw(clip_id, clip, looks)
    return {'id': clip_id, 'partner': plan.partners[n], 'rows': rows}

  def load(self, clip_id: str) -> Clip:
    return load_clip(self.files[clip_id], self.plan.size, self.mesh)

  def draw(
    self, clip_id: str, clip: Clip, looks: Mapping[str, clip_scores.Look]
  ) -> None:
    """A filmstrip and a video of what was made of one clip."""
    row = 'rebuilt' if self.plan.vae_only else 'generated'
    filmstrip.save_filmstrip(
      self.out / f'{clip_id}.png',
      looks[row].frames,
      clip.wave,
      looks[row].mouth,
      reference_frames=clip.frames,
      reference_opening=looks['truth'].mouth,
      fps=FPS,
      rate=RATE,
      title=f'{clip_id}: {evaluation_report.ROW_TITLES[row]}',
    )
    side_by_side = np.concatenate([clip.frames, looks[row].frames], axis=2)
    media.write_video(
      self.out / f'{clip_id}.mp4', side_by_side, clip.wave, fps=FPS, rate=RATE
    )

  def report(self, results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Writes scores.json, table.md and curves.png; returns the summary."""
    judged = [r for r in results if 'rows' in r]
    skipped = [r for r in results if 'skipped' in r]
    if not judged:
      raise UserError(f'no clip could be judged: {skipped[0]["skipped"]}')
    summary = evaluation_report.summarise(judged)
    evaluation_report.save_json(
      self.out / 'scores.json',
      {'mean': summary, 'clips': judged, 'skipped': skipped},
    )
    table = evaluation_report.markdown(summary, len(judged), len(skipped))
    (self.out / 'table.md').write_text(table)
    evaluation_report.save_curves(
      self.out / 'curves.png', judged[: max(self.num_plots, 1)], FPS
    )
    print(table)
    return summary


def fit(wave: np.ndarray, length: int) -> np.ndarray:
  """Cut or padded with silence to `length` samples."""
  return np.pad(wave[:length], (0, max(length - len(wave), 0)))


def describe(result: Mapping[str, Any]) -> str:
  """One clip in a few words, for the progress line."""
  if 'skipped' in result:
    return f'skipped, {result["skipped"]}'
  rows = result['rows']
  row = 'generated' if 'generated' in rows else 'rebuilt'
  return (
    f'{row} mouth r {rows[row]["mouth_correlation"]:.3f}, '
    f'PSNR {rows[row]["psnr_whole_truth"]:.1f} dB'
  )
