"""Mirage: sound in, a video of a person speaking out. Start at `experiment`."""

from mirage_jax.config import FlowConfig, MirageConfig, StreamConfig
from mirage_jax.dit import Mirage
from mirage_jax.sampler import Guidance, sample
from mirage_jax.vae import Vae, VaeConfig

__all__ = [
  'FlowConfig',
  'Guidance',
  'Mirage',
  'MirageConfig',
  'StreamConfig',
  'Vae',
  'VaeConfig',
  'sample',
]
