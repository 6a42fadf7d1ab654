"""What a page has to know of the model and its limits to draw its form."""

import dataclasses
from typing import Any

from launch import generate, guidance_flags
from launch.serve_jobs import Limits
from launch.serve_work import Studio
from launch.settings import SEEDS
from mirage_jax import cache, solvers
from mirage_jax.guidance import LIMITS

# Any other window of noise levels is for the interface only.
SCHEDULES = ('constant', 'cosine', 'window:0.95:0.3')


def facts(
  generator: generate.Generator, studio: Studio, limits: Limits
) -> dict[str, Any]:
  """JSON for the page: sizes, limits, and the range of each weight."""
  guidance = generator.usual.guidance
  # Skip guidance needs blocks: for the interface only.
  shown = [name for name in ('audio', 'reference', 'text', 'joint')]
  if not generator.text_length:
    shown.remove('text')
  solvers_, schedules, caches = list(solvers.NAMES), SCHEDULES, cache.PRESETS
  if generator.own_steps:  # Guidance is folded in.
    shown.clear()
    solvers_, schedules, caches = ['euler'], ['constant'], ['none']
  return {
    'size': generator.size,
    'window': generator.window_frames / 25,
    'text_length': generator.text_length,
    'has_face': studio.has_face,
    'measures_lips': studio.measures_lips,
    'limits': dataclasses.asdict(limits),
    'seeds': SEEDS,
    'steps': generator.usual.steps,
    'solvers': solvers_,
    'schedules': list(schedules),
    'caches': list(caches),
    'weights': [
      {
        'name': guidance_flags.FLAGS[name],
        'low': LIMITS[name][0],
        'high': LIMITS[name][1],
        'usual': float(guidance.weight(name).value),
      }
      for name in shown
    ],
  }
