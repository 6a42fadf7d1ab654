"""Sound and sight of one speaker as two views: the judge of lip sync.

Two encoders say of each video frame what is heard and what is seen of the
mouth, as a global vector and a grid of local ones (`encoders`). The objective
asks each to predict the other at the same time, against other times of the same
clip and other clips (`objective`); its scores then tell by how many frames the
two are apart, and whether they belong together at all (`offsets`).
"""

from infomax_jax.sync.config import LossConfig, SyncConfig
from infomax_jax.sync.encoders import Sync, Track
from infomax_jax.sync.mouth import mouth_frames
from infomax_jax.sync.objective import infomax
from infomax_jax.sync.offsets import by_offset, products
from infomax_jax.sync.sound import log_mel

__all__ = [
  'LossConfig',
  'Sync',
  'SyncConfig',
  'Track',
  'by_offset',
  'infomax',
  'log_mel',
  'mouth_frames',
  'products',
]
