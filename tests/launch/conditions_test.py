"""Encoders at sampling: what they are asked, when they are loaded, what lacks."""

import dataclasses
import gc
import json
import weakref

import numpy as np
import pytest

from launch import (
  bundle as bundle_lib,
  conditions,
  encoder_sources,
  encoders,
  generate,
)
from launch.errors import UserError
from mirage_jax.encoders import t5, wav2vec2
from mirage_jax.guidance import Guidance
from tests import tiny

FRAME = 640
SPEECH = wav2vec2.Wav2Vec2Config(3, 2, 1, 4, position_groups=1)
TEXT = t5.T5Config(16, 1, 1, 4)


class Ear:
  """Tokens of the frame's first sample, the call's number and its length."""

  dim = 3

  def __init__(self):
    self.calls = []

  def __call__(self, wave, num_frames):
    self.calls.append((wave[:1].tolist(), len(wave), num_frames))
    first = np.zeros(num_frames)
    heard = wave[::FRAME][:num_frames]
    first[: len(heard)] = heard
    call = np.full(num_frames, len(self.calls))
    return np.stack([first, call, np.arange(num_frames)], axis=1)


class Reader:
  """A token for each letter; knows who is alive."""

  alive, loaded, asked = weakref.WeakSet(), 0, []

  def __init__(self, source):
    del source
    Reader.alive.add(self)
    Reader.loaded += 1

  def __call__(self, text):
    Reader.asked.append(text)
    ids = np.array([ord(x) for x in text], np.float16)
    return np.tile(ids[:, None], (1, 16))


def converted(folder, kind, cfg):
  """What `launch.convert` leaves beside the weights."""
  folder.mkdir(parents=True)
  config = json.dumps({kind: dataclasses.asdict(cfg)})
  (folder / 'config.json').write_text(config)
  (folder / 'manifest.json').write_text('{"tensors": {}}')
  return folder


@pytest.fixture
def made(tmp_path):
  """The bundle of a model that hears and reads through encoders."""
  speech = converted(tmp_path / 'there/speech', 'wav2vec2', SPEECH)
  text = converted(tmp_path / 'there/text', 't5', TEXT)
  tokens = tmp_path / 'there/spiece.model'
  tokens.write_text('pieces')
  sources = encoder_sources.Sources(
    encoders.speech_source(speech, ['last'], 4.0),
    encoders.text_source(text, tokens, 6),
  )
  model = tiny.DIT | {
    'text_vocab': 0,
    'audio': tiny.DIT['audio'] | {'in_dim': 3},
  }
  about = {'dit': model, 'encoders': dataclasses.asdict(sources)}
  plain = tiny.bundle()
  return dataclasses.replace(plain, config=plain.config | about)


@pytest.fixture
def ear(monkeypatch):
  one = Ear()
  monkeypatch.setattr(encoders, 'load_speech', lambda source: one)
  return one


@pytest.fixture
def reader(monkeypatch):
  monkeypatch.setattr(encoders, 'TextEncoder', Reader)
  monkeypatch.setattr(
    conditions.tokenizer, 'load', lambda path: lambda text: [*map(ord, text), 1]
  )
  Reader.loaded, Reader.asked = 0, []
  return Reader


def make(bundle, name='c.safetensors'):
  return generate.Generator(bundle, name)._conditions


def numbered(frames, rest=0):
  """A sound whose samples tell their frame, from 1 on."""
  return (1 + np.arange(frames * FRAME + rest) // FRAME).astype(np.float32)


def test_a_sound_is_encoded_as_a_clip_is_whole_and_alone(made, ear):
  tokens = make(made).sound(numbered(25), 25)
  assert ear.calls == [([1.0], 25 * FRAME, 25)]
  assert tokens[:, 0].tolist() == list(range(1, 26))


def test_what_comes_after_the_end_changes_nothing_before_it(made, ear):
  tokens = make(made).sound(numbered(29, rest=5), 50)
  assert ear.calls == [
    ([1.0], 29 * FRAME + 5, 30),
    ([1.0], 29 * FRAME + 5, 50),
  ]
  assert tokens[:, 0].tolist() == [*range(1, 31), *[0] * 20]
  assert tokens[:, 1].tolist() == [1] * 30 + [2] * 20


@pytest.mark.parametrize('frames', [101, 175, 176, 640])
def test_a_long_sound_is_encoded_in_stretches_of_the_longest_clip(
  made, ear, frames
):
  """Of 100 frames here; each token has 12 of context, unless at an end."""
  tokens = make(made).sound(numbered(frames), frames)
  assert tokens[:, 0].tolist() == list(range(1, frames + 1))
  assert {(size, n) for _, size, n in ear.calls} == {(100 * FRAME, 100)}
  inside = tokens[:, 2]
  assert inside[12:].min() >= 12 and inside[: frames - 12].max() < 88
  assert len(ear.calls) <= frames / 75 + 1


def test_a_text_encoder_is_loaded_for_new_texts_and_let_go(made, ear, reader):
  made_of = make(made)
  made_of.learn(['dark', 'abc', ''])
  words, mask = made_of.text('abc')
  assert words.shape == (8, 16) and words.dtype == np.float32
  assert words[:, 0].tolist() == [97, 98, 99, 0, 0, 0, 0, 0]
  assert mask.tolist() == [True] * 3 + [False] * 5
  nothing, mask = made_of.text('')
  assert nothing.shape == (8, 16) and not nothing.any() and not mask.any()
  assert reader.loaded == 1 and sorted(reader.asked) == ['abc', 'dark']
  gc.collect()
  assert not list(reader.alive)
  made_of.text('new')
  assert reader.loaded == 2


def test_the_network_gets_features_under_every_branch(
  made, ear, reader, monkeypatch
):
  seen = []

  def draw(model, params, cond, noise, *_):
    seen.append(cond)
    return np.zeros(noise.shape[1:], np.float32)

  monkeypatch.setattr(generate, 'draw', draw)
  generator = generate.Generator(made)
  settings = generate.Settings(2, Guidance(text=4.0), negative_text='dark')
  list(generator.windows(numbered(30), tiny.picture(), 'abc', settings))
  assert [c['audio'].shape for c in seen] == [(1, 25, 3)] * 2
  heard = np.concatenate([c['audio'][0, :, 0] for c in seen])
  assert heard.tolist() == [*range(1, 31), *[0] * 20]
  for cond in seen:
    assert cond['text'][0, :4, 0].tolist() == [97, 98, 99, 0]
    assert cond['negative_text'][0, :5, 0].tolist() == [100, 97, 114, 107, 0]
    assert cond['negative_text_mask'].sum() == 4
  assert reader.loaded == 1
  # An empty one loads nothing, and stands for none.
  list(generator.windows(numbered(5), tiny.picture(), '', generate.PLAIN))
  assert reader.loaded == 1 and not seen[-1]['text_mask'].any()


def test_text_is_counted_in_tokens(made, ear, reader):
  generator = generate.Generator(made, 'c.safetensors')
  assert generator.text_length == 18
  with pytest.raises(UserError, match='--text: has 7 tokens, .* reads 6;'):
    generator.windows(numbered(5), tiny.picture(), 'abcdef')
  assert not reader.loaded


def test_what_lacks_is_told_with_the_flag_that_brings_it(
  made, ear, reader, tmp_path
):
  there = tmp_path / 'there'
  there.rename(tmp_path / 'elsewhere')
  with pytest.raises(UserError) as error:
    make(made)
  assert str(error.value) == (
    'c.safetensors: was trained on features of wav2vec2 (3 numbers), and '
    f'{there}/speech is not there; give --speech_encoder=a folder that '
    '`launch.convert --from wav2vec2` writes'
  )
  places = encoder_sources.Places(str(tmp_path / 'elsewhere/speech'))
  hears = generate.Generator(bundle_lib.relocated(made, places), 'c')
  hears.windows(numbered(5), tiny.picture(), '')  # Needs no text encoder.
  with pytest.raises(UserError, match='give --text_encoder=a folder that `lau'):
    hears.windows(numbered(5), tiny.picture(), 'abc')
  # Beside the checkpoint all is found by name.
  beside = make(made, str(tmp_path / 'elsewhere/c.safetensors'))
  beside.check_text('--text', 'abc')
  (tmp_path / 'elsewhere/spiece.model').unlink()
  with pytest.raises(UserError, match='give --tokenizer=spiece.model or'):
    beside.check_text('--text', 'abc')


def test_another_encoder_is_refused(made, reader, tmp_path):
  other = dataclasses.replace(SPEECH, num_heads=3)
  place = str(converted(tmp_path / 'other', 'wav2vec2', other))
  moved = bundle_lib.relocated(made, encoder_sources.Places(place))
  with pytest.raises(UserError, match='--speech_encoder=.*is another one than'):
    make(moved)
  (tmp_path / 'there/spiece.model').write_text('others')
  with pytest.raises(UserError, match='--tokenizer=.*is another one than that'):
    make(made).check_text('--text', 'abc')
  places = encoder_sources.Places(tokenizer='x')
  with pytest.raises(UserError, match='--tokenizer: this checkpoint was not'):
    bundle_lib.relocated(tiny.bundle(), places)
  assert (
    bundle_lib.relocated(tiny.bundle(), encoder_sources.AS_RECORDED).config
    == tiny.bundle().config
  )


def test_a_bundle_gets_what_its_run_was_trained_on(made, tmp_path):
  vae = tiny.bundle(dit=False)
  data = tiny.WINDOW | {'train': str(tmp_path / 'data')}
  config = {'model': made.config['dit'], 'data': data, 'latent_size': [2, 2]}
  with pytest.raises(UserError, match='data/encoders.json: is not there.*--fe'):
    bundle_lib.join(vae, config, {})
  folder = tmp_path / 'features'
  folder.mkdir()
  about = json.dumps(made.config['encoders'])
  (folder / 'encoders.json').write_text(about)
  joined = bundle_lib.join(vae, config, {}, folder)
  bundle_lib.save(tmp_path / 'b.safetensors', joined)
  back = bundle_lib.load(tmp_path / 'b.safetensors')
  assert encoder_sources.of_bundle(back.config) == encoder_sources.of_bundle(
    made.config
  )
  # Of a model that reads bytes, only what it hears.
  plain = config | {'model': config['model'] | {'text_vocab': 256}}
  joined = bundle_lib.join(vae, plain, {}, folder)
  assert joined.config['encoders']['text'] is None
  assert make(dataclasses.replace(made, config=joined.config)).text_length == 8
  for wrong, said in (
    (tiny.DIT, 'tells of 3 numbers for audio, the transformer takes 320'),
    (config['model'] | {'text': None}, ''),
    (config['model'] | {'audio': None}, ''),
  ):
    if said:
      with pytest.raises(UserError, match=said):
        bundle_lib.join(vae, config | {'model': wrong}, {}, folder)
    else:
      found = encoder_sources.of_run(config | {'model': wrong}, folder)
      assert (found.text is None) == (wrong['text'] is None)
      assert (found.speech is None) == (wrong['audio'] is None)
  (folder / 'encoders.json').write_text(about[:-9])
  with pytest.raises(UserError, match='run launch.features again'):
    bundle_lib.join(vae, config, {}, folder)
