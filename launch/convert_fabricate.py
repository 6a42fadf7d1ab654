"""Checkpoints of random numbers in published shapes, for trials."""

from collections.abc import Sequence
import dataclasses
import functools
import zlib

import ml_dtypes
import numpy as np

from launch import convert_diffusers, convert_mochi, convert_sink
from launch.convert_job import Job, Unit
from launch.errors import UserError
from mirage_jax import mochi_weights
from mirage_jax.encoders import names


def job(kind: str, depth: int, limit: int) -> Job:
  """Mochi's transformer of some depth, as diffusers has it, in bfloat16.

  Args:
    kind: 'mochi'; others are small enough to be had.
    depth: blocks; Mochi has 48.
    limit: bytes of one file.
  """
  if kind != 'mochi':
    raise UserError(f'--fabricate makes --from mochi, no {kind}')
  cfg = dataclasses.replace(convert_mochi.MOCHI, depth=depth)
  ours = convert_mochi.abstract_dit(cfg)
  shapes = names.their_shapes(mochi_weights.diffusers(cfg), ours)
  dtype = np.dtype(ml_dtypes.bfloat16)
  specs = {n: convert_sink.Spec(s, dtype) for n, s in shapes.items()}
  units = [
    Unit(name, None, functools.partial(draw, name, spec.shape))
    for name, spec in specs.items()
  ]
  sink = functools.partial(
    convert_sink.SafetensorsSink,
    specs=specs,
    stem='diffusion_pytorch_model',
    metadata={'format': 'pt'},
    limit=limit,
  )
  _, config = convert_diffusers.mochi_part(cfg)
  settings = {'from': kind, 'to': 'fabricated', 'depth': depth}
  return Job(specs, units, settings, sink, {'config.json': config})


def draw(name: str, shape: Sequence[int]) -> np.ndarray:
  """Small numbers that depend on the name alone."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  return rng.standard_normal(shape, np.float32) * np.float32(0.02)
