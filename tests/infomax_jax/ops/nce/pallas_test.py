"""The TPU kernels, interpreted: the authors' numbers, float64, any mesh."""

import functools

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from infomax_jax import config, nce, objective
from infomax_jax.encoder import Features
from infomax_jax.ops.nce import against_all, pallas_tpu, plan
from tests.infomax_jax import golden


def draw(batch, kinds, positions, dim, dtype='float32', seed=0):
  """Sources, targets and the cotangents of both sums."""
  rng = np.random.default_rng(seed)
  shapes = (batch, kinds, dim), (batch, positions, dim), (batch, kinds)
  sources, targets, g_log = (rng.normal(size=s) for s in shapes)
  # Scores up to about the clip, and some beyond it.
  sources, targets = (3 * x.astype(dtype) for x in (sources, targets))
  return sources, targets, g_log.astype('f'), rng.normal(size=kinds).astype('f')


def exact(sources, targets, g_log, g_squares, clip=20.0):
  """Both sums and the gradients of both inputs in float64."""
  s, t = (np.asarray(x, np.float64) for x in (sources, targets))
  scale = s.shape[-1] ** -0.5
  raw = np.einsum('ikc,jlc->ikjl', s, t) * scale
  ratio = np.tanh(raw / clip)
  other = ~np.eye(len(s), dtype=bool)[:, None, :, None]
  terms = np.where(other, np.exp(clip * ratio), 0)
  total = terms.sum((2, 3), keepdims=True)
  g = g_log[..., None, None] * terms / total * (1 - ratio**2)
  g = (g + 2 * g_squares[:, None, None] * raw) * scale
  return (
    np.log(total[..., 0, 0]),
    np.square(raw).sum((0, 2, 3)),
    np.einsum('ikjl,jlc->ikc', g, t),
    np.einsum('ikjl,ikc->jlc', g, s),
  )


@functools.partial(jax.jit, static_argnames=('clip', 'block', 'name'))
def sums(args, clip=20.0, block=256, name='pallas_interpret'):
  """The same four of the kernels."""
  run = functools.partial(
    against_all, clip=clip, block=block, implementation=name
  )
  out, back = jax.vjp(run, *args[:2])
  return *out, *back(args[2:])


def assert_close(got, want, limit):
  """Relative to the largest value of each array."""
  for a, b in zip(got, want, strict=True):
    a = np.asarray(a, np.float64)
    np.testing.assert_allclose(a, b, rtol=0, atol=limit * np.abs(b).max())


@pytest.fixture
def any_chunk(monkeypatch):
  """Chunks as small as tests can have them."""
  monkeypatch.setattr(plan, 'LEAST', 1)


@pytest.fixture(scope='module')
def authors_loss():
  """Compiled once for the three cases of the authors' loss."""

  def loss(sources, targets):
    scores = nce.score(sources, targets, implementation='pallas_interpret')
    reg = 5e-2 * scores.mean_square[0]
    return reg - scores.log_softmax.mean(), (scores, reg)

  return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


@pytest.mark.parametrize('kind', ['small', 'mid', 'clip'])
def test_values_and_gradients_are_the_authors(authors_loss, kind):
  want = golden.part(golden.load('nce'), f'{kind}/')
  # The kernels take 128 channels; zeros change sqrt(C) and nothing else.
  grow = np.sqrt(128 / 16)
  widen = lambda x: np.pad(x, [(0, 0)] * 2 + [(0, 112)]).astype('f')
  sources = widen(want['src'][:, None] * grow)
  targets = widen(want['trg'].T.reshape(5, 9, 16))
  (value, (scores, reg)), grads = authors_loss(sources, targets)
  np.testing.assert_allclose(
    scores.log_softmax[:, 0], want['logsoftmax'], atol=1e-5
  )
  np.testing.assert_allclose(reg, want['reg'], rtol=1e-5)
  np.testing.assert_allclose(value, want['loss'], rtol=2e-6)
  got = grow * grads[0][:, 0, :16], grads[1].reshape(45, 128).T[:16]
  assert_close(got, (want['g_src'], want['g_trg']), 1e-4)


SHAPES = [  # batch, kinds, positions, dim, dtype, clip, block
  (6, 2, 3, 256, 'float32', 20.0, 4),  # two chunks, both with filling
  (5, 1, 49, 128, 'bfloat16', 3.0, 256),
  pytest.param(2, 1, 1, 128, 'float32', 40.0, 1, marks=pytest.mark.full),
  pytest.param(24, 3, 25, 384, 'float32', 10.0, 7, marks=pytest.mark.full),
  pytest.param(130, 2, 2, 128, 'bfloat16', 20.0, 65, marks=pytest.mark.full),
  pytest.param(600, 1, 4, 128, 'float32', 5.0, 512, marks=pytest.mark.full),
]


@pytest.mark.parametrize(
  ('batch', 'kinds', 'positions', 'dim', 'dtype', 'clip', 'block'), SHAPES
)
def test_any_shape_against_float64(
  any_chunk, batch, kinds, positions, dim, dtype, clip, block
):
  args = draw(batch, kinds, positions, dim, jnp.dtype(dtype))
  got = sums(args, clip, block)
  assert [x.dtype for x in got] == ['float32'] * 2 + [dtype] * 2
  limit = 2e-6 if dtype == 'float32' else 0.01  # bfloat16: 2**-8
  assert_close(got[:2], exact(*args, clip)[:2], 2e-6)
  assert_close(got[2:], exact(*args, clip)[2:], limit)
  again = sums(args, clip, block)
  for a, b in zip(got, again, strict=True):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize('cores', [1, 2])
def test_targets_in_tiles_and_a_device_of_two_cores(monkeypatch, cores):
  """Where they do not fit into VMEM at once, and on a v5p."""
  bytes_of_tile = 16 * pallas_tpu.target_bytes(128, 4)
  monkeypatch.setattr(pallas_tpu, 'TILE_BYTES', bytes_of_tile)
  monkeypatch.setattr(plan, '_cores', lambda mesh: cores)
  args = draw(6, 1, 5, 128)
  fresh = jax.jit(lambda args: sums.__wrapped__(args))  # Traced once more.
  assert_close(fresh(args), exact(*args), 2e-6)


@pytest.mark.parametrize(
  ('shape', 'block'),
  [
    pytest.param((1,), 32, marks=pytest.mark.full),
    ((2,), 32),  # three chunks, the next one under way
    ((4, 2), 16),  # six, too many to unroll
    pytest.param((8,), 32, marks=pytest.mark.full),
    pytest.param((2, 4), 96, marks=pytest.mark.full),
    pytest.param((2, 2, 2), 48, marks=pytest.mark.full),
  ],
)
def test_the_mesh_does_not_change_sums_and_gradients(any_chunk, shape, block):
  args = draw(96, 2, 3, 128)
  axes = ('data', 'fsdp', 'third')[: len(shape)]
  mesh = jax.make_mesh(
    shape,
    axes,
    axis_types=(AxisType.Auto,) * len(shape),
    devices=jax.devices()[: np.prod(shape)],
  )
  divided = NamedSharding(mesh, P(axes))
  shardings = (divided, divided, divided, NamedSharding(mesh, P()))
  placed = jax.device_put(args, shardings)
  with jax.set_mesh(mesh), nn.logical_axis_rules((('batch', axes),)):
    got = jax.jit(functools.partial(sums.__wrapped__, block=block))(placed)
  assert_close(got, exact(*args), 2e-6)
  if len(mesh.devices) > 1:
    assert all(got[i].sharding.is_equivalent_to(divided, 3) for i in (2, 3))


@pytest.mark.full
def test_the_whole_objective_with_components_is_that_of_xla():
  rng = np.random.default_rng(0)
  shapes = (8, 128), (8, 5, 5, 128), (8, 7, 7, 128), (8, 3, 128)
  views = [
    Features(*(rng.normal(size=s).astype('f') for s in shapes))
    for _ in range(2)
  ]

  def loss(views, name):
    cfg = config.ObjectiveConfig(nce=name, temperature=2.0)
    places = objective.draw_locations(jax.random.key(0), *views, cfg)
    return objective.infomax(*views, places, cfg)[0]

  run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  (value, grads), (want, g_want) = (
    run(views, name) for name in ('pallas_interpret', 'xla')
  )
  np.testing.assert_allclose(value, want, rtol=1e-6)
  got, want = map(jax.tree.leaves, (grads, g_want))
  assert_close(got, map(np.asarray, want), 1e-5)


def racing(capfd):
  """Whether the TPU interpreter sees a race in either kernel."""
  sources, targets, g_log, _ = draw(512, 1, 1, 128)
  chunk, targets = jnp.asarray(sources[:, 0]), jnp.asarray(targets[:32, 0])
  owner = image = jnp.arange(512, dtype=jnp.int32)
  stats = jnp.stack([jnp.asarray(g_log[:, 0])] * 3)
  # Eager: a copy that nobody waits for is made, and so can be too early.
  interpret = pltpu.InterpretParams(
    detect_races=True, dma_execution_mode='eager'
  )
  common = dict(clip=20.0, interpret=interpret)
  args = chunk, targets, owner, image[:32]
  jax.block_until_ready(pallas_tpu.forward(*args, cores=2, **common))
  total = jnp.zeros((2, 32, 128))
  out = pallas_tpu.backward(*args, stats, total, **common)
  jax.block_until_ready(out)
  return 'RACE DETECTED' in capfd.readouterr().out


@pytest.mark.full
def test_no_races(capfd):
  assert not racing(capfd)


@pytest.mark.full
def test_a_race_would_be_seen(capfd, monkeypatch):
  """Of a kernel that does not wait for its copies."""
  copy = pltpu.make_async_copy

  class Hasty:
    def __init__(self, *args):
      self.start, self.wait = copy(*args).start, lambda: None

  monkeypatch.setattr(pltpu, 'make_async_copy', Hasty)
  assert racing(capfd)


def test_what_the_kernels_do_not_take_is_told():
  args = draw(4, 1, 3, 128)
  trace = lambda args, **options: jax.eval_shape(
    lambda *xs: against_all(*xs, **(dict(clip=20.0, block=4) | options)),
    *args[:2],
  )
  pallas = dict(implementation='pallas')
  with pytest.raises(ValueError, match=r"no nce 'cuda'; there are .*'pallas'"):
    trace(args, implementation='cuda')
  with pytest.raises(
    ValueError, match="clip up to 40, got None; use nce 'xla'"
  ):
    trace(args, clip=None, **pallas)
  with pytest.raises(ValueError, match="100 channels.*128; use nce 'xla'"):
    trace(draw(4, 1, 3, 100), **pallas)
  with pytest.raises(ValueError, match="float16, only.*use nce 'xla'"):
    trace(draw(4, 1, 3, 128, 'float16'), **pallas)
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  with jax.set_mesh(mesh), nn.logical_axis_rules((('batch', 'data'),)):
    with pytest.raises(ValueError, match='4 images among 8 devices'):
      trace(args, **pallas)
