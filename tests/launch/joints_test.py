"""What windows of a long video take over from one another."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pytest

from launch import bundle as bundle_lib, generate
from launch.errors import UserError
from launch.settings import Joints
from tests import tiny

CHUNK = 5  # Latents.


class Window(NamedTuple):
  cond: Any
  noise: np.ndarray
  known: np.ndarray
  made: np.ndarray


@pytest.fixture
def windows(tiny_file, monkeypatch):
  """windows(seconds, image, overlap=1) -> what the network was given, of two
  chunks each, or as many as `chunks`; its work is taken over by a sum that any change moves."""
  loaded = bundle_lib.load(tiny_file)
  found = []

  def draw(model, params, cond, noise, known, *_):
    cond = {name: np.asarray(value) for name, value in cond.items()}
    made = np.asarray(noise)[0] + cond['audio'].mean() + len(found)
    if len(known):
      made[: len(known)] = known
    found.append(Window(cond, np.asarray(noise)[0], np.asarray(known), made))
    return made

  def run(seconds, image, chunks=2, **joints):
    found.clear()
    data = loaded.config['data'] | {'num_chunks': chunks}
    config = loaded.config | {'data': data}
    generator = generate.Generator(dataclasses.replace(loaded, config=config))
    light = lambda z: np.zeros((len(z) * 5, 16, 16, 3), np.uint8)
    monkeypatch.setattr(generator, 'decode', light)
    monkeypatch.setattr(generator, '_encode_image', lambda image: 7.0)
    settings = generate.Settings(2, joints=Joints(**joints))
    wave = tiny.speech(seconds)
    frames = generator(wave, image, '', settings)
    assert len(frames) == seconds * 25
    assert generator.num_windows(len(wave), settings.joints.overlap) == len(
      found
    )
    return list(found)

  monkeypatch.setattr(generate, 'draw', draw)
  return run


@pytest.mark.parametrize('reuse_noise', [False, True])
def test_shared_chunks_are_kept_with_their_noise(windows, reuse_noise):
  made = windows(4, tiny.picture(), overlap=1, reuse_noise=reuse_noise)
  assert len(made) == 3
  for before, after in zip(made, made[1:], strict=False):
    np.testing.assert_array_equal(after.known, before.made[CHUNK:])
    np.testing.assert_array_equal(after.noise[:CHUNK], before.noise[CHUNK:])
    # The past lies before what is shared.
    past = after.cond['reference'][0, 1:]
    np.testing.assert_array_equal(past, before.made[CHUNK - 2 : CHUNK])
  new = [window.noise[CHUNK:] for window in made]
  assert (new[0] == new[2]).all() == reuse_noise


def test_without_overlap_windows_share_their_noise_if_so_wanted(windows):
  for reuse in (False, True):
    first, second = windows(4, tiny.picture(), reuse_noise=reuse)
    assert not len(second.known)
    assert (first.noise == second.noise).all() == reuse
  # Five chunks: the second window begins with the third, as the first ended.
  first, second = windows(5, tiny.picture(), 3, reuse_noise=True)
  np.testing.assert_array_equal(second.known, first.made[2 * CHUNK :])
  turned = np.concatenate([first.noise[2 * CHUNK :], first.noise[: 2 * CHUNK]])
  np.testing.assert_array_equal(second.noise, turned)


@pytest.mark.parametrize('image', [None, tiny.picture()], ids=['none', 'image'])
@pytest.mark.parametrize('anchor', [False, True])
def test_the_anchor_may_be_left_to_the_past(windows, image, anchor):
  first, second = windows(4, image, anchor=anchor)
  assert first.cond['reference_mask'].tolist() == [
    [image is not None, False, False]
  ]
  assert second.cond['reference_mask'].tolist() == [[anchor, True, True]]
  assert (second.cond['reference'][0, 0] == (7 if anchor else 0)).all()


@pytest.mark.parametrize(
  ('chunks', 'size', 'overlap', 'starts'),
  [
    (1, 2, 1, [0]),
    (4, 2, 1, [0, 1, 2]),
    (7, 3, 1, [0, 2, 4]),
    (8, 3, 1, [0, 2, 4, 5]),
  ],
)
def test_windows_that_overlap_cover_the_sound(chunks, size, overlap, starts):
  assert generate.window_starts(chunks, size, overlap) == starts


def test_windows_cannot_share_all(windows):
  with pytest.raises(UserError, match=r'--overlap=2: .* 2 s, of which it can'):
    windows(4, None, overlap=2)
  with pytest.raises(UserError, match='--overlap=-1: must not be negative'):
    windows(4, None, overlap=-1)
