"""How to sample, checked once: steps, guidance, solver, caching, windows."""

import dataclasses

from launch.errors import UserError
from mirage_jax import cache, solvers
from mirage_jax.guidance import Guidance

# What the binaries sample with unless told otherwise: of 4 steps at weight 2 and
# 8 at weights 2 and 3, these gave the shipped model the best lips and a human
# rate of blinks.
STEPS = 8
AUDIO_CFG = 3.0
SEEDS = 2**31  # There are so many, from 0 on.


@dataclasses.dataclass(frozen=True)
class Joints:
  """What a window of a long video takes over from the one before.

  In any case it sees the last latents before it as clean reference tokens.

  Attributes:
    overlap: Chunks, of a second each, that both have: they are kept as they are
      and follow the path that they came by, from the noise that they had.
    reuse_noise: Every window starts from the noise of the first one, turned
      round by where it begins, so that what noise decides stays (FreeNoise, Qiu
      et al., arXiv 2310.15169, without its shuffling).
    anchor: Later windows see the reference image, too; if there was none, the
      first frame. Without it only the past tells who is shown.
  """

  overlap: int = 0
  reuse_noise: bool = False
  anchor: bool = True


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to sample.

  Attributes:
    steps: Steps a window, on the linear-quadratic schedule, or on its own of a
      distilled checkpoint.
    guidance: Weights of the conditions; 1 asks for no guidance.
    seed: Of the noise.
    solver: What takes the steps, see `mirage_jax.solvers`.
    negative_text: Stands where guidance leaves the text out; '' is none.
    caching: What one step takes over from another.
    joints: What one window takes over from another.
  """

  steps: int = STEPS
  guidance: Guidance = dataclasses.field(default_factory=Guidance)
  seed: int = 0
  solver: str = 'euler'
  negative_text: str = ''
  caching: cache.Caching = cache.OFF
  joints: Joints = Joints()

  def __post_init__(self):
    if self.steps < 1:
      raise UserError(f'--steps={self.steps}: at least 1 is needed')
    if not 0 <= self.seed < SEEDS:
      raise UserError(f'--seed={self.seed}: must lie between 0 and {SEEDS - 1}')
    if self.joints.overlap < 0:
      raise UserError(f'--overlap={self.joints.overlap}: must not be negative')
    if self.solver not in solvers.NAMES:
      raise UserError(
        f'--solver={self.solver}: there is no such solver; give one of '
        f'{", ".join(solvers.NAMES)}'
      )
    if self.caching and solvers.get(self.solver).runs > 1:
      raise UserError(
        f'--cache goes with solvers that run the network once a step, and '
        f'{self.solver} does not; leave one of them out'
      )
    weights = [self.guidance.weight(name).value for name in ('text', 'joint')]
    if self.negative_text and weights == [1, 1]:
      raise UserError(
        '--negative_text: has no effect without guidance by text; add '
        '--text_cfg=4'
      )


PLAIN = Settings()
USUAL = Settings(STEPS, Guidance(audio=AUDIO_CFG))


def check_distilled(settings: Settings, steps: int) -> None:
  """Raises UserError unless these are the plain steps of a distilled model."""
  if settings == Settings(steps, seed=settings.seed, joints=settings.joints):
    return
  raise UserError(
    f'this checkpoint is distilled: it takes {steps} plain steps of its own, '
    f'guidance is folded in; give --steps={steps} --audio_cfg=1, and no other '
    'weight, solver or --cache'
  )
