"""Workdirs become bundles; and once, the whole way from clips to a video."""

import dataclasses
import json

from flax import traverse_util
import jax
import numpy as np
import pytest
import safetensors
import soundfile

from configs.mirage import grid
from launch import (
  bundle,
  checkpoint,
  encode,
  generate,
  loop,
  media,
  shards,
  weights_file,
)
from launch.errors import UserError
from mirage_jax import (
  config as config_lib,
  latents,
  lora,
  train_step,
)
from mirage_jax.vae import Vae, VaeConfig
from tests import tiny


def write_clips(folder, count=4, frames=50):
  """A folder as `launch.prepare --stage clips` leaves it."""
  settings = {'stage': 'clips'}
  made = shards.ShardFolder(folder, settings, 1)
  records = [tiny.clip_record(n, frames) for n in range(count)]
  made.write(0, [shards.Outcome(r['id'], r) for r in records])
  made.finish()
  return records


def fake_run(workdir, config, params, wrap=lambda state: state):
  """A workdir with one checkpoint, as the loop leaves it."""
  tx = train_step.optimizer(train_step.OptimizerConfig(1e-3), 10)
  state = train_step.new_state(params, tx)
  state = state.replace(ema=jax.tree.map(lambda x: x + 0.5, state.params))
  state = wrap(state)
  data = iter(grain_numbers())
  checkpoint.claim_workdir(workdir, config)
  with checkpoint.Checkpoints(workdir) as checkpoints:
    checkpoints.save(3, state, data)
  return state


def grain_numbers():
  import grain

  return grain.MapDataset.range(9).to_iter_dataset()


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
  folder = tmp_path_factory.mktemp('clips') / 'train'
  return folder, write_clips(folder)


@pytest.fixture(scope='module')
def vae_run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('vae') / 'run'
  config = {'vae': tiny.VAE, 'data': {'size': 16}, 'experiment': 'v'}
  return workdir, fake_run(workdir, config, tiny.vae_params())


@pytest.fixture(scope='module')
def dit_run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('dit') / 'run'
  config = {'model': tiny.DIT, 'data': tiny.WINDOW, 'latent_size': [2, 2]}
  return workdir, fake_run(workdir, config, tiny.dit_params())


def half(tree):
  return jax.tree.map(lambda x: np.float32(np.float16(x)), tree)


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_vae_gets_the_statistics_of_its_latents(
  binary, clips, vae_run, tmp_path, capsys
):
  folder, records = clips
  workdir, state = vae_run
  out = tmp_path / 'vae.safetensors'
  flags = [f'--workdir={workdir}', f'--clips={folder}', f'--out={out}']
  assert binary('export')(*flags) == 0
  printed = capsys.readouterr().out
  assert f'wrote {out}: 0.0 MB' in printed
  made = bundle.load(out)
  assert made.dit is None
  assert made.config == {'vae': tiny.VAE, 'data': {'size': 16}}
  assert_same(made.vae, half(state.ema))  # The average, in float16.
  # By hand: all chunks of all clips at once, through the same weights.
  vae = Vae(config_lib.build(VaeConfig, tiny.VAE))
  chunks = np.concatenate(
    [r['frames'].reshape(2, 25, 16, 16, 3) for r in records]
  )
  encode_all = jax.jit(
    lambda x: vae.apply({'params': state.ema}, x, method='encode')[0]
  )
  z = np.asarray(encode_all(chunks.astype(np.float32) / 127.5 - 1))
  flat = z.reshape(-1, 3).astype(np.float64)
  np.testing.assert_allclose(made.stats['mean'], flat.mean(0), atol=1e-4)
  np.testing.assert_allclose(made.stats['std'], flat.std(0), rtol=1e-4)
  # With them, latents have mean 0 and deviation 1.
  coded = latents.encode_video(vae, state.ema, made.stats, chunks[0])
  assert coded.shape == (5, 2, 2, 3)


def test_a_transformer_is_joined_to_its_vae(
  binary, dit_run, tmp_path, tiny_file
):
  workdir, state = dit_run
  out = tmp_path / 'mirage.safetensors'
  flags = [f'--workdir={workdir}', f'--vae={tiny_file}', f'--out={out}']
  assert binary('export')(*flags) == 0
  made, vae = bundle.load(out), bundle.load(tiny_file)
  assert_same(made.dit, half(state.ema))
  assert_same(made.vae, vae.vae)
  assert_same(made.stats, vae.stats)
  assert made.config == tiny.bundle().config
  assert binary('export')(*flags, '--step=3') == 0


def test_the_mean_of_transformers(binary, dit_run, tmp_path, tiny_file):
  workdir, state = dit_run
  out = tmp_path / 'mean.safetensors'
  binary('export')(
    f'--workdir={workdir}',
    f'--vae={tiny_file}',
    f'--out={out}',
    f'--average={tiny_file}',
  )
  tiny_dit = bundle.load(tiny_file).dit
  mean = jax.tree.map(lambda a, b: (a + b) / 2, state.ema, tiny_dit)
  assert_same(bundle.load(out).dit, half(mean))


def test_another_transformer_has_no_mean(tiny_file):
  one = bundle.load(tiny_file)
  alone = dataclasses.replace(one, dit=None)
  other = dataclasses.replace(one, config=one.config | {'dit': {'depth': 9}})
  for wrong in (alone, other):
    with pytest.raises(UserError, match='--average=x: holds no transformer of'):
      bundle.average(one, {'x': wrong})


def test_a_workdir_samples_without_export(dit_run, tiny_file, monkeypatch):
  from launch import talk

  workdir, state = dit_run
  monkeypatch.setattr(bundle, 'DEFAULT', tiny_file)
  direct = talk.load_generator(workdir)
  given = talk.load_generator(workdir, tiny_file)
  assert direct.size == given.size == 16
  assert_same(direct._bundle.dit, state.ema)


def test_mistakes_are_one_line(
  binary, vae_run, dit_run, tiny_file, tmp_path, one_error
):
  vae, dit = vae_run[0], dit_run[0]
  other = tmp_path / 'other'
  other.mkdir()
  (other / 'config.json').write_text('{"experiment": "toy"}')
  cut = tmp_path / 'cut.safetensors'
  cut.write_bytes(tiny_file.read_bytes()[:-100])
  out = f'--out={tmp_path}/o.safetensors'
  for flags, said in (
    ([], '--workdir and --out are needed'),
    ([f'--workdir={vae}', '--out=o.npz'], '--out=o.npz: name it .safetensors'),
    ([f'--workdir={tmp_path}', out], f'{tmp_path}/config.json not found'),
    (
      [f'--workdir={other}', out],
      'other: is a run of toy, which has no bundle',
    ),
    ([f'--workdir={vae}', out], 'a VAE needs --clips=FOLDER'),
    ([f'--workdir={vae}', out, '--clips=no'], '--clips=no: holds no *.array'),
    ([f'--workdir={dit}', out], 'a transformer needs --vae=BUNDLE'),
    (
      [f'--workdir={dit}', out, f'--vae={cut}'],
      'cut.safetensors: is cut short',
    ),
    ([f'--workdir={dit}', out, '--vae=no'], 'no: no such checkpoint'),
    (
      [f'--workdir={dit}', out, f'--vae={tiny_file}', '--step=4'],
      'has no step 4; it has [3]',
    ),
  ):
    assert binary('export')(*flags) == 1
    assert said in one_error()
  assert not (tmp_path / 'o.safetensors').exists()


def test_a_vae_run_does_not_sample(binary, vae_run, tmp_path, one_error):
  flags = [f'--checkpoint={vae_run[0]}', '--audio=a', f'--out={tmp_path}/o.mp4']
  assert binary('sample')(*flags) == 1
  assert 'is no run of a transformer' in one_error()


def test_clips_shorter_than_a_chunk_are_refused(
  binary, vae_run, tmp_path, one_error
):
  write_clips(tmp_path / 'short', 1, frames=24)
  flags = [f'--workdir={vae_run[0]}', f'--out={tmp_path}/o.safetensors']
  assert binary('export')(*flags, f'--clips={tmp_path}/short') == 1
  assert 'no clip there has 25 frames' in one_error()


def tiny_configs(root):
  """The recipe itself, made small by overrides alone."""
  mesh = dict(data=1, fsdp=1, context=1, tensor=1)
  small = dict(num_steps=2, batch_size=2, log_every=1, save_every=2)
  small |= dict(eval_every=2, eval_batches=1, mesh=mesh)
  # Muon takes half a minute to compile.
  vae = grid.get_config(f'vae,data={root}')
  vae.update(small)
  vae.optimizer.name = 'adamw'
  vae.data.update(size=16, num_frames=7, eval=vae.data.train)
  vae.vae.update(
    {k: tuple(v) if isinstance(v, list) else v for k, v in tiny.VAE.items()}
  )
  dit = grid.get_config(f'dit,data={root}')
  dit.update(small | dict(latent_size=(2, 2)))
  dit.optimizer.name = 'adamw'
  dit.data.update(tiny.WINDOW | dict(eval=dit.data.train))
  dit.model.update(tiny.DIT)
  return tiny.plain(vae), tiny.plain(dit)


def write_latents(root, vae_file):
  """As `launch.prepare --stage latents` does it."""
  settings = encode.LatentSettings(reference_every=12, voices=2)
  encoder = encode.ChunkEncoder(bundle.load(vae_file), settings.batch)
  paths, _ = encode.find_clips(root / 'clips/train')
  folder = shards.ShardFolder(root / 'latents/train', {'stage': 'latents'}, 1)
  folder.write(0, encode.latent_outcomes(paths[0], encoder, settings))
  folder.finish()


@pytest.mark.full
def test_from_clips_to_a_video(binary, tmp_path):
  """clips -> VAE -> bundle -> latents -> transformer -> bundle -> video."""
  root = tmp_path / 'data'
  write_clips(root / 'clips/train', 4, frames=60)
  vae, dit = tiny_configs(root)
  device = jax.devices()[:1]
  loop.train(vae, tmp_path / 'vae', device)
  vae_file = tmp_path / 'vae.safetensors'
  flags = [f'--workdir={tmp_path}/vae', f'--clips={root}/clips/train']
  assert binary('export')(*flags, f'--out={vae_file}') == 0
  write_latents(root, vae_file)
  loop.train(dit, tmp_path / 'dit', device)
  for name in ('vae', 'dit'):
    text = (tmp_path / name / 'metrics.jsonl').read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    losses = [r[k] for r in rows for k in ('loss', 'eval/loss') if k in r]
    assert len(losses) == 3 and np.isfinite(losses).all()
  file = tmp_path / 'mirage.safetensors'
  flags = [f'--workdir={tmp_path}/dit', f'--vae={vae_file}', f'--out={file}']
  assert binary('export')(*flags) == 0
  soundfile.write(tmp_path / 'a.wav', tiny.speech(1.3), 16000)
  flags = [f'--checkpoint={file}', f'--audio={tmp_path}/a.wav', '--steps=2']
  assert binary('sample')(*flags, f'--out={tmp_path}/o.mp4') == 0
  made = media.read_video(tmp_path / 'o.mp4').frames
  assert made.shape == (generate.num_frames(round(1.3 * 16000)), 16, 16, 3)


@pytest.fixture(scope='module')
def lora_run(tmp_path_factory):
  """A run that changes the tiny transformer, with its averaged changes."""
  workdir = tmp_path_factory.mktemp('lora') / 'run'
  recipe = {'rank': 2, 'targets': ['blocks/video/qkv', 'audio_in']}
  config = {'model': tiny.DIT, 'data': tiny.WINDOW, 'latent_size': [2, 2]}
  config['lora'] = recipe
  cfg = config_lib.build(lora.LoraConfig, recipe)
  learned = lora.init(jax.random.key(0), cfg, tiny.dit_params())
  wrap = lambda state: lora.LoraState(**vars(state), base=tiny.dit_params())
  state = fake_run(workdir, config, learned, wrap)
  return workdir, lora.merge(state.base, state.ema, cfg)


def test_a_converted_vae_has_its_own_statistics(binary, tmp_path, one_error):
  """As of Mochi's: config.json tells mean and std, but no size of frames."""
  workdir, out = tmp_path / 'vae', tmp_path / 'vae.safetensors'
  stats = {'mean': [0.5, 1.0, -1.0], 'std': [2.0, 3.0, 4.0]}
  config = {'vae': tiny.VAE, 'stats': stats, 'experiment': 'v'}
  state = fake_run(workdir, config, tiny.vae_params())
  flags = f'--workdir={workdir}', f'--out={out}'
  assert binary('export')(*flags) == 1
  assert 'give --size=PIXELS' in one_error()
  assert binary('export')(*flags, '--size=16') == 0
  got = bundle.load(out)
  assert got.config['data'] == {'size': 16}
  assert {k: v.tolist() for k, v in got.stats.items()} == stats
  assert_same(got.vae, half(state.ema))


def test_what_lora_learned_is_merged(binary, tiny_file, lora_run, tmp_path):
  workdir, want = lora_run
  out, only = tmp_path / 'all.safetensors', tmp_path / 'only.safetensors'
  export = binary('export')
  how = f'--workdir={workdir}', f'--vae={tiny_file}'
  assert export(*how, f'--out={out}') == 0
  assert_same(bundle.load(out).dit, half(want))
  # Or on its own, small, to be merged where the base is.
  assert export(*how, f'--out={only}', '--changes_only') == 0
  assert only.stat().st_size < 0.2 * tiny_file.stat().st_size
  again = tmp_path / 'again.safetensors'
  how = f'--changes={only}', f'--vae={tiny_file}'
  assert export(*how, f'--out={again}') == 0
  base = bundle.load(tiny_file).dit
  cfg = lora.LoraConfig(2, targets=('blocks/video/qkv', 'audio_in'))
  with weights_file.reading(only, bundle.KIND) as (_, tree):
    want = half(lora.merge(base, tree['changes'], cfg))
  assert_same(bundle.load(again).dit, want)
  # Beside its base it is a checkpoint as it is.
  here = tmp_path / 'base.safetensors'
  here.write_bytes(tiny_file.read_bytes())
  beside = tmp_path / 'beside.safetensors'
  flags = f'--workdir={workdir}', f'--base={here}', f'--out={beside}'
  assert export(*flags) == 0
  assert_same(half(bundle.load(beside).dit), want)
  assert bundle.load(beside).config == bundle.load(here).config
  with pytest.raises(UserError, match='holds changes alone; merge them, by'):
    bundle.load(only)


@pytest.mark.parametrize('slab', [1 << 20, 100])
def test_converted_it_is_merged_in_parts(
  binary, lora_run, tmp_path, monkeypatch, slab
):
  """What `launch.convert` makes of a run with config.lora is a plain model."""
  workdir, want = lora_run
  monkeypatch.setattr('launch.convert_ours.SLAB', slab)
  out = tmp_path / 'out'
  flags = f'--input={workdir}', f'--out={out}'
  assert binary('convert')('--from=mirage', '--to=safetensors', *flags) == 0
  with safetensors.safe_open(out / 'model.safetensors', 'numpy') as f:
    got = {name: f.get_tensor(name) for name in f.keys()}
  flat = traverse_util.flatten_dict({'ema': want}, sep='/')
  assert got.keys() == flat.keys()
  for name, x in flat.items():
    np.testing.assert_allclose(got[name], x, rtol=1e-6, atol=1e-6, err_msg=name)
  assert 'lora' not in json.loads((out / 'config.json').read_text())
  manifest = json.loads((out / 'manifest.json').read_text())['tensors']
  sums = manifest['ema/blocks/video/qkv/kernel']['sha256']
  assert isinstance(sums, list) == (slab == 100)


def test_changes_that_do_not_fit_are_told(
  binary, tiny_file, dit_run, lora_run, tmp_path, one_error
):
  out, export = tmp_path / 'x.safetensors', binary('export')
  alone = f'--workdir={dit_run[0]}', '--changes_only', f'--out={out}'
  assert export(*alone) == 1
  assert 'no lora' in one_error()
  assert export(f'--changes={tiny_file}', f'--vae={tiny_file}', f'--out={out}')
  assert 'holds no changes; give a file of' in one_error()
  both = f'--changes={tiny_file}', f'--workdir={lora_run[0]}'
  assert export(*both, f'--out={out}') == 1
  assert 'leave out --workdir' in one_error()
  assert not out.exists()
