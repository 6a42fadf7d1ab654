"""The binary, run as a user runs it, on real faces and a random autoencoder."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from launch import bundle, face_models, media
from mirage_jax.vae import CHUNK, Vae, VaeConfig

pytest.importorskip('matplotlib', reason='needs the eval extra')
TINY = VaeConfig(
  encoder_channels=4,
  decoder_channels=4,
  multipliers=(1, 1, 1, 1),
  encoder_blocks=(0, 0, 0, 0, 0),
  decoder_blocks=(0, 0, 0, 0, 0),
  encoder_attention=(False,) * 5,
  latent_channels=2,
  norm_groups=2,
  head_dim=4,
)


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
  """A folder with two clips of a still face, and the bundle of a tiny VAE."""
  data = pytest.importorskip('skimage.data', reason='needs the eval extra')
  try:
    face_models.model_path(face_models.MESH)
  except face_models.FaceModelError as error:
    pytest.skip(str(error))
  folder = tmp_path_factory.mktemp('evaluate')
  portrait = data.astronaut()[:256, 100:356]
  tone = np.sin(np.arange(CHUNK * 640) / 9).astype(np.float32)
  for name in 'ab':
    frames = np.repeat(portrait[None], CHUNK, axis=0)
    media.write_video(folder / 'clips' / f'{name}.mp4', frames, tone)
  vae, key = Vae(TINY), jax.random.key(0)
  frames = np.zeros((1, CHUNK, 32, 32, 3), np.float32)
  params = jax.device_get(jax.jit(vae.init)(key, frames, key)['params'])
  stats = {'mean': np.zeros(2, np.float32), 'std': np.ones(2, np.float32)}
  config = {'vae': dataclasses.asdict(TINY), 'data': {'size': 32}}
  bundle.save(folder / 'vae.safetensors', bundle.Bundle(config, params, stats))
  return folder


def run(folder, *arguments):
  command = [sys.executable, '-m', 'launch.evaluate']
  command += [f'--checkpoint={folder}/vae.safetensors']
  command += [f'--data={folder}/clips', f'--out={folder}/out', *arguments]
  return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.full
def test_autoencoder_alone_from_the_command_line(inputs):
  done = run(inputs, '--vae_only')
  assert done.returncode == 0, done.stderr
  assert '[2/2] b' in done.stdout and '| PSNR |' in done.stdout
  scores = json.loads((inputs / 'out/scores.json').read_text())
  assert scores['mean']['truth']['face_found'] == 1
  assert 0 < scores['mean']['rebuilt']['psnr_whole_truth'] < 40
  # Other weights in the same file are another evaluation.
  weights = bundle.load(inputs / 'vae.safetensors')
  other = jax.tree.map(lambda x: x + 1, weights.vae)
  changed = dataclasses.replace(weights, vae=other)
  bundle.save(inputs / 'vae.safetensors', changed)
  again = run(inputs, '--vae_only')
  bundle.save(inputs / 'vae.safetensors', weights)
  assert again.returncode == 1
  assert 'give another --out or remove it' in again.stderr


def test_autoencoder_alone_must_be_asked_for(inputs):
  failed = run(inputs)
  assert failed.returncode == 1
  last = failed.stderr.strip().splitlines()[-1]
  assert last.startswith('error:') and 'vae_only' in last


@pytest.mark.full
def test_steps_that_a_student_does_not_take_leave_nothing(inputs, tmp_path):
  out = tmp_path / 'out'
  failed = run(inputs, '--checkpoint=fast', '--steps=9', f'--out={out}')
  assert failed.returncode == 1
  last = failed.stderr.strip().splitlines()[-1]
  assert last.startswith('error:') and '--steps' in last
  assert not out.exists()
