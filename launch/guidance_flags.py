"""Guidance as flags and fields of a form give it; mistakes by their names."""

from launch.errors import UserError
from mirage_jax import schedules
from mirage_jax.guidance import LIMITS, NEUTRAL, Guidance, Weight

# How flags call the numbers of a Guidance.
FLAGS = {name: f'{name}_cfg' for name in NEUTRAL}
FLAGS |= {'rescale': 'guidance_rescale'}


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
