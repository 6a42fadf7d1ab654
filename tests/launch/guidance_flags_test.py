"""What flags may say of guidance, and what is said if they may not."""

import pytest

from launch.errors import UserError
from launch.guidance_flags import make_guidance
from mirage_jax import schedules
from mirage_jax.guidance import Guidance, Weight

COSINE, WINDOW = schedules.Cosine(), schedules.Window(0.9, 0.2)


@pytest.mark.parametrize(
  ('given', 'want'),
  [
    ({}, Guidance()),
    (dict(audio=2.0, rescale=0.7), Guidance(audio=2.0, rescale=0.7)),
    (
      dict(skip=1.0, skip_blocks='3,4', sequential=True),
      Guidance(skip=1.0, skip_blocks=(3, 4), sequential=True),
    ),
    (
      dict(schedule='cosine', audio=2.0, text=1.0, skip=1.0, skip_blocks='0'),
      Guidance(
        audio=Weight(2.0, COSINE), skip=Weight(1.0, COSINE), skip_blocks=(0,)
      ),
    ),
    (
      dict(schedule='text=window:0.9:0.2', audio=2.0, text=3.0),
      Guidance(audio=2.0, text=Weight(3.0, WINDOW)),
    ),
    (
      dict(schedule='cosine,audio=constant', audio=2.0, joint=3.0),
      Guidance(audio=2.0, joint=Weight(3.0, COSINE)),
    ),
  ],
)
def test_numbers_and_schedules_come_together(given, want):
  assert make_guidance(**given) == want


@pytest.mark.parametrize(
  ('given', 'said'),
  [
    (dict(audio=-1.0), '--audio_cfg=-1: must lie between 0 and 30'),
    (dict(audio=float('nan')), '--audio_cfg=nan: must lie between 0 and 30'),
    (dict(text=31.0), '--text_cfg=31: must lie between 0 and 30'),
    (dict(reference=1e9), '--reference_cfg=1e.09: must lie between 0 and 30'),
    (dict(joint=float('inf')), '--joint_cfg=inf: must lie between 0 and 30'),
    (dict(skip=11.0, skip_blocks='0'), '--skip_cfg=11: must lie between 0 and'),
    (dict(rescale=2.0), '--guidance_rescale=2: must lie between 0 and 1'),
    (dict(skip=1.0), '--skip_cfg and --skip_blocks go together'),
    (dict(skip_blocks='0'), '--skip_cfg and --skip_blocks go together'),
    (
      dict(skip=1.0, skip_blocks='a'),
      '--skip_blocks=a: give numbers of blocks',
    ),
    (
      dict(schedule='linear'),
      "--guidance_schedule=linear: 'linear' is no schedule; give constant",
    ),
    (
      dict(schedule='sound=cosine'),
      "schedule=sound=cosine: there is no weight 'sound'; there are audio, tex",
    ),
    (
      dict(schedule='cosine,text=window:0.2:0.8'),
      '--guidance_schedule=cosine,text=window:0.2:0.8: a window lies between',
    ),
    (dict(schedule=''), "--guidance_schedule=: '' is no schedule"),
  ],
)
def test_what_is_wrong_is_named(given, said):
  with pytest.raises(UserError, match=said):
    make_guidance(**given)
