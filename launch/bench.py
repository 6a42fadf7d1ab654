"""Speed and memory against other code, in one run on one machine.

  python -m launch.bench mochi

measures a training step (forward, backward, AdamW) and a sampling step (Euler,
no guidance) of our transformer with Mochi's two streams against diffusers'
MochiTransformer3DModel (`pip install -e '.[convert]'`): the same sizes, batch,
tokens and threads, float32, CPU. The sizes are the transformer's of
configs/mirage/grid.py; that recipe itself, with audio and references, has a
column of its own. A ratio below 1 says that ours is faster or smaller. Seconds
and memory of compiling, a first step in a process that finds no compiled
program, stand apart. Fewer threads: `taskset -c 0 python -m launch.bench mochi`.

  python -m launch.bench sampling --data clips/ --split split.json --limit 10

makes clips with step caching, in the few steps of the distilled student and
with quantised matmuls (--quantise=int8,fp8,int8_weights,fp8_weights for all
there are), and puts time and lips beside those of the plain 64 steps. Without --data it speaks sentences, and compares lips with the plain ones.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import importlib.util
import json
import pathlib
import sys
from typing import Any

from absl import app, flags

from configs.mirage import grid
from launch import side_by_side
from launch.errors import UserError, one_line
from launch.side_by_side import Result, Rival

_JSON = flags.DEFINE_bool('json', False, 'print one line of JSON, no table')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'steps that count, of each side', 1)
_DATA = flags.DEFINE_string('data', None, 'folder of video files with sound')
_SPLIT = flags.DEFINE_string('split', None, 'JSON {"val": [names]}')
_LIMIT = flags.DEFINE_integer('limit', 4, 'so many clips', 2)
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'a bundle; the shipped one if unset'
)
_STEPS = flags.DEFINE_integer('steps', 64, 'of the plain sampler', 2)
_STUDENT = flags.DEFINE_string(
  'student',
  'fast',
  'distilled from it, takes few steps; the shipped one if unset',
)
_FEW_STEPS = flags.DEFINE_integer(
  'few_steps', None, 'compares so many guided steps instead of the student', 2
)
_AUDIO_CFG = flags.DEFINE_float(
  'audio_cfg', None, 'weight of the sound; as launch.sample if unset'
)
_CACHE = flags.DEFINE_string('cache', 'fast', 'as in launch.sample')
_QUANTISE = flags.DEFINE_list(
  'quantise', ['int8'], 'as in launch.sample, one or more with commas between'
)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', None, "the recipe's if unset")

TASKS = {'train': 'training step', 'sample': 'sampling step'}
OURS, THEIRS, RECIPE = 'ours', 'diffusers', 'with audio'
LATENTS = 5  # of a chunk: rope.CHUNK_LATENTS, but here nothing loads JAX

Results = Mapping[str, Mapping[str, Result]]  # by task and side


def main(argv: list[str]) -> None:
  with one_line():
    names = argv[1:]
    if len(names) != 1 or names[0] not in BENCHMARKS:
      raise UserError(
        f'give one benchmark of: {", ".join(BENCHMARKS)}; got: '
        f'{" ".join(names) or "none"}'
      )
    BENCHMARKS[names[0]]()


def mochi() -> None:
  """Measures, and prints the table or the line."""
  for name in ('torch', 'diffusers'):
    if importlib.util.find_spec(name) is None:
      raise UserError(
        f"{name} is not installed; `pip install -e '.[convert]'` brings it"
      )
  config = grid.get_config('dit')
  if _BATCH_SIZE.value:
    config.batch_size = _BATCH_SIZE.value
  sizes = mochi_sizes(config)
  results = run_mochi(sizes, json.loads(config.to_json()), _ROUNDS.value)
  if _JSON.value:
    print(json.dumps(mochi_summary(sizes, results)))
  else:
    print('\n'.join(mochi_table(sizes, results)))


def mochi_sizes(config: Mapping[str, Any]) -> dict[str, int]:
  """What both models are made of, from a recipe for the transformer."""
  model, (rows, columns) = config['model'], config['latent_size']
  return {
    'depth': model['depth'],
    'heads': model['num_heads'],
    'head_dim': model['head_dim'],
    'text_width': model['text']['width'],
    'features': model['text']['in_dim'],
    'channels': model['latent_channels'],
    'batch': config['batch_size'],
    'frames': config['data']['num_chunks'] * LATENTS,
    'rows': rows,
    'columns': columns,
    'text_length': config['data']['text_length'],
  }


def run_mochi(
  sizes: Mapping[str, int], config: Mapping[str, Any], rounds: int
) -> Results:
  """Both tasks of all three sides."""
  results = {}
  for task, title in TASKS.items():
    same = {'task': task, 'sizes': sizes}
    rivals = {
      OURS: Rival('launch.bench_ours:mochi', same),
      THEIRS: Rival('launch.bench_diffusers:mochi', same),
      RECIPE: Rival(
        'launch.bench_ours:recipe', {'task': task, 'config': config}
      ),
    }
    print(f'{title}: starting', file=sys.stderr, flush=True)
    results[task] = side_by_side.measure(rivals, rounds, _say(title, rounds))
  return results


def _say(title, rounds):
  def say(number):
    print(f'{title}: round {number}/{rounds}', file=sys.stderr, flush=True)

  return say


def ratio(results: Mapping[str, Result], measure: str) -> float:
  """Ours over theirs."""
  return getattr(results[OURS], measure) / getattr(results[THEIRS], measure)


def mochi_summary(sizes: Mapping[str, int], results: Results) -> dict[str, Any]:
  """The ratios (wall seconds; peak memory of training), and what is behind."""
  return {
    'train_ratio': ratio(results['train'], 'wall'),
    'sample_ratio': ratio(results['sample'], 'wall'),
    'memory_ratio': ratio(results['train'], 'peak_bytes'),
    'train_cpu_ratio': ratio(results['train'], 'cpu'),
    'sample_cpu_ratio': ratio(results['sample'], 'cpu'),
    'sample_memory_ratio': ratio(results['sample'], 'peak_bytes'),
    'compile_memory_ratio': ratio(results['train'], 'first_peak_bytes'),
    'threads': side_by_side.num_threads(),
    'sizes': dict(sizes),
    'medians': {
      task: {side: dataclasses.asdict(result) for side, result in sides.items()}
      for task, sides in results.items()
    },
  }


ROWS = (  # field, its title, factor, format
  ('wall', 'wall, s', 1, '.3f'),
  ('cpu', 'processor, s', 1, '.3f'),
  ('peak_bytes', 'peak memory, MB', 1e-6, '.0f'),
  ('first', 'compiling, s', 1, '.2f'),
  ('first_peak_bytes', 'compiling, MB', 1e-6, '.0f'),
)


def mochi_table(sizes: Mapping[str, int], results: Results) -> Sequence[str]:
  """Lines of at most 80 columns."""
  width = sizes['heads'] * sizes['head_dim']
  video = sizes['frames'] * sizes['rows'] * sizes['columns'] // 4
  lines = [
    "Mirage with Mochi's two streams against diffusers' Mochi, float32, CPU",
    f'depth {sizes["depth"]}, width {width}, {sizes["heads"]} heads x '
    f'{sizes["head_dim"]}, text width {sizes["text_width"]}; '
    f'{side_by_side.num_threads()} threads',
    f'batch {sizes["batch"]} x ({video} video + {sizes["text_length"]} text '
    f'tokens); "{RECIPE}": grid.py:dit as it is',
    '',
    _row(f'medians of {_rounds(results)}', (OURS, THEIRS, 'ratio', RECIPE)),
  ]
  for task, title in TASKS.items():
    for field, name, factor, form in ROWS:
      cells = {
        side: format(getattr(result, field) * factor, form)
        for side, result in results[task].items()
      }
      share = f'{ratio(results[task], field):.2f}'
      lines.append(
        _row(
          f'{title}: {name}', (cells[OURS], cells[THEIRS], share, cells[RECIPE])
        )
      )
  counts = {s: f'{r.num_params:,}' for s, r in results['train'].items()}
  share = f'{ratio(results["train"], "num_params"):.2f}'
  cells = (counts[OURS], counts[THEIRS], share, counts[RECIPE])
  return [*lines, _row('parameters', cells)]


def _rounds(results):
  return len(results['train'][OURS].walls)


def _row(title, cells):
  numbers = ''.join(f'{cell:>11}' for cell in cells)
  return f'{title:<36}{numbers}'


def sampling() -> None:
  """Measures, and prints the table or the line."""
  # Only here: the processes of other benchmarks shall not pay for JAX.
  from launch import bench_sampling, bundle, evaluation, faces
  from launch.guidance_flags import make_caching, make_guidance
  from launch.settings import AUDIO_CFG, Settings

  weight = _AUDIO_CFG.value
  weight = AUDIO_CFG if weight is None else weight
  if not _QUANTISE.value or len({*_QUANTISE.value}) < len(_QUANTISE.value):
    raise UserError('--quantise: give one or more schemes, each once')
  plain = Settings(_STEPS.value, make_guidance(audio=weight))
  weights = bundle.load(_CHECKPOINT.value or bundle.DEFAULT)
  ways = bench_sampling.make_ways(
    weights,
    plain,
    _FEW_STEPS.value or bundle.load(_STUDENT.value),
    make_caching(_CACHE.value),
    _QUANTISE.value,
  )
  mesh, clips = faces.default_mesh(), bench_sampling.spoken_clips(_LIMIT.value)
  if _DATA.value:
    split = pathlib.Path(_SPLIT.value) if _SPLIT.value else None
    files = evaluation.list_clips(
      pathlib.Path(_DATA.value), split, 'val', _LIMIT.value
    )
    size = weights.config['data']['size']
    clips = bench_sampling.real_clips(files, size, mesh)
  say = lambda line: print(line, file=sys.stderr, flush=True)
  rebuild = evaluation.make_rebuild(weights)
  results = bench_sampling.measure(ways, clips, mesh, rebuild, say)
  summary = bench_sampling.summarise(ways, results)
  if _JSON.value:
    print(json.dumps(summary))
  else:
    print('\n'.join(bench_sampling.table(summary)))


BENCHMARKS = {'mochi': mochi, 'sampling': sampling}  # subcommands

if __name__ == '__main__':
  sys.exit(app.run(main))
