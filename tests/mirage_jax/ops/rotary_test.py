"""The kernel of norms and rotary positions, interpreted, against plain JAX."""

import functools

import jax
from jax import numpy as jnp
from jax.experimental.pallas import tpu as pltpu
import numpy as np
import pytest

from mirage_jax import heads, rope
from mirage_jax.ops import rotary
from mirage_jax.ops.attention.layout import Layout
from mirage_jax.ops.rotary import tpu

DIM, HEADS = 128, 2


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr(tpu, 'BLOCK', 32)


def draw(batch, length, dtype=jnp.float32, samples=1):
  """A projection, weights, frequencies, positions and a weighting."""
  rng = np.random.default_rng(length)
  normal = lambda *shape: rng.standard_normal(shape, np.float32)
  return (
    jnp.asarray(normal(batch, length, 3, HEADS, DIM), dtype),
    1 + 0.3 * normal(2, DIM),
    normal(3, HEADS, DIM // 2),
    normal(samples, length, 3),
    normal(3, batch, length, HEADS, DIM),
  )


def plain(qkv, weights, tables):
  found = []
  for i, weight in enumerate(weights):
    norm = heads.HeadNorm((HEADS, DIM))
    x = norm.apply({'params': {'scale': weight}}, qkv[:, :, i])
    found.append(rope.apply_rotary(x, tables))
  return [*found, qkv[:, :, 2]]


def fused(qkv, weights, tables, interpret=True, **options):
  return rotary.turned(
    qkv,
    weights,
    tables.turns,
    tables.positions,
    tables.frequencies,
    eps=heads.QK_EPS,
    interpret=interpret,
    **options,
  )


def outputs(run, qkv, weights, frequencies, positions, mix):
  """Queries, keys, values and the gradients of all that has one."""

  def loss(qkv, weights, frequencies):
    tables = rope.rotary_tables(frequencies, positions)
    parts = [x.astype(jnp.float32) for x in run(qkv, weights, tables)]
    return sum(jnp.sum(x * w) for x, w in zip(parts, mix, strict=True)), parts

  grad = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
  (_, parts), grads = jax.jit(grad)(qkv, weights, frequencies)
  return [*parts, *grads]


def compare(got, want, tolerance):
  for name, a, b in zip('qkv', got[:3], want[:3], strict=True):
    np.testing.assert_allclose(a, b, atol=tolerance, err_msg=name)
  names = ('projection', 'weights', 'frequencies')
  for name, a, b in zip(names, got[3:], want[3:], strict=True):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    most = tolerance * np.abs(b).max()
    np.testing.assert_allclose(a, b, atol=most, err_msg=name)


# One block, blocks for two cores, and a last one that is cut off.
@pytest.mark.parametrize('length', [16, 64, 75, 100])
@pytest.mark.parametrize('samples', [1, 2])
def test_as_plain_jax(length, samples):
  args = draw(2, length, samples=samples)
  compare(outputs(fused, *args), outputs(plain, *args), 1e-5)


def test_bfloat16_is_rounded_where_plain_jax_does():
  args = draw(1, 75, jnp.bfloat16)
  got, want = outputs(fused, *args), outputs(plain, *args)
  # One number in 256, after sums in another order.
  compare(got, want, 2**-6)
  equal = np.mean(np.asarray(got[0]) == np.asarray(want[0]))
  assert equal > 0.99


def test_has_no_races():
  run = functools.partial(
    fused, interpret=pltpu.InterpretParams(detect_races=True)
  )
  args = draw(2, 75)
  compare(outputs(run, *args), outputs(plain, *args), 1e-5)


@pytest.mark.parametrize('samples', [1, 2])
def test_on_a_mesh(samples):
  mesh = jax.make_mesh((2, 2, 2), ('fsdp', 'context', 'tensor'))
  layout = Layout.of(
    mesh.shape, (('fsdp',), ('context',), ('tensor',)), 'ulysses', 1
  )
  args = draw(2, 150, samples=samples)
  want = outputs(plain, *args)
  auto = (jax.sharding.AxisType.Auto,) * 3
  mesh = jax.make_mesh((2, 2, 2), mesh.axis_names, axis_types=auto)
  with jax.set_mesh(mesh):
    got = outputs(functools.partial(fused, layout=layout), *args)
  compare(got, want, 1e-5)
