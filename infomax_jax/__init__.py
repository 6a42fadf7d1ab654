"""AMDIM: representations from what views of one thing say of each other.

An encoder turns each of two views, of an image or of sound and sight, into a
global vector and local ones; the objective asks each view to predict the other.
"""

from infomax_jax.config import (
  PUBLISHED,
  EncoderConfig,
  HeadsConfig,
  ObjectiveConfig,
)
from infomax_jax.encoder import Encoder, Features, encode_views
from infomax_jax.heads import Heads
from infomax_jax.objective import draw_locations, infomax

__all__ = [
  'PUBLISHED',
  'Encoder',
  'EncoderConfig',
  'Features',
  'Heads',
  'HeadsConfig',
  'ObjectiveConfig',
  'draw_locations',
  'encode_views',
  'infomax',
]
