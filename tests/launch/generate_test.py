"""Frames for any length of sound, window after window, to the byte."""

import dataclasses

import jax
import numpy as np
import pytest

from launch import bundle as bundle_lib, draw, generate
from launch.errors import UserError
from launch.guidance_flags import make_guidance
from mirage_jax.guidance import Guidance
from tests import tiny

FAST = generate.Settings(steps=2)


@pytest.fixture(scope='module')
def image():
  return tiny.picture()


@pytest.fixture(scope='module')
def three(generator, image):
  """Three windows: 2.2 s of sound."""
  return generator(tiny.speech(2.2), image, '', FAST)


@pytest.mark.parametrize(
  ('samples', 'frames'),
  [(1, 1), (640, 1), (641, 2), (16000, 25), (16001, 26), (23456, 37)],
)
def test_the_video_ends_with_the_frame_in_which_the_sound_does(
  generator, image, samples, frames
):
  made = generator(tiny.speech(2)[:samples], image, '', FAST)
  assert made.shape == (frames, 16, 16, 3) and made.dtype == np.uint8
  assert generate.num_frames(samples) == frames


def test_the_same_arguments_give_the_same_bytes(generator, three, image):
  np.testing.assert_array_equal(
    generator(tiny.speech(2.2), image, '', FAST), three
  )
  other = generator(
    tiny.speech(2.2), image, '', dataclasses.replace(FAST, seed=1)
  )
  for window in (slice(25), slice(25, 50), slice(50, 55)):
    assert (other[window] != three[window]).any()


def test_a_window_does_not_depend_on_what_comes_after(generator, three, image):
  """But for the last token, whose spectrum reaches some ms further."""
  short = generator(tiny.speech(2.2)[:16000], image, '', FAST)
  np.testing.assert_allclose(short, three[:25], atol=2)


def test_a_window_sees_the_last_latents_before_it(
  generator, three, image, monkeypatch
):
  wave, changed = tiny.speech(2.2), tiny.speech(2.2)
  changed[2000:9000] = 0  # In the first window alone.
  other = generator(changed, image, '', FAST)
  for window in (slice(25), slice(25, 50), slice(50, 55)):
    assert (other[window] != three[window]).any()
  # And by no other way: without them, windows stand alone.
  make = generator._cond

  def without(audio, text, anchor, past):
    return make(audio, text, anchor, None)

  monkeypatch.setattr(generator, '_cond', without)
  first, second = (generator(w, image, '', FAST) for w in (wave, changed))
  assert (first[:25] != second[:25]).any()
  np.testing.assert_array_equal(first[25:], second[25:])


def test_the_past_is_the_two_latents_before_the_window(
  generator, image, monkeypatch
):
  conds, latents = [], []
  sample = generator._sample

  def spy(key, cond, *rest):
    conds.append(cond)
    latents.append(sample(key, cond, *rest))
    return latents[-1]

  monkeypatch.setattr(generator, '_sample', spy)
  generator(tiny.speech(1.5), image, '', FAST)
  first, second = conds
  assert first['reference_mask'].tolist() == [[True, False, False]]
  assert second['reference_mask'].tolist() == [[True, True, True]]
  assert second['reference_time'].tolist() == [[-5, -2, -1]]
  np.testing.assert_array_equal(second['reference'][0, 1:], latents[0][-2:])
  np.testing.assert_array_equal(
    first['reference'][0, 0], second['reference'][0, 0]
  )
  assert (first['audio'] != second['audio']).any()


def test_every_condition_changes_the_picture(generator, three, image):
  wave = tiny.speech(0.5)
  plain = generator(wave, image, '', FAST)
  assert (generator(-0.1 * wave**2, image, '', FAST) != plain).any()
  assert (generator(wave, tiny.picture(1), '', FAST) != plain).any()
  assert (generator(wave, image, 'red', FAST) != plain).any()


@pytest.mark.full
def test_every_setting_changes_the_picture(generator, image):
  wave = tiny.speech(0.5)
  steps = dataclasses.replace(FAST, steps=4)  # With less, all are Euler's.
  text = dataclasses.replace(FAST, guidance=Guidance(text=6.0))
  ways = [
    steps,
    dataclasses.replace(steps, solver='dpmpp_2m'),
    dataclasses.replace(FAST, guidance=make_guidance('cosine', audio=4.0)),
    dataclasses.replace(FAST, guidance=Guidance(skip=2.0, skip_blocks=(0,))),
    dataclasses.replace(text, negative_text='blue'),
    dataclasses.replace(text, negative_text='green'),
  ]
  made = [generator(wave, image, 'red', way).tobytes() for way in ways]
  assert len(set(made)) == len(ways)


def test_without_an_image_who_appeared_stays(generator, monkeypatch):
  seen = []
  encode = generator._encode_image
  monkeypatch.setattr(
    generator,
    '_encode_image',
    lambda image: (seen.append(image), encode(image))[1],
  )
  made = generator(tiny.speech(2.2), None, '', FAST)
  assert len(made) == 55
  assert len(seen) == 1
  np.testing.assert_array_equal(seen[0], made[0])


def test_windows_come_one_by_one_and_every_step_is_counted(generator, image):
  steps = []
  windows = generator.windows(
    tiny.speech(2.2), image, '', FAST, lambda: steps.append(0)
  )
  assert [(len(frames), len(steps)) for frames in windows] == [
    (25, 2),
    (25, 4),
    (5, 6),
  ]
  assert generator.num_windows(round(2.2 * 16000)) == 3


@pytest.mark.parametrize(
  ('chunks', 'size', 'starts'),
  [(1, 2, [0]), (2, 2, [0]), (3, 2, [0, 1]), (4, 2, [0, 2]), (7, 3, [0, 3, 4])],
)
def test_windows_cover_the_sound_and_end_with_it(chunks, size, starts):
  assert generate.window_starts(chunks, size) == starts
  assert starts[-1] + size == max(chunks, size)


def test_the_last_window_keeps_what_it_shares_with_the_one_before(
  tiny_file, image
):
  loaded = bundle_lib.load(tiny_file)
  data = loaded.config['data'] | {'num_chunks': 2}
  wide = dataclasses.replace(loaded, config=loaded.config | {'data': data})
  generator, windows = generate.Generator(wide), []
  sample = generator._sample

  def record(*args):
    windows.append(sample(*args))
    return windows[-1]

  generator._sample = record
  made = generator(tiny.speech(2.2), image, '', FAST)
  assert len(made) == 55 and len(windows) == 2
  np.testing.assert_allclose(windows[1][:5], windows[0][5:], atol=1e-6)
  assert np.abs(windows[1][5:] - windows[0][5:]).max() > 1e-3
  np.testing.assert_array_equal(made[50:], generator.decode(windows[1][5:])[:5])


def test_of_the_latents_so_far_only_the_last_are_kept():
  video = np.arange(40.0)
  recent = generate.Recent(12)
  assert recent.split(0) == (None, ())
  for start, stop in ((0, 10), (10, 20), (20, 30), (30, 33)):
    recent.add(video[start:stop])
    for at in range(max(stop - 10, 0), stop + 1):
      past, known = recent.split(at)
      np.testing.assert_array_equal(known, video[at:stop])
      seen = min(at, 2)
      np.testing.assert_array_equal(past[-2:], video[at - seen : at])
      assert len(past) + len(known) <= 12


def test_what_cannot_be_made_is_said_before_the_work(
  generator, image, tiny_file
):
  wave = tiny.speech(0.1)
  for arguments, said in (
    ((wave[:0], image), 'no samples'),
    ((wave, tiny.picture(size=24)), 'the image is 24 x 24, the model makes 16'),
    ((wave, image[:8]), 'the image is 16 x 8'),
    ((wave, image, 'Grün Grün'), '--text: has 11 bytes, this checkpoint read'),
  ):
    with pytest.raises(UserError, match=said):
      generator.windows(*arguments)  # Not a single next().
  with pytest.raises(UserError, match='--steps=0: at least 1'):
    generate.Settings(steps=0)
  text = generate.Settings(guidance=Guidance(text=2.0), negative_text='a')
  mute = generate.Generator(
    changed(bundle_lib.load(tiny_file), text=None, text_vocab=0)
  )
  with pytest.raises(UserError, match='--negative_text: this checkpoint takes'):
    mute.windows(wave, image, '', text)


def changed(made, **values):
  config = made.config | {'dit': made.config['dit'] | values}
  return dataclasses.replace(made, config=config)


def test_bundles_that_cannot_speak_are_refused(tiny_file):
  made = bundle_lib.load(tiny_file)
  for wrong, said in (
    (dataclasses.replace(made, dit=None), 'm.st: holds a VAE only'),
    (changed(made, audio=None), 'm.st: does not take 320 log-mel features'),
    (changed(made, dept=3), "m.st: its config.*'dept'; did you mean 'depth'"),
  ):
    with pytest.raises(UserError, match=said):
      generate.Generator(wrong, 'm.st')
  mute = generate.Generator(changed(made, text=None, text_vocab=0))
  with pytest.raises(UserError, match='takes no text; leave it out'):
    mute.windows(tiny.speech(0.1), None, 'red')


def test_a_distilled_model_takes_its_own_plain_steps(monkeypatch):
  made = tiny.bundle()
  levels = [1.0, 0.7, 0.2, 0.0]
  made = dataclasses.replace(made, config=made.config | {'sigmas': levels})
  student, seen = generate.Generator(made), []
  assert (student.own_steps, student.usual) == (3, generate.Settings(3))

  def spy(*args):
    seen.append(args)
    return np.zeros(args[3].shape[1:], np.float32)

  monkeypatch.setattr(generate, 'draw', spy)
  student(tiny.speech(0.5), tiny.picture(), '', student.usual)
  assert seen[0][5:7] == (student.usual, levels)
  for wrong in (
    generate.Settings(4),
    generate.Settings(3, Guidance(audio=3.0)),
    generate.Settings(3, solver='heun'),
  ):
    with pytest.raises(
      UserError, match='takes 3 plain steps of its own.*=3 --a'
    ):
      student(tiny.speech(0.5), tiny.picture(), '', wrong)


@pytest.mark.full
@pytest.mark.parametrize('schedule', ['constant', 'cosine'])
def test_other_weights_and_steps_are_no_other_program(
  generator, image, schedule
):
  def make(steps, weight):
    guidance = make_guidance(schedule, audio=weight)
    settings = dataclasses.replace(FAST, steps=steps, guidance=guidance)
    return generator(tiny.speech(0.5), image, '', settings)

  first, count = make(2, 3.0), draw._step._cache_size()
  assert (make(2, 8.5) != first).any()
  assert (make(5, 3.0) != first).any()
  assert draw._step._cache_size() == count


def test_where_branches_do_not_fit_together_they_run_one_by_one(
  generator, image, monkeypatch, caplog
):
  """As if a device had no room for a batch of two."""
  tried = []

  def small(*arguments):
    settings = arguments[5]
    tried.append(settings.guidance.sequential)
    if settings.guidance.gains and not settings.guidance.sequential:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')
    return draw.draw(*arguments)

  wave = tiny.speech(2.2)
  guided = dataclasses.replace(FAST, guidance=Guidance(audio=2.0))
  want = generator(wave, image, '', guided)
  monkeypatch.setattr(generate, 'draw', small)
  monkeypatch.setattr(generator, '_one_by_one', False)
  made = generator(wave, image, '', guided)
  np.testing.assert_allclose(made.astype(int), want, atol=1)
  assert tried == [False, True, True, True]  # It is found out once.
  assert caplog.text.count('--sequential_guidance') == 1


@pytest.mark.parametrize(
  ('said', 'error'),
  [('RESOURCE_EXHAUSTED', UserError), ('INTERNAL', jax.errors.JaxRuntimeError)],
)
def test_a_window_that_does_not_fit_at_all(
  generator, image, monkeypatch, said, error
):
  def fail(*_):
    raise jax.errors.JaxRuntimeError(f'{said}: something')

  monkeypatch.setattr(generate, 'draw', fail)
  monkeypatch.setattr(generator, '_one_by_one', False)
  for guidance in (Guidance(), Guidance(audio=2.0)):
    settings = dataclasses.replace(FAST, guidance=guidance)
    with pytest.raises(error, match='does not fit|INTERNAL'):
      generator(tiny.speech(1), image, '', settings)
