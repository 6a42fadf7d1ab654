"""Frozen dataclasses of the two encoders and of their objective."""

import dataclasses

# Frames that every vector sees: each layer below takes its share of them.
REACH = 11


@dataclasses.dataclass(frozen=True)
class SyncConfig:
  """Sizes of the encoders, see `encoders`.

  Attributes:
    dim: C of all vectors that scores are products of.
    stem: Channels after the first layer of the video encoder.
    trunk: Channels of the maps from which local vectors are made.
    hidden: Channels of the layers over time.
  """

  dim: int = 64
  stem: int = 48
  trunk: int = 96
  hidden: int = 128


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Constants of the objective, see `objective.infomax`.

  Attributes:
    clip: c of c tanh(score / c), as in AMDIM.
    reg_weight: Of the mean square of unclipped scores.
    local_weight: Of the terms that predict local vectors; 0 leaves them out.
    block: Sources whose scores are in memory at once.
  """

  clip: float = 20.0
  reg_weight: float = 5e-2
  local_weight: float = 0.5
  block: int = 512
