"""Shards with an encoder's features: the right numbers, trained on, sampled."""

import functools
import json

from flax import linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy
import sentencepiece
import soundfile

from launch import (
  encode,
  encoder_sources,
  encoders as encoders_lib,
  loop,
  media,
  shards,
  talk,
)
from mirage_jax import data, experiment
from mirage_jax.encoders import (
  names,
  t5,
  t5_names,
  wav2vec2,
  wav2vec2_names,
  whisper,
  whisper_names,
)
from tests import tiny
from tests.launch import toy_pieces

# Whole models are compiled: tens of seconds.
pytestmark = pytest.mark.full

SPEECH = wav2vec2.Wav2Vec2Config(
  8, 2, 2, 12, stable=True, conv_dim=4, position_kernel=4, position_groups=2
)
TEXT = t5.T5Config(16, 2, 2, 12, head_dim=4, vocab=40)
CAPTIONS = ('blue wall', 'a man in front of a red wall', '', 'blue wall')
LISTENER = whisper.WhisperConfig(8, 1, 2, max_features=50)
LENGTHS = (60, 50, 75, 52)
LENGTH = 12  # Tokens of a caption.


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """What `launch.prepare` leaves: clips, and latents of them, in two shards."""
  top = tmp_path_factory.mktemp('prepared')
  about = {'stage': 'clips', 'max_seconds': 10.0}
  clips = shards.ShardFolder(top / 'clips', about, 2)
  about = {'stage': 'latents'}
  about |= {'clips': encode.file_hash(top / 'clips/manifest.json')}
  latents = shards.ShardFolder(top / 'latents', about, 2)
  for index in range(2):
    made, coded = [], []
    for n in (2 * index, 2 * index + 1):
      record = tiny.clip_record(n, LENGTHS[n]) | {'caption': CAPTIONS[n]}
      made.append(shards.Outcome(record['id'], record))
      coded.append(shards.Outcome(record['id'], latent_record(record)))
    clips.write(index, made)
    latents.write(index, coded)
  clips.finish()
  latents.finish()
  return top


def latent_record(clip):
  count = len(clip['frames'])
  rng = np.random.default_rng(count)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float16)
  kept = np.arange(0, count, 6, dtype=np.int32)
  return {
    'id': clip['id'],
    'caption': clip['caption'],
    'num_frames': np.int32(count),
    'offsets': np.array([0], np.int32),
    'latents_0': draw(count // 25 * 5, 2, 2, 3),
    'reference': draw(len(kept), 2, 2, 3),
    'reference_frame': kept,
    'audio': draw(2, count, 320),
  }


@pytest.fixture(scope='module')
def encoders(tmp_path_factory):
  """Converted weights of both encoders, and the parameters in them."""
  from tests.launch.binary import Binary

  top, params = tmp_path_factory.mktemp('weights'), {}
  for kind, module, places, cfg in (
    ('wav2vec2', wav2vec2, wav2vec2_names, SPEECH),
    ('t5', t5, t5_names, TEXT),
  ):
    ours = nn.unbox(module.abstract_params(cfg))
    params[kind] = tiny.filled(ours)
    folder = top / f'{kind}_in'
    folder.mkdir()
    tensors = names.save(places.places(cfg), params[kind])
    safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
    (folder / 'config.json').write_text('{"num_attention_heads": 2}')
    code = Binary('convert')(
      f'--from={kind}', f'--input={folder}', f'--out={top / kind}'
    )
    assert code == 0
  return top, params


@pytest.fixture(scope='module')
def pieces(tmp_path_factory):
  return toy_pieces.train(tmp_path_factory.mktemp('tokens'), CAPTIONS[:2])


@pytest.fixture(scope='module')
def command(folders, encoders, pieces):
  from tests.launch.binary import Binary

  weights, _ = encoders
  run = Binary('features')
  values = dict(data=folders / 'latents', clips=folders / 'clips')
  values |= dict(speech=weights / 'wav2vec2', text=weights / 't5')
  values |= dict(
    tokenizer=pieces, text_length=LENGTH, layers='1,last', voices=2
  )

  def call(out, **changes):
    changed = values | changes
    return run(f'--out={out}', *(f'--{k}={v}' for k, v in changed.items() if v))

  return call


@pytest.fixture(scope='module')
def made(command, tmp_path_factory):
  out = tmp_path_factory.mktemp('features') / 'train'
  assert command(out) == 0
  return out


def records(folder):
  paths = sorted(folder.glob('*.array_record'))
  return [record for path in paths for record in shards.read_shard(path)]


def content(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(folder.rglob('*'))
    if p.is_file()
  }


def test_speech_is_interpolated_to_the_middles_of_frames(
  made, folders, encoders
):
  _, params = encoders
  module = wav2vec2.Wav2Vec2(SPEECH)
  apply = jax.jit(functools.partial(module.apply, hidden=True))
  clips = records(folders / 'clips')
  for record, clip in list(zip(records(made), clips, strict=True))[1:3]:
    count = len(clip['frames'])
    wave = clip['wave'][: count * 640]
    wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
    # The last frame's middle lies before the end of what the encoder sees.
    wave = np.pad(wave, (0, 80))
    last, hidden = apply({'params': params['wav2vec2']}, wave[None])
    features = np.concatenate([hidden[1][0], last[0]], axis=-1)
    heard = np.arange(len(features)) * 320 + 199.5
    middle = np.arange(count) * 640 + 319.5
    want = [np.interp(middle, heard, column) for column in features.T]
    assert record['audio'].shape == (2, count, 16)
    np.testing.assert_allclose(
      record['audio'][0], np.transpose(want), atol=4e-3
    )
    assert np.abs(record['audio'][1] - record['audio'][0]).max() > 0.1


def test_text_is_that_of_the_caption_alone(made, encoders, pieces):
  _, params = encoders
  processor = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
  apply = jax.jit(t5.T5Encoder(TEXT).apply)
  for record, caption in zip(records(made), CAPTIONS, strict=True):
    if not caption:
      assert record['text'].shape == (0, 16)
      continue
    ids = [*processor.encode(caption), 1][:LENGTH]
    want, _ = apply({'params': params['t5']}, np.array([ids], np.int32))
    assert record['text'].shape == (len(ids), 16)
    np.testing.assert_allclose(record['text'], want[0], atol=4e-3)


def test_all_else_stays(made, folders):
  for new, old in zip(records(made), records(folders / 'latents'), strict=True):
    assert new.keys() - old.keys() == {'text', 'front_end'}
    for name in old.keys() - {'audio'}:
      np.testing.assert_array_equal(new[name], old[name])


def test_work_goes_on_to_the_same_bytes(command, made, capsys):
  whole = content(made)
  assert command(made) == 0
  assert 'was ready; nothing to do' in capsys.readouterr().out
  sorted(made.glob('*.array_record'))[1].unlink()
  sorted((made / 'report').iterdir())[1].unlink()
  assert command(made) == 0
  assert content(made) == whole


@pytest.fixture(scope='module')
def listened(command, tmp_path_factory):
  """By a Whisper that hears 1 s at once, of clips of 2 to 3 s."""
  from tests.launch.binary import Binary

  top = tmp_path_factory.mktemp('whisper')
  (top / 'in').mkdir()
  ours = nn.unbox(whisper.abstract_params(LISTENER))
  tensors = names.save(whisper_names.places(LISTENER), tiny.filled(ours))
  safetensors.numpy.save_file(tensors, top / 'in/model.safetensors')
  (top / 'in/config.json').write_text('{"encoder_attention_heads": 2}')
  flags = '--from=whisper', f'--input={top}/in', f'--out={top}/w'
  assert Binary('convert')(*flags) == 0
  changes = dict(speech=top / 'w', text=None, tokenizer=None, voices=None)
  assert command(top / 'train', **changes, layers='0,last') == 0
  return top


def test_whisper_hears_clips_that_are_longer_than_it_can(listened, folders):
  source = encoder_sources.read(listened / 'train/encoders.json').speech
  listen = encoders_lib.load_speech(source)
  half = lambda x: np.asarray(x, np.float16)
  assert (source.seconds, source.width, listen.dim) == (1.0, 16, 16)
  clips = records(folders / 'clips')
  for record, clip in zip(records(listened / 'train'), clips, strict=True):
    wave, got = clip['wave'], record['audio'][0]
    assert got.shape == (len(clip['frames']), 16)
    # Stretches begin every 19 frames; joints lie in the middle of what is shared.
    first, second = wave[: 25 * 640], wave[19 * 640 : 44 * 640]
    np.testing.assert_array_equal(got[:22], half(listen(first, 25)[:22]))
    np.testing.assert_array_equal(got[22:34], half(listen(second, 25)[3:15]))


def config(folder):
  model = tiny.DIT | {'text_vocab': 0, 'text': tiny.DIT['text']}
  model['audio'] = dict(width=16, mlp_dim=32, in_dim=16)
  source = tiny.WINDOW | dict(train=str(folder), eval=str(folder))
  return dict(
    experiment='mirage_jax.experiment',
    seed=0,
    num_steps=2,
    batch_size=8,
    log_every=1,
    save_every=2,
    eval_every=2,
    eval_batches=1,
    keep=1,
    keep_every=0,
    mesh=dict(data=-1, fsdp=1, context=1, tensor=1),
    latent_size=(2, 2),
    data=source | {'augment': True, 'text_length': LENGTH},
    model=model,
    flow=dict(schedule='uniform'),
    optimizer=dict(learning_rate=1e-3),
  )


def test_a_model_of_features_takes_its_batches(made):
  values = config(made)
  exp = experiment.make(values)
  batch = next(iter(exp.dataset()))
  kinds = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)
  assert kinds(batch) == kinds(experiment.abstract_batch(values, 8))
  assert 0 < batch['text_mask'].sum() < batch['text_mask'].size
  assert not batch['text'][~batch['text_mask']].any()
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = nn.unbox(jax.eval_shape(exp.init, key))
  _, metrics = jax.eval_shape(exp.train_step, state, batch, key)
  assert metrics['loss'].shape == ()


def test_features_are_not_taken_for_mels(made):
  """Five times 16 numbers would pass for 80 mels."""
  cfg = data.LatentConfig('t', 'e', **tiny.WINDOW, augment=1.0)
  record = records(made)[0]
  for seed in range(4):
    window = data.latent_window(record, np.random.default_rng(seed), cfg=cfg)
    audio = window['audio'][:, None]
    same = [(audio == voice[None]).all(-1).any(-1) for voice in record['audio']]
    assert same[0].all() or same[1].all()


@pytest.fixture(scope='module')
def bundle_file(made, tiny_file, tmp_path_factory):
  """Trained on the features, then exported."""
  from tests.launch.binary import Binary

  top = tmp_path_factory.mktemp('trained')
  state = loop.train(config(made), top / 'run')
  assert int(state.step) == 2
  lines = (top / 'run/metrics.jsonl').read_text().splitlines()
  assert all(np.isfinite(json.loads(x).get('loss', 0)) for x in lines)
  out = top / 'mirage.safetensors'
  flags = f'--workdir={top}/run', f'--vae={tiny_file}', f'--out={out}'
  assert Binary('export')(*flags) == 0
  return out


def test_sampling_computes_the_features_of_training(
  bundle_file, made, folders, monkeypatch
):
  """To the bit, whatever comes after the end of the sound."""
  generator = talk.load_generator(bundle_file)
  conds = []
  monkeypatch.setattr(
    generator,
    '_sample',
    lambda key, cond, *_: conds.append(cond) or np.zeros((5, 2, 2, 3)),
  )
  clips = records(folders / 'clips')
  for record, clip in list(zip(records(made), clips, strict=True))[::2]:
    conds.clear()
    caption = str(clip['caption'])
    generator(clip['wave'], tiny.picture(), caption, talk.generate.PLAIN)
    heard = np.concatenate([c['audio'][0] for c in conds])
    count = len(clip['frames'])
    assert len(heard) == 75 and record['audio'].shape[1] == count
    np.testing.assert_array_equal(
      heard[:count], record['audio'][0].astype(np.float32)
    )
    length = len(record['text'])
    np.testing.assert_array_equal(conds[0]['text'][0, :length], record['text'])
    assert conds[0]['text_mask'].sum() == length
    assert (length > 0) == bool(caption)


def test_a_video_through_encoders(
  bundle_file, folders, encoders, binary, tmp_path, one_error
):
  wave = records(folders / 'clips')[0]['wave']
  soundfile.write(tmp_path / 'a.wav', wave, 16000)
  flags = [f'--checkpoint={bundle_file}', f'--audio={tmp_path}/a.wav']
  flags += ['--steps=2', f'--out={tmp_path}/o.mp4', '--text=blue wall']
  guided = ['--text_cfg=3', '--negative_text=men']
  assert binary('sample')(*flags, *guided) == 0
  assert media.read_video(tmp_path / 'o.mp4').frames.shape == (60, 16, 16, 3)
  weights, _ = encoders
  (weights / 't5').rename(weights / 'moved')
  try:
    assert binary('sample')(*flags) == 1
    assert 't5 is not there; give --text_encoder=' in one_error()
    moved = f'--text_encoder={weights}/moved'
    assert binary('sample')(*flags, moved) == 0
  finally:
    (weights / 'moved').rename(weights / 't5')


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (dict(tokenizer=None), '--tokenizer needed'),
    (dict(speech=None, text=None), '--speech or --text needed'),
    (dict(data='clips'), 'holds clips, not latents'),
    (dict(data='none'), 'is no finished folder of launch.prepare'),
    (dict(clips='latents'), 'holds latents, not clips'),
    (dict(speech='clips'), 'is no speech encoder'),
    (dict(speech='none'), 'is no folder that launch.convert wrote'),
    (dict(layers='3'), "'3' is none of last, 0 ... 2"),
    (dict(text='wav2vec2'), 'is no T5'),
  ],
)
def test_wrong_folders_take_one_line(
  command, folders, encoders, tmp_path, one_error, change, said
):
  weights, _ = encoders
  places = {'clips': folders / 'clips', 'latents': folders / 'latents'}
  places |= {'wav2vec2': weights / 'wav2vec2', 'none': folders / 'none'}
  if change.get('speech') == 'clips':
    change = dict(speech=weights / 't5')
  change = {k: places.get(v, v) for k, v in change.items()}
  assert command(tmp_path / 'out', **change) == 1
  assert said in one_error()


def test_clips_of_another_folder_are_refused(
  command, folders, tmp_path, one_error
):
  about = {'stage': 'clips', 'max_seconds': 8.0}
  other = shards.ShardFolder(tmp_path / 'c', about, 1)
  record = tiny.clip_record(0)
  other.write(0, [shards.Outcome('clip0', record)])
  other.finish()
  assert command(tmp_path / 'out', clips=tmp_path / 'c') == 1
  assert 'are not the clips that' in one_error()


def test_other_settings_are_refused(command, made, one_error):
  assert command(made, layers='last') == 1
  assert "made with layers=['1', 'last'], not ['last']" in one_error()
