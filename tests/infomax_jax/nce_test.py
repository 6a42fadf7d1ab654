"""The NCE against the authors', float64, and what may be in memory."""

import re

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import numpy as np
import pytest
import scipy.special

from infomax_jax import nce
from tests.infomax_jax import golden


@pytest.mark.parametrize('block', [256, 2])
@pytest.mark.parametrize('kind', ['small', 'mid', 'clip'])
def test_values_and_gradients_are_the_authors(kind, block):
  want = golden.part(golden.load('nce'), f'{kind}/')
  sources = want['src'].astype('f')[:, None]
  targets = want['trg'].T.reshape(5, 9, 16).astype('f')

  def loss(sources, targets):
    scores = nce.score(sources, targets, block=block)
    reg = 5e-2 * scores.mean_square[0]
    return reg - scores.log_softmax.mean(), (scores, reg)

  run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
  (value, (scores, reg)), grads = run(sources, targets)
  close = lambda got, want: np.testing.assert_allclose(got, want, atol=1e-5)
  close(scores.log_softmax[:, 0], want['logsoftmax'])
  close(scores.positive[:, 0], want['pos'])
  np.testing.assert_allclose(reg, want['reg'], rtol=1e-5)
  np.testing.assert_allclose(value, want['loss'], rtol=2e-6)
  grads = grads[0][:, 0], grads[1].reshape(45, 16).T
  for got, name in zip(grads, ('g_src', 'g_trg'), strict=True):
    limit = 1e-4 * np.abs(want[name]).max()
    np.testing.assert_allclose(got, want[name], atol=limit)


@pytest.mark.parametrize('name', golden.NAMES)
def test_every_term_of_a_step_is_the_authors(name):
  """From the features that theirs had, sources of one grid in one pass."""
  arrays = golden.load(name)
  features = {
    key: golden.nhwc(x) for key, x in golden.part(arrays, 'train/').items()
  }
  score = jax.jit(nce.score)
  for way, one, two in (('a', 'x1', 'x2'), ('b', 'x2', 'x1')):
    batch, index = len(arrays['loc1']), arrays[f'loc{one[1]}']
    r1 = features[f'r1_{one}'][:, 0, 0]
    r5 = features[f'r5_{one}'].reshape(batch, 25, -1)[range(batch), index]
    for grid, sources in (('5', [r1, r5]), ('7', [r1])):
      targets = features[f'r{grid}_{two}'].reshape(batch, -1, r1.shape[-1])
      scores = score(np.stack(sources, 1), targets)
      for k, task in enumerate([f'1t{grid}', '5t5'][: len(sources)]):
        want = golden.part(arrays, f'nce/{task}_{way}/')
        got = scores.log_softmax[:, k], scores.positive[:, k]
        np.testing.assert_allclose(got[0], want['logsoftmax'], atol=1e-5)
        np.testing.assert_allclose(got[1], want['pos'], atol=1e-5)
        reg = 5e-2 * scores.mean_square[k]
        np.testing.assert_allclose(reg, want['reg'], rtol=1e-5)


@pytest.mark.parametrize('clip', [None, 3.0, 60.0])
def test_other_clips_against_float64(clip):
  rng = np.random.default_rng(0)
  sources, targets = rng.normal(size=(4, 2, 8)), rng.normal(size=(4, 3, 8))
  # Far below any clip, where exp(score - clip) is no longer a float32.
  sources, targets = -60 * np.abs(sources), np.abs(targets)
  raw = np.einsum('ikc,jlc->ikjl', sources, targets) / np.sqrt(8)
  scores = raw if clip is None else clip * np.tanh(raw / clip)
  want = np.zeros((4, 2, 3))
  for i in range(4):
    others = np.delete(scores[i], i, axis=1).reshape(2, 1, -1)
    own = scores[i, :, i, :, None]
    rest = np.broadcast_to(others, (2, 3, 9))
    total = scipy.special.logsumexp(np.concatenate([own, rest], -1), -1)
    want[i] = own[..., 0] - total
  run = jax.jit(lambda a, b: nce.score(a, b, clip=clip))
  got = run(sources.astype('f'), targets.astype('f'))
  np.testing.assert_allclose(got.log_softmax, want, atol=1e-4)
  squares = np.square(raw).mean((0, 2, 3))
  np.testing.assert_allclose(got.mean_square, squares, rtol=1e-5)


def test_half_precision_stays_near_and_sums_in_float32():
  keys = jax.random.split(jax.random.key(0), 2)
  sources = jax.random.normal(keys[0], (8, 1, 16))
  targets = jax.random.normal(keys[1], (8, 25, 16))
  run = jax.jit(nce.score, static_argnames='dtype')
  half = run(sources, targets, dtype='bfloat16')
  assert half.log_softmax.dtype == half.positive.dtype == jnp.float32
  error = half.log_softmax - run(sources, targets).log_softmax
  assert 1e-5 < jnp.abs(error).max() < 0.03


def test_what_does_not_fit_is_told():
  x = jnp.zeros((2, 1, 4))
  with pytest.raises(ValueError, match='differ in B or C'):
    nce.score(x, jnp.zeros((2, 25, 5)))
  with pytest.raises(ValueError, match='one image has no negatives'):
    nce.score(x[:1], jnp.zeros((1, 25, 4)))


def compiled(batch, positions, dim, block, sharding=None):
  """The gradient of a loss of scores, compiled."""

  def loss(sources, targets):
    scores = nce.score(sources, targets, block=block)
    return scores.mean_square.sum() - scores.log_softmax.mean()

  shapes = (batch, 1, dim), (batch, positions, dim)
  args = [jax.ShapeDtypeStruct(s, 'f', sharding=sharding) for s in shapes]
  return jax.jit(jax.grad(loss, (0, 1))).lower(*args).compile()


def test_the_table_of_all_scores_never_exists():
  """Blocks of 4 sources out of 128; the table would be 3.2 MB."""
  table = 128 * 128 * 49 * 4
  memory = lambda block: (
    compiled(128, 49, 4, block).memory_analysis().temp_size_in_bytes
  )
  assert memory(4) < table / 4
  assert memory(128) > table


@pytest.mark.parametrize('block', [16, 8])
def test_over_devices_targets_stay_where_they_are(block):
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  with jax.set_mesh(mesh), nn.logical_axis_rules((('batch', 'data'),)):
    text = compiled(16, 49, 4, block, NamedSharding(mesh, P('data'))).as_text()
  moved = [
    np.prod([int(n) for n in shape.split(',') if n], dtype=int)
    for shape in re.findall(
      r'f32\[([\d,]*)\]\S* (?:all-|reduce-|collective-)', text
    )
  ]
  assert moved and max(moved) <= block * 4  # the sources of a block
