"""A batch in parts has the gradient of the whole."""

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mirage_jax import accumulate, sharding


def loss_fn(params, rows):
  """A mean over rows of something nonlinear."""
  hidden = jnp.tanh(rows['x'] @ params['first'])
  losses = jnp.mean((hidden @ params['second'] - rows['y']) ** 2, axis=-1)
  return losses.mean(), {'loss': losses, 'x': rows['x']}


@pytest.fixture
def arrays():
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape, np.float32)
  params = {'first': draw(5, 7), 'second': draw(7, 3)}
  return params, {'x': draw(16, 5), 'y': draw(16, 3)}


@pytest.mark.parametrize('count', [2, 8])
def test_equals_the_whole_batch(arrays, count):
  params, rows = arrays

  @jax.jit
  def run(params, rows):
    fn = accumulate.mean(loss_fn, rows, count)
    return jax.value_and_grad(fn, has_aux=True)(params), fn(params)

  want = jax.value_and_grad(loss_fn, has_aux=True)(params, rows)
  got, forward = run(params, rows)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), got, want)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 1e-5), forward, want[0]
  )


def test_rows_stay_on_their_devices(arrays):
  """And as many of each part on every one."""
  params, rows = arrays
  auto = jax.sharding.AxisType.Auto
  mesh = jax.make_mesh((4, 1), ('data', 'fsdp'), axis_types=(auto,) * 2)
  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.AXIS_RULES):
    rows = jax.device_put(rows, jax.P('data'))
    fn = lambda p, r: jax.grad(accumulate.mean(loss_fn, r, 2), has_aux=True)(p)
    compiled = jax.jit(fn).lower(params, rows).compile()
    got, aux = compiled(params, rows)
    with pytest.raises(ValueError, match='make batch_size a multiple of 32'):
      accumulate.mean(loss_fn, rows, 8)
    with pytest.raises(ValueError, match='accumulate=0: .*1 or more'):
      accumulate.mean(loss_fn, rows, 0)
  want, _ = jax.grad(loss_fn, has_aux=True)(*arrays)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), got, want)
  np.testing.assert_array_equal(aux['x'], arrays[1]['x'])
  text = compiled.as_text()
  assert 'all-to-all' not in text and 'collective-permute' not in text
