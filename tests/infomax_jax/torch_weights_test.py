"""The authors' names and layouts, there and back, and what is wrong said."""

import re

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infomax_jax import config, encoder, heads, torch_weights
from tests.infomax_jax import golden


@pytest.mark.parametrize('name', golden.NAMES)
def test_a_round_trip_is_exact(name):
  case = golden.case(name)
  state = torch_weights.to_torch(case.weights, case.cfg, case.heads_cfg)
  want = golden.part(case.arrays, 'sd/')
  assert list(state) == list(want)
  for key, array in want.items():
    assert state[key].dtype == array.dtype
    np.testing.assert_array_equal(state[key], array)


@pytest.mark.parametrize('name', golden.NAMES)
def test_they_are_the_variables_of_the_modules(name):
  case = golden.case(name)
  key, rest = jax.random.key(0), (1, case.cfg.n_rkhs)
  fresh = jax.eval_shape(case.encoder.init, key, jnp.asarray(case.x1[:1]))
  shapes = lambda tree: jax.tree.map(np.shape, nn.unbox(tree))
  assert shapes(fresh) == shapes(case.weights.encoder)
  fresh = jax.eval_shape(case.heads.init, key, jnp.zeros(rest))
  assert shapes(fresh) == shapes(case.weights.heads)


def small(depth=2, ndf=2, n_rkhs=8):
  cfg = config.EncoderConfig(32, ndf, n_rkhs, depth)
  heads_cfg = config.HeadsConfig(3, hidden=4)
  key = jax.random.key(0)
  init = jax.jit(encoder.Encoder(cfg).init)
  variables = init(key, jnp.zeros((1, 32, 32, 3)))
  init = jax.jit(heads.Heads(heads_cfg).init)
  classifiers = init(key, jnp.zeros((1, n_rkhs)))
  unboxed = jax.tree.map(np.asarray, nn.unbox((variables, classifiers)))
  return torch_weights.Weights(*unboxed, {}), cfg, heads_cfg


@pytest.fixture(scope='module')
def fresh():
  return small()


def test_fresh_weights_make_a_whole_state_dict(fresh):
  """Dead norms, counts and masks are as torch starts them."""
  state = torch_weights.to_torch(*fresh)
  back = torch_weights.from_torch(state, *fresh[1:])
  jax.tree.map(np.testing.assert_array_equal, back.encoder, fresh[0].encoder)
  jax.tree.map(np.testing.assert_array_equal, back.heads, fresh[0].heads)
  dead = 'encoder.module.layer_list.4.bn.'
  np.testing.assert_array_equal(state[dead + 'weight'], np.ones(8))
  np.testing.assert_array_equal(state[dead + 'running_mean'], np.zeros(8))
  assert state[dead + 'num_batches_tracked'].dtype == np.int64
  want = golden.load('enc32')['sd/g2l_loss.masks_r5']
  np.testing.assert_array_equal(state['g2l_loss.masks_r5'], want)


def test_what_does_not_fit_is_listed(fresh):
  _, cfg, heads_cfg = fresh
  state = torch_weights.to_torch(*fresh)
  kernel = 'encoder.module.layer_list.2.layer_list.1.conv1.weight'
  del state['evaluator.block_glb_lin.block_forward.2.bias']
  state[kernel] = state[kernel][:3]
  state['encoder.module.extra'] = np.zeros((2, 1))
  with pytest.raises(ValueError) as error:
    torch_weights.from_torch(state, cfg, heads_cfg)
  lines = str(error.value).splitlines()
  assert lines[1:] == [
    '  missing:',
    '    evaluator.block_glb_lin.block_forward.2.bias (3,)',
    '  unknown:',
    '    encoder.module.extra (2, 1)',
    '  of another shape:',
    f'    {kernel} is (3, 4, 1, 1), must be (4, 4, 1, 1)',
  ]


def test_weights_of_another_size_are_refused_both_ways(fresh):
  weights, _, heads_cfg = fresh
  state = torch_weights.to_torch(*fresh)
  deeper = config.EncoderConfig(32, 2, 8, 4)
  wider = config.EncoderConfig(32, 2, 16, 2)
  for other, said in ((deeper, 'missing'), (wider, 'of another shape')):
    with pytest.raises(ValueError, match=said) as error:
      torch_weights.from_torch(state, other, heads_cfg)
    assert re.search(r'and \d+ more', str(error.value))
    with pytest.raises(ValueError, match='of another shape'):
      torch_weights.to_torch(weights, other, heads_cfg)
  shallower = config.EncoderConfig(32, 2, 8, 1)
  with pytest.raises(ValueError, match='unknown:\n    encoder/.*/rest/'):
    torch_weights.to_torch(weights, shallower, heads_cfg)


def test_what_the_authors_have_no_name_for_is_refused(fresh):
  cfg = config.EncoderConfig(32, 2, 8, 2, components=3)
  with pytest.raises(ValueError, match='components=0'):
    torch_weights.from_torch({}, cfg, fresh[2])
