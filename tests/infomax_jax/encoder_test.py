"""Encoders against the authors' activations, and what a user may do wrong."""

import functools

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from infomax_jax import config, encoder, layout, lowering, norm
from tests.infomax_jax import golden


@pytest.fixture(scope='module', params=golden.NAMES)
def case(request):
  return golden.case(request.param)


def test_features_with_running_statistics(case):
  def apply(x):
    return case.encoder.apply(
      case.weights.encoder, x, capture_intermediates=True
    )

  apply = jax.jit(apply)
  for view, x in (('x1', case.x1), ('x2', case.x2)):
    features, state = apply(x)
    for name in ('r1', 'r5', 'r7'):
      got = golden.nchw(getattr(features, name))
      want = case.arrays[f'eval/{name}_{view}']
      np.testing.assert_allclose(got, want, atol=1e-5)
    if view == 'x1':
      acts = state['intermediates']
      for i in range(len(case.cfg.layers)):
        if f'layer{i}' in acts:
          got = golden.nchw(nn.relu(acts[f'layer{i}']['__call__'][0]))
          want = np.maximum(case.arrays[f'eval/act{i}_x1'], 0)
          np.testing.assert_allclose(got, want, atol=1e-5, err_msg=str(i))


def test_taps_are_those_of_the_authors(case):
  taps = layout.taps(case.cfg.layers)
  assert [taps[1], taps[5], taps[7]] == case.arrays['dim2layer'].tolist()


def test_one_after_the_other_is_the_same_as_together():
  """Two calls in training mode, and one with both views."""
  case = golden.case('enc32_bn')

  @jax.jit
  def apart(variables):
    features = []
    for x in (case.x1, case.x2):
      out, updates = case.encoder.apply(
        variables, x, train=True, mutable=['batch_stats']
      )
      variables = variables | updates
      features.append(out)
    return *features, variables['batch_stats']

  together = lambda v: encoder.encode_views(case.encoder, v, case.x1, case.x2)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
    apart(case.weights.encoder),
    jax.jit(together)(case.weights.encoder),
  )


# Counted from the authors' formula: the trunk, and the trunk with both heads.
COUNTS = {
  'imagenet_small': (194.25, 208.42),
  'imagenet_medium': (400.91, 426.09),
  'imagenet_large': (626.41, 665.75),
  'cifar_small': (27.76, 31.96),
  'cifar_large': (111.03, 127.82),
  'cifar_text': (153.82, 163.65),
  'stl10': (193.91, 208.08),
}


@pytest.mark.parametrize('name', COUNTS)
def test_published_sizes_have_as_many_parameters(name):
  cfg = config.PUBLISHED[name]
  x = jnp.zeros((1, cfg.image_size, cfg.image_size, 3))
  init = encoder.Encoder(cfg).init
  params = nn.unbox(jax.eval_shape(init, jax.random.key(0), x))['params']
  count = lambda tree: sum(p.size for p in jax.tree.leaves(tree)) / 1e6
  trunk = {k: v for k, v in params.items() if k.startswith('layer')}
  assert (round(count(trunk), 2), round(count(params), 2)) == COUNTS[name]


def test_a_fresh_encoder_starts_as_the_authors_do():
  """Bounds and zeros as in the state their training starts from."""
  case = golden.case('enc32_init')
  init = jax.jit(case.encoder.init)
  fresh = nn.unbox(init(jax.random.key(1), jnp.asarray(case.x1[:1])))
  ours = golden.encoder_arrays(case, fresh)
  for key, want in golden.part(case.arrays, 'sd/encoder.module.').items():
    got = ours[key]
    if key.endswith('running_mean'):
      continue  # Theirs holds traces of a pass of zeros, see norm.BatchNorm.
    if key.endswith(('conv1.weight', 'conv.weight', 'bias')) and want.any():
      limit = np.abs(want).max()
      np.testing.assert_allclose(np.abs(got).max(), limit, rtol=0.35)
      assert len(np.unique(got)) > got.size // 2
    elif key.endswith('shortcut.weight'):
      eye = np.eye(*want.shape[:2], dtype=bool)[..., None, None]
      np.testing.assert_array_equal(got[eye], 1)
      off = np.abs(got[~eye])
      assert 0.008 < off.max() <= 0.01 and 0.004 < off.mean() < 0.006
    else:
      np.testing.assert_allclose(got, want, rtol=1e-6, err_msg=key)


def test_stacked_layers_are_drawn_one_by_one():
  cfg = config.EncoderConfig(32, 2, 8, 3)
  init = jax.jit(encoder.Encoder(cfg).init)
  params = nn.unbox(init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
  kernels = params['params']['layer5']['rest']['conv1']['kernel']
  assert kernels.shape == (2, 1, 1, 8, 8)
  assert not np.isin(kernels[0], kernels[1]).any()
  np.testing.assert_allclose(np.abs(kernels).max(), 8**-0.5, rtol=0.1)


@pytest.mark.parametrize(
  ('size', 'stem', 'said'),
  [
    (40, 'auto', '38, 18, 8, 4 rows. The nearest sizes that do are 38 and 39'),
    (96, 'plain', '94, 46, 22, 10, 5 rows'),
    (224, 'auto', '110, 54, 26, 12, 6 rows'),
    (3, 'auto', 'image_size 3 has no 7x7 map'),
  ],
)
def test_sizes_without_the_maps_are_refused(size, stem, said):
  with pytest.raises(ValueError, match=said):
    config.EncoderConfig(size, 2, 64, 2, stem=stem)


@pytest.mark.parametrize(
  ('size', 'kwargs'),
  [
    (33, {}),
    (71, {'remat': True, 'unroll': 2}),
    (64, {'stem': 'strided', 'channels': 5}),
    (256, {}),
    (9, {'components': 3, 'output_norm': False}),
  ],
)
def test_other_sizes_have_the_maps(size, kwargs):
  cfg = config.EncoderConfig(size, 2, 48, 3, **kwargs)
  x = jnp.zeros((4, size, size, cfg.channels))
  module = encoder.Encoder(cfg)
  variables = jax.eval_shape(module.init, jax.random.key(0), x[:1])
  apply = lambda v: encoder.encode_views(module, v, x[:2], x[2:])[0]
  features = jax.eval_shape(apply, nn.unbox(variables))
  shapes = [(2, 48), (2, 5, 5, 48), (2, 7, 7, 48)]
  shapes += [(2, 3, 48)] * bool(cfg.components)
  assert [y.shape for y in jax.tree.leaves(features)] == shapes


def test_what_does_not_fit_is_told():
  cfg = config.EncoderConfig(32, 2, 8, 2)
  module = encoder.Encoder(cfg)
  with pytest.raises(ValueError, match='must be at least the 16 channels'):
    config.EncoderConfig(64, 2, 8, 2)
  with pytest.raises(ValueError, match='tile 4 and use_bn'):
    config.EncoderConfig(32, 2, 8, 2, use_bn=True, tile=4)
  with pytest.raises(ValueError, match=r'\(32, 32, 3\), got \(32, 32, 1\)'):
    module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
  with pytest.raises(ValueError, match='one image has no statistics'):
    one = jnp.zeros((1, 32, 32, 3))
    jax.eval_shape(lambda: module.init(jax.random.key(0), one, train=True))


def test_half_precision_is_near_and_ends_in_float32():
  exact = golden.case('enc32')
  half = golden.case('enc32', dtype='bfloat16')
  variables = exact.weights.encoder
  apply = jax.jit(half.encoder.apply, static_argnames='train')
  features = apply(variables, half.x1)
  for name in ('r1', 'r5', 'r7'):
    got = getattr(features, name)
    want = golden.nchw(got) * 0 + exact.arrays[f'eval/{name}_x1']
    assert got.dtype == jnp.float32
    error = golden.nchw(got) - want
    assert 1e-5 < np.abs(error).mean() < 0.02 * np.abs(want).mean()
  fresh = jax.eval_shape(half.encoder.init, jax.random.key(0), half.x1)
  assert {x.dtype for x in jax.tree.leaves(fresh)} == {jnp.dtype('float32')}


@pytest.mark.parametrize(
  ('rows', 'width', 'stride'),
  [(5, 1, 1), (11, 4, 2), (7, 2, 2), (7, 3, 1), (8, 5, 2), (30, 4, 2)],
)
def test_lowerings_agree(rows, width, stride):
  keys = jax.random.split(jax.random.key(0), 2)
  x = jax.random.normal(keys[0], (2, rows, rows, 16))
  kernel = jax.random.normal(keys[1], (width, width, 16, 4))

  def plain(x, kernel):
    layout = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(
      x, kernel, (stride,) * 2, 'VALID', dimension_numbers=layout
    )

  @jax.jit
  def outputs(x, kernel):
    ways = [plain]
    for name in ('native', 'auto', 'matmul'):
      ways.append(
        lambda x, kernel, n=name: lowering.convolve(x, kernel, stride, n)
      )
    if lowering.folds(width, stride, 'auto'):
      ways.append(
        lambda x, kernel: lowering.convolve(
          lowering.fold(x, width, stride), kernel, stride, folded=True
        )
      )
    maps = []
    for way in ways:
      y, pull = jax.vjp(way, x, kernel)
      maps.append((y, *pull(jnp.sin(y))))
    if width % stride:
      return maps, None, None
    want = nn.avg_pool(x, (width,) * 2, (stride,) * 2)
    means = [lowering.average_pool(x, width, stride)]
    if stride > 1:
      parts = lowering.fold(x, width, stride)
      means.append(lowering.average_pool(parts, width, stride, folded=True))
    return maps, want, means

  (want, *others), pooled, means = outputs(x, kernel)
  for got in others:  # The map, and the gradients of input and kernel.
    for a, b in zip(got, want, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
  for mean in means or ():
    np.testing.assert_allclose(mean, pooled, atol=1e-6)


def test_statistics_are_those_of_torch():
  """Float64 by hand: unbiased running variance, views apart and in order."""
  x = np.random.default_rng(0).normal(2, 3, (6, 2, 2, 4)).astype('f')
  module = norm.BatchNorm(initial_var=0.81)

  @jax.jit
  def run(x):
    variables = nn.unbox(module.init(jax.random.key(0), x, True, 2))
    return module.apply(variables, x, True, 2, mutable=['batch_stats'])

  y, updates = run(x)
  mean, var = np.zeros(4), np.full(4, 0.81)
  for view in range(2):
    part = x[view::2].astype(np.float64).reshape(-1, 4)
    want = (part - part.mean(0)) / np.sqrt(part.var(0) + 1e-5)
    np.testing.assert_allclose(y[view::2].reshape(-1, 4), want, atol=1e-5)
    mean = 0.9 * mean + 0.1 * part.mean(0)
    var = 0.9 * var + 0.1 * part.var(0, ddof=1)
  stats = updates['batch_stats']
  np.testing.assert_allclose(stats['mean'], mean, rtol=1e-5)
  np.testing.assert_allclose(stats['var'], var, rtol=1e-5)


IMAGES = np.random.default_rng(0).standard_normal((2, 8, 16, 16, 3)).astype('f')


def passed(cfg, chunks):
  """Loss, features, statistics and gradient of a training pass."""
  model = encoder.Encoder(cfg)
  made = nn.unbox(jax.jit(model.init)(jax.random.key(0), IMAGES[0, :2]))
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: x + 0.05 * rng.standard_normal(x.shape).astype('f'),
    made['params'],
  )

  def loss(params):
    variables = made | {'params': params}
    *both, stats = encoder.encode_views(model, variables, *IMAGES, chunks)
    # Every image meets every other, as negatives do.
    meet = lambda x: jnp.square(jnp.einsum('...c->c', jnp.sin(x))).mean()
    return sum(map(meet, jax.tree.leaves(both))), (both, stats)

  return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def test_parts_of_a_batch_change_nothing_but_rounding():
  """Chunks that are encoded twice, and tiles within them."""
  (loss, aux), grads = passed(config.EncoderConfig(16, 4, 8, 2), 1)
  tiled = config.EncoderConfig(16, 4, 8, 2, tile=3)
  (got_loss, got), got_grads = passed(tiled, 2)
  np.testing.assert_allclose(got_loss, loss, rtol=1e-4)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  jax.tree.map(close, got, aux)
  paths, _ = jax.tree.flatten_with_path(grads)
  for (path, b), a in zip(paths, jax.tree.leaves(got_grads), strict=True):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if name.endswith('shortcut/bias'):  # In front of a norm: only rounding.
      continue
    limit = 1e-3 * np.abs(b).max() + 1e-5
    np.testing.assert_allclose(a, b, atol=limit, err_msg=name)


@pytest.mark.full
def test_norms_inside_are_of_each_chunk():
  cfg = config.EncoderConfig(16, 4, 8, 2, use_bn=True, output_norm=False)
  model = encoder.Encoder(cfg)
  variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), IMAGES[0, :2]))
  run = jax.jit(
    functools.partial(encoder.encode_views, model), static_argnums=3
  )
  *got, got_stats = run(variables, *IMAGES, 2)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  for i in range(2):
    *want, stats = run(variables, *IMAGES[:, i::2], 1)
    variables = variables | {'batch_stats': stats}
    jax.tree.map(close, jax.tree.map(lambda x, i=i: x[i::2], got), want)
  jax.tree.map(close, got_stats, stats)
