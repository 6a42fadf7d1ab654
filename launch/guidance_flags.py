"""How to sample, as flags and forms give it; mistakes by their names."""

from typing import Any

from absl import flags

from launch import settings as settings_lib
from launch.errors import UserError
from mirage_jax import cache, schedules
from mirage_jax.guidance import LIMITS, NEUTRAL, Guidance, Weight

# How flags call the numbers of a Guidance.
FLAGS = {name: f'{name}_cfg' for name in NEUTRAL}
FLAGS |= {'rescale': 'guidance_rescale'}
CACHE_HELP = (
  'what one step takes over from another: none; fast; or, as '
  'guidance:6,blocks:3, how many steps what guidance adds, and what the blocks '
  'before the last changed, are used for; attention:2 for what attention gave, '
  'last:8 for none of it in the last 8 steps. Pays off with many, as --steps=64'
)

QUANTISE_HELP = (
  "8-bit matmuls, by the extra 'quantise': none; int8_weights or fp8_weights, "
  'to save memory; int8 or fp8, faster where the hardware has them'
)


def make_caching(text: str) -> cache.Caching:
  """Caching as --cache gives it; UserError if it cannot be read."""
  try:
    return cache.parse(text)
  except ValueError as error:
    raise UserError(f'--cache={text}: {error}') from error


def make_guidance(
  schedule: str = 'constant',
  skip_blocks: str = '',
  sequential: bool = False,
  **numbers: float,
) -> Guidance:
  """Guidance as flags give it.

  Args:
    schedule: Schedules, see `read_schedules`.
    skip_blocks: Numbers of blocks with commas between; '' is none.
    sequential: See `Guidance`, as for all the other numbers.
    **numbers: By their names in `Guidance`.

  Raises:
    UserError: It names the flag that is out of range or cannot be read.
  """
  for name, value in numbers.items():
    low, high = LIMITS[name]
    if not low <= value <= high:
      raise UserError(
        f'--{FLAGS[name]}={value:g}: must lie between {low:g} and {high:g}'
      )
  try:
    blocks = tuple(int(part) for part in skip_blocks.split(',') if part)
  except ValueError as error:
    raise UserError(
      f'--skip_blocks={skip_blocks}: give numbers of blocks, as 3 or 3,4'
    ) from error
  if bool(blocks) != bool(numbers.get('skip')):
    raise UserError(
      '--skip_cfg and --skip_blocks go together, as --skip_cfg=1 '
      '--skip_blocks=3'
    )
  for name, scheduled in read_schedules(schedule).items():
    value = numbers.get(name, NEUTRAL[name])
    if value != NEUTRAL[name] and scheduled != schedules.CONSTANT:
      numbers[name] = Weight(value, scheduled)
  return Guidance(skip_blocks=blocks, sequential=sequential, **numbers)


def read_schedules(text: str) -> dict[str, schedules.Schedule]:
  """The schedule of each weight.

  Args:
    text: One of `schedules.parse` for all, and any number of NAME=SCHEDULE for
      single ones, with commas between; the last one counts.

  Raises:
    UserError: A name or schedule does not exist.
  """
  found = {}
  for part in text.split(','):
    name, _, schedule = part.rpartition('=')
    names = (name,) if name else tuple(NEUTRAL)
    try:
      found |= dict.fromkeys(names, schedules.parse(schedule))
    except ValueError as error:
      raise UserError(f'--guidance_schedule={text}: {error}') from error
    if names[0] not in NEUTRAL:
      raise UserError(
        f'--guidance_schedule={text}: there is no weight {name!r}; there are '
        f'{", ".join(NEUTRAL)}'
      )
  return found


class SamplingFlags:
  """The flags of a binary that samples: guidance, solver, steps, caching.

  Making one defines them, as flags of the binary that does so.
  """

  def __init__(self):
    flags.disclaim_key_flags()
    self._steps = flags.DEFINE_integer(
      'steps', settings_lib.STEPS, 'steps for each window', 1
    )
    self._solver = flags.DEFINE_string(
      'solver',
      'euler',
      'what takes the steps: euler; heun, of second order, with two runs of the '
      'network a step; or dpmpp_2m, of second order with one',
    )
    self._numbers = {
      name: flags.DEFINE_float(flag, NEUTRAL.get(name, 0.0), _HELP[name])
      for name, flag in FLAGS.items()
    }
    flags.set_default(self._numbers['audio'], settings_lib.AUDIO_CFG)
    self._words = {
      name: flags.DEFINE_string(name, default, _HELP[name])
      for name, default in _WORDS.items()
    }
    self._sequential = flags.DEFINE_bool(
      'sequential_guidance',
      False,
      'run the network once for each weight instead of on one larger batch: '
      'less memory, the same video but for rounding. So it is done, too, where '
      'the batch does not fit',
    )
    self._joints = {
      'overlap': flags.DEFINE_integer(
        'overlap', 0, _HELP['overlap'], lower_bound=0
      ),
      'reuse_noise': flags.DEFINE_bool(
        'reuse_noise', False, _HELP['reuse_noise']
      ),
      'anchor': flags.DEFINE_bool('anchor', True, _HELP['anchor']),
    }

  def guidance(self) -> Guidance:
    """As the flags have it; UserError names one that is wrong."""
    return make_guidance(
      self._words['guidance_schedule'].value,
      self._words['skip_blocks'].value,
      self._sequential.value,
      **{name: flag.value for name, flag in self._numbers.items()},
    )

  def settings(self, seed: int, own_steps: int = 0) -> settings_lib.Settings:
    """How the flags want it sampled.

    Args:
      seed: Of the noise.
      own_steps: Those of a distilled checkpoint, which are the default then; 0
        for any other, see `generate.Generator`.

    Raises:
      UserError: It names the flag that is wrong.
    """
    joints = settings_lib.Joints(
      **{k: f.value for k, f in self._joints.items()}
    )
    if own_steps and not set(self.changed()) - {'quantise', *self._joints}:
      return settings_lib.Settings(own_steps, seed=seed, joints=joints)
    return settings_lib.Settings(
      self._steps.value,
      self.guidance(),
      seed,
      self._solver.value,
      self._words['negative_text'].value,
      make_caching(self._words['cache'].value),
      joints,
    )

  @property
  def quantised(self) -> str:
    """For `generate.Generator`."""
    return self._words['quantise'].value

  def changed(self) -> dict[str, Any]:
    """Names and values of the flags that differ from their defaults."""
    return {h.name: h.value for h in self._holders if h.value != h.default}

  @property
  def _holders(self):
    holders = [self._steps, self._solver, self._sequential]
    holders += [*self._numbers.values(), *self._words.values()]
    return [*holders, *self._joints.values()]


_WORDS = {
  'skip_blocks': '',
  'guidance_schedule': 'constant',
  'negative_text': '',
  'cache': 'none',
  'quantise': 'none',
}
_HELP = {
  'audio': 'weight of the sound, 0 to 30; 1 is as trained',
  'text': 'weight of the text',
  'reference': 'weight of the image',
  'joint': 'weight of all three at once',
  'skip': 'scale of skip guidance, 0 to 10: away from the network without '
  '--skip_blocks',
  'rescale': 'against too much contrast under strong guidance, 0 to 1; 0.7 is '
  'usual',
  'skip_blocks': 'blocks that it skips, as 3 or 3,4; the first is 0',
  'guidance_schedule': 'how the weights change: constant; cosine, from the '
  'whole weight at the first step to none after the last; window:HIGH:LOW, only '
  'between these noise levels (1 is noise, 0 the video), and at no cost outside. '
  'Or one for each by name, as audio=cosine,text=window:0.95:0.3 (audio, text, '
  'reference, joint, skip)',
  'negative_text': 'what is not to be seen; needs --text_cfg or --joint_cfg',
  'cache': CACHE_HELP,
  'quantise': QUANTISE_HELP,
  'overlap': 'for long videos: seconds that each window shares with the one '
  'before; they are kept as they are',
  'reuse_noise': 'for long videos: start every window from the noise of the '
  'first, so that what noise decides stays',
  'anchor': 'for long videos: show every window the image, or, without one, the '
  'first frame; with --noanchor the past alone tells who is shown',
}
