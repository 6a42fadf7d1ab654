"""A bundle comes back to the bit, or one line says why not."""

import dataclasses
import json
import resource

import jax
import numpy as np
import pytest
import safetensors.numpy

from launch import bundle
from launch.errors import UserError
from tests import tiny


def test_what_is_saved_comes_back_in_float16(tmp_path):
  made, path = tiny.bundle(), tmp_path / 'a/b.safetensors'
  made.dit['scalar'] = np.float32(0.25)  # No dimension may be added.
  bundle.save(path, made)
  back = bundle.load(path)
  assert back.config == made.config
  half = lambda x: np.asarray(np.float16(x), np.float32)
  for name in ('vae', 'dit'):
    jax.tree.map(
      np.testing.assert_array_equal,
      getattr(back, name),
      jax.tree.map(half, getattr(made, name)),
    )
  assert back.dit['scalar'].shape == ()
  jax.tree.map(np.testing.assert_array_equal, back.stats, made.stats)
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(back.dit))
  # From then on nothing is lost.
  bundle.save(tmp_path / 'again.safetensors', back)
  assert (tmp_path / 'again.safetensors').read_bytes() == path.read_bytes()


def test_a_vae_alone_has_no_transformer(tmp_path):
  bundle.save(tmp_path / 'v.safetensors', tiny.bundle(dit=False))
  assert bundle.load(tmp_path / 'v.safetensors').dit is None


@pytest.mark.parametrize('part', [0.0, 1e-4, 0.02, 0.5, 0.999])
def test_a_file_cut_short_is_said(tiny_file, tmp_path, part):
  data = tiny_file.read_bytes()
  path = tmp_path / 'cut.safetensors'
  path.write_bytes(data[: int(part * len(data))])
  with pytest.raises(UserError, match=r'cut\.safetensors: is cut short') as e:
    bundle.load(path)
  assert 'export it again' in str(e.value) and '\n' not in str(e.value)


def test_what_is_no_bundle_is_said(tmp_path):
  path = tmp_path / 'x.safetensors'
  with pytest.raises(UserError, match='no such checkpoint'):
    bundle.load(path)
  with pytest.raises(UserError, match='is no safetensors file'):
    bundle.load(tmp_path)
  weights = {'vae/w': np.zeros(1), 'stats/mean': np.zeros(1)}
  config = {'vae': {}, 'data': {'size': 8}}
  with_dit = weights | {'dit/w': np.zeros(1)}
  for tensors, metadata, lacks in (
    (weights, None, 'config'),
    (weights, {'config': '{"vae"'}, 'delimiter'),
    (weights, {'config': '{}'}, 'vae'),
    (weights, {'config': '[1]'}, 'vae'),
    ({'vae/w': np.zeros(1)}, {'config': json.dumps(config)}, 'stats'),
    (with_dit, {'config': json.dumps(config)}, 'dit'),
    (with_dit, {'config': json.dumps(config | {'dit': {}})}, 'num_chunks'),
  ):
    safetensors.numpy.save_file(tensors, path, metadata)
    with pytest.raises(
      UserError, match=rf'none of launch.export .*lacks.*{lacks}'
    ) as e:
      bundle.load(path)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('value', [1e6, np.nan])
def test_a_weight_that_float16_cannot_hold_is_not_saved(tmp_path, value):
  made = tiny.bundle()
  made.vae['big'] = {'kernel': np.float32([1.0, value])}
  with pytest.raises(UserError, match='vae/big/kernel does not fit float16'):
    bundle.save(tmp_path / 'a.safetensors', made)
  assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file_and_no_half(tmp_path):
  path = tmp_path / 'a.safetensors'
  path.write_text('old')
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  # Python ignores SIGXFSZ: past the limit, a write fails as on a full disk.
  resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
  try:
    with pytest.raises(UserError, match=r'a\.safetensors: the disk is full'):
      bundle.save(path, tiny.bundle())
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert path.read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


def test_join_refuses_another_vae():
  config = {'model': tiny.DIT, 'data': tiny.WINDOW, 'latent_size': [2, 2]}
  vae = tiny.bundle(dit=False)
  joined = bundle.join(vae, config, {'w': 1})
  assert joined.dit == {'w': 1} and joined.vae is vae.vae
  assert joined.config == tiny.bundle().config
  bigger = dataclasses.replace(
    vae, config={'vae': tiny.VAE, 'data': {'size': 32}}
  )
  with pytest.raises(UserError, match=r'\(4, 4, 3\).*\(2, 2, 3\)'):
    bundle.join(bigger, config, {})
