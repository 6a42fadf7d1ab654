"""What sound and sight have to say of each other, as AMDIM's objective."""

import jax
from jaxtyping import Array, Float

from infomax_jax import nce
from infomax_jax.sync.config import LossConfig
from infomax_jax.sync.encoders import Track

Metrics = dict[str, Float[Array, '']]


def infomax(
  sound: Track, sight: Track, cfg: LossConfig
) -> tuple[Float[Array, ''], Metrics]:
  """The loss of a batch of clips, in nats.

  Each frame of each clip is one image of `nce.score`: the global vector of its
  sound predicts the global vector and the local ones of its sight, and the
  other way round. Negatives are all other frames: those of the same clip,
  without which no offset could be told, and those of other clips.

  Returns:
    The loss, and its parts: 'whole' (global to global) and 'local' (global to
    local), each the mean of both directions, and 'reg' of squared scores.

  Raises:
    ValueError: the tracks differ in B, T or C.
  """
  there = _direction(sound, sight, cfg)
  back = _direction(sight, sound, cfg)
  parts = jax.tree.map(lambda a, b: (a + b) / 2, there, back)
  parts['reg'] = cfg.reg_weight * parts['reg']
  local = cfg.local_weight * parts.get('local', 0.0)
  return parts['whole'] + local + parts['reg'], parts


def _direction(source, target, cfg):
  rows = lambda x: x.reshape(-1, *x.shape[2:])
  sources = rows(source.whole)[:, None]
  targets = {'whole': rows(target.whole)[:, None]}
  if cfg.local_weight:
    targets['local'] = rows(target.local)
  parts, reg = {}, 0.0
  for name, vectors in targets.items():
    scores = nce.score(sources, vectors, clip=cfg.clip, block=cfg.block)
    parts[name] = -scores.log_softmax.mean()
    reg += scores.mean_square.mean()
  return parts | {'reg': reg}
