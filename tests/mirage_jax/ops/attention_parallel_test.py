"""Attention on eight devices against attention on one."""

import jax
from jax import numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from mirage_jax.ops.attention import parallel, reference
from mirage_jax.ops.attention.layout import Layout

AXES = ('data', 'fsdp', 'context', 'tensor')
SPLIT = P(('data', 'fsdp'), 'context', 'tensor')
WHOLE = P(('data', 'fsdp'), None, 'tensor')


def make_mesh(*sizes):
  return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 4)


def layout(mesh, way, ring=2):
  axes = ('data', 'fsdp'), ('context',), ('tensor',)
  return Layout.of(mesh.shape, axes, way, ring)


def draw(heads=4, dim=8, queries=(16, 3, 2), keys=(16, 3, 2)):
  """q, k, v, a weighting of the output, and a mask."""
  rng = np.random.default_rng(0)
  streams = [
    [rng.standard_normal((4, n, heads, dim), np.float32) for n in lengths]
    for lengths in (queries, keys, keys, queries)
  ]
  mask = rng.random((4, sum(keys))) < 0.7
  # Keys on one device only, and none at all.
  mask[2:] = np.arange(sum(keys)) < np.array([[2], [0]])
  return streams, mask


def outputs(run):
  """Every stream's output and gradients."""

  def weighted(q, k, v, w, mask):
    out = run(q, k, v, mask)
    return sum(jnp.sum(a * b) for a, b in zip(out, w, strict=True)), out

  grad = jax.value_and_grad(weighted, (0, 1, 2), has_aux=True)

  @jax.jit
  def named(streams, mask):
    (_, out), grads = grad(*streams, mask)
    return dict(zip(('out', 'dq', 'dk', 'dv'), (out, *grads), strict=True))

  return named


def on_one(q, k, v, mask):
  """Not through `parallel`."""
  ends = np.cumsum([x.shape[1] for x in q])[:-1]
  joined = [jnp.concatenate(x, axis=1) for x in (q, k, v)]
  return jnp.split(reference.attention(*joined, mask), ends, axis=1)


def compare(sizes, way, implementation, streams, mask, split_keys=True):
  want = outputs(on_one)(streams, mask)
  mesh = make_mesh(*sizes)
  options = dict(implementation=implementation, split_keys=split_keys)
  run = lambda *args: parallel.attention(
    *args, layout=layout(mesh, way), **options
  )
  with jax.set_mesh(mesh):
    laid = [SPLIT, *[SPLIT if split_keys else WHOLE] * 2, SPLIT]
    placed = [
      jax.device_put(parts, [NamedSharding(mesh, s) for s in specs])
      for parts, first in zip(streams, laid, strict=True)
      for specs in [[first, *[WHOLE] * (len(parts) - 1)]]
    ]
    got = outputs(run)(placed, mask)
  for name, values in want.items():
    for i, value in enumerate(values):
      label = f'{name} of stream {i}'
      assert np.abs(value).max() > 0.01, label
      np.testing.assert_allclose(got[name][i], value, atol=1e-5, err_msg=label)
  for x in (got['out'][0], got['dq'][0]):
    assert x.sharding.is_equivalent_to(NamedSharding(mesh, SPLIT), x.ndim)


@pytest.mark.parametrize(
  ('sizes', 'way', 'implementation'),
  [
    ((1, 2, 4, 1), 'ulysses', 'reference'),
    pytest.param((1, 1, 4, 2), 'ring', 'recompute', marks=pytest.mark.full),
    ((2, 1, 4, 1), 'both', 'recompute'),
  ],
)
def test_equals_one_device(sizes, way, implementation):
  compare(sizes, way, implementation, *draw())


@pytest.mark.full
def test_equals_one_device_by_the_kernel():
  streams, mask = draw(heads=2, dim=64)
  compare((2, 1, 4, 1), 'both', 'tpu_interpret', streams, mask)


@pytest.mark.full
@pytest.mark.parametrize('way', ['ulysses', 'ring'])
def test_the_kernel_either_way_without_a_mask(way):
  streams, _ = draw(heads=4, dim=64, queries=(132, 5), keys=(140, 5))
  compare((2, 1, 4, 1), way, 'tpu_interpret', streams, None)


@pytest.mark.full
def test_keys_that_all_have_are_met_where_the_queries_are():
  streams, mask = draw(queries=(16,), keys=(5,))
  compare((1, 2, 2, 2), 'ulysses', 'reference', streams, mask, False)


@pytest.mark.parametrize(
  ('sizes', 'way', 'said'),
  [
    ((1, 1, 8, 1), 'ulysses', "4 heads.*'both' with model.ring=2 or.*'ring'"),
    ((1, 1, 1, 8), 'ring', "'tensor',.*of 8 devices.*4 heads; 1, 2, 4 do"),
    ((8, 1, 1, 1), 'ring', 'of 8 devices do not divide a batch of 4'),
  ],
)
def test_a_mesh_that_does_not_divide_says_what_would(sizes, way, said):
  how = layout(make_mesh(*sizes), way)
  with pytest.raises(ValueError, match=said):
    how.check((4, 16, 4, 8), 16)


def test_tokens_and_rings_that_do_not_divide():
  mesh = make_mesh(1, 1, 8, 1)
  layout(mesh, 'ring').check((4, 24, 4, 8), 16)
  with pytest.raises(ValueError, match='not divide 18 tokens; 1, 2, 3, 6, 9'):
    layout(mesh, 'ring').check((4, 24, 4, 8), 18)
  with pytest.raises(ValueError, match='model.ring=3.*1, 2, 4, 8 do'):
    layout(mesh, 'both', 3)
  streams, mask = draw()
  options = dict(implementation='dot_product', layout=layout(mesh, 'ring'))
  run = lambda *args: parallel.attention(*args, **options)
  with pytest.raises(ValueError, match="'dot_product', which.*'ulysses' works"):
    with jax.set_mesh(mesh):
      jax.eval_shape(run, *streams[:3], mask)
