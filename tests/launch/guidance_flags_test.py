"""What flags may say of sampling, and what is said if they may not."""

import numpy as np
import pytest

from launch import bundle, generate, settings
from launch.errors import UserError
from launch.guidance_flags import make_caching, make_guidance
from mirage_jax import cache, schedules
from mirage_jax.guidance import Guidance, Weight
from tests import tiny

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


def test_caching_is_read_and_what_is_wrong_is_named():
  assert make_caching('guidance:3,attention:2') == cache.Caching(3, 2)
  for text, said in (
    ('all', "--cache=all: 'all' is no caching; give none, fast, or"),
    ('attention:0', '--cache=attention:0: attention of caching must be at'),
  ):
    with pytest.raises(UserError, match=said):
      make_caching(text)


def test_evaluate_and_demo_sample_as_before_unless_told(binary):
  plain = settings.Settings(settings.STEPS, Guidance(audio=3.0))
  with binary('demo').loaded() as demo:
    assert demo._SAMPLING.settings(0) == plain
    assert demo._SAMPLING.changed() == {}
    assert demo._SAMPLING.quantised == 'none'
  with binary('evaluate').loaded() as evaluate:
    assert evaluate._SAMPLING.settings(0) == plain
    assert evaluate.sampling() == {
      'num_steps': 8,
      'text': '',
      'audio_cfg': 3.0,
      'text_cfg': 1.0,
      'reference_cfg': 1.0,
    }
    # A student of 4 steps takes those, without guidance.
    student = evaluate.sampling(own_steps=4)
    assert student['num_steps'] == 4 and student['audio_cfg'] == 1.0


def test_evaluate_and_demo_have_the_flags_of_sample(binary):
  given = [
    '--audio_cfg=2',
    '--guidance_schedule=cosine',
    '--skip_cfg=1',
    '--skip_blocks=3',
    '--guidance_rescale=0.7',
    '--joint_cfg=2',
    '--reference_cfg=1.5',
    '--text_cfg=4',
    '--negative_text=dark',
    '--sequential_guidance',
    '--solver=dpmpp_2m',
    '--cache=guidance:4',
  ]
  with binary('sample').loaded('--seed=3', '--steps=9', *given) as sample:
    want = sample._SAMPLING.settings(3)
  with binary('demo').loaded('--steps=9', *given) as demo:
    assert demo._SAMPLING.settings(3) == want
    assert demo._SAMPLING.changed()['skip_blocks'] == '3'
  with binary('evaluate').loaded('--steps=9', *given) as evaluate:
    assert evaluate._SAMPLING.settings(3) == want
    assert evaluate.sampling()['solver'] == 'dpmpp_2m'


@pytest.mark.full
def test_a_cached_video_is_another_and_nearer_than_another_seed(generator):
  def make(seed, caching):
    settings = generate.Settings(16, Guidance(audio=3.0), seed, caching=caching)
    made = generator(tiny.speech(0.5), tiny.picture(), '', settings)
    return made.astype(int)

  plain = make(0, cache.OFF)
  cached = np.abs(make(0, cache.Caching(2, 2)) - plain).mean()
  assert 0 < cached < 0.5 * np.abs(make(1, cache.OFF) - plain).mean()


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:'VariableState' was:DeprecationWarning")
def test_a_quantised_video_is_another_and_near(generator, tiny_file):
  pytest.importorskip('qwix', reason='needs the quantise extra')
  settings = generate.Settings(2, Guidance(audio=3.0))
  args = tiny.speech(0.5), tiny.picture(), '', settings
  loaded = bundle.load(tiny_file)
  made = generate.Generator(loaded, quantised='int8_weights')(*args)
  off = np.abs(made.astype(int) - generator(*args)).mean()
  assert 0 < off < 10
  with pytest.raises(UserError, match='--quantise=int3: there is no quantisat'):
    generate.Generator(loaded, quantised='int3')


def test_caching_and_heun_do_not_go_together():
  with pytest.raises(UserError, match='heun does not; leave one of them out'):
    generate.Settings(solver='heun', caching=cache.FAST)


def test_a_distilled_checkpoint_has_its_own_steps_unless_told(binary):
  with binary('demo').loaded('--quantise=int8') as demo:
    assert demo._SAMPLING.settings(5, 4) == settings.Settings(4, seed=5)
  with binary('demo').loaded('--audio_cfg=2') as demo:
    want = settings.Settings(guidance=Guidance(audio=2.0), seed=5)
    assert demo._SAMPLING.settings(5, 4) == want
