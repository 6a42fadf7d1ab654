"""The TPU kernels, interpreted, against the reference in float32."""

import dataclasses

import jax
from jax import numpy as jnp
from jax.experimental.pallas import tpu as pltpu
import numpy as np
import pytest

from mirage_jax.ops.attention import attention, reference, tpu, tpu_blocks

SMALL = tpu_blocks.Blocks(128, 128, 128)
TURNED = dataclasses.replace(SMALL, k=256, transposed=True)
# Queries in parts of 256 and 128.
WIDE = dataclasses.replace(TURNED, q=384, sub=256, wide=True)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  """Blocks of 128, so that few tokens make several of them."""
  chips = {
    'small': tpu_blocks.Chip(128, SMALL, SMALL),
    'turned': tpu_blocks.Chip(128, TURNED, TURNED),
    'wide': tpu_blocks.Chip(128, TURNED, WIDE),
  }
  monkeypatch.setattr(tpu_blocks, 'CHIPS', {**tpu_blocks.CHIPS, **chips})


def draw(shape, dtype, seed=0):
  """q, k, v and a weighting of the output."""
  batch, rows, keys, heads, dim = shape
  rng = np.random.default_rng(seed)
  shapes = [(batch, n, heads, dim) for n in (rows, keys, keys, rows)]
  return [
    jnp.asarray(rng.standard_normal(s, np.float32), dtype) for s in shapes
  ]


def streams(batch, keys, seed=0):
  """Ragged ends of two streams, the last sample without any key."""
  rng = np.random.default_rng(seed)
  cut, place = keys // 2, np.arange(keys)
  first = place < rng.integers(1, cut, (batch, 1))
  second = (place >= cut) & (place < rng.integers(cut, keys, (batch, 1)))
  mask = first | second
  mask[-1] = False
  return mask


def outputs(run):
  def weighted(q, k, v, w, mask):
    out = run(q, k, v, mask)
    return jnp.sum((out * w).astype(jnp.float32)), out

  grad = jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True)

  @jax.jit
  def named(*args):
    (_, out), grads = grad(*args)
    return dict(zip(('out', 'dq', 'dk', 'dv'), (out, *grads), strict=True))

  return named


def kernels(chip, interpret=True):
  return outputs(
    lambda *args: tpu.attention(*args, chip=chip, interpret=interpret)
  )


def expected(args, mask):
  args = [x.astype(jnp.float32) for x in args]
  with jax.default_matmul_precision('float32'):
    return outputs(reference.attention)(*args, mask)


def check(got, want, dtype):
  # bfloat16 rounds weights, scores' gradients and results: 2 ** -8 each, and
  # the rest of a sum that cancels is compared with its largest terms. float32
  # rounds a score of 200 to 2 ** -17.
  tolerance = 2**-6 if dtype == jnp.bfloat16 else 1e-5
  for name, value in want.items():
    assert np.isfinite(np.asarray(got[name], np.float32)).all(), name
    np.testing.assert_allclose(
      np.asarray(got[name], np.float32),
      value,
      atol=tolerance * float(jnp.abs(value).max()),
      err_msg=name,
    )


def compare(chip, shape, masked, dtype, sizes=(1.0,), seed=0):
  """`sizes` scale q: the first is bounded, 12 needs the running maximum."""
  run = kernels(chip)
  mask = streams(shape[0], shape[2], seed) if masked else None
  for size in sizes:
    q, *rest = draw(shape, dtype, seed)
    args = (q * jnp.asarray(size, dtype), *rest)
    bound = tpu._largest_score(*(jnp.swapaxes(x, 1, 2) for x in args[:2]))
    scale = np.log2(np.e) * shape[-1] ** -0.5
    assert (bound * scale <= tpu.BOUND).all() == (size == 1)
    got = run(*args, mask)
    assert got['out'].dtype == dtype and got['dk'].dtype == dtype
    check(got, expected(args, mask), dtype)
    again = run(*args, mask)
    for name, value in got.items():
      np.testing.assert_array_equal(value, again[name], err_msg=name)


def test_ragged_streams_of_any_size_of_scores():
  compare('small', (2, 300, 350, 1, 64), True, jnp.float32, sizes=(1.0, 12.0))


def test_bfloat16_and_sums_turned_round():
  compare('turned', (1, 200, 300, 1, 64), False, jnp.bfloat16)


def test_what_a_wide_unit_takes_beside_scores():
  sizes = (1.0, 12.0)
  compare('wide', (2, 700, 350, 1, 128), True, jnp.float32, sizes=sizes)


@pytest.mark.full
@pytest.mark.parametrize('chip', ['small', 'turned', 'wide'])
@pytest.mark.parametrize(
  ('shape', 'masked', 'dtype'),
  [
    ((2, 100, 700, 2, 128), True, 'bfloat16'),
    ((1, 520, 130, 2, 192), False, 'float32'),
    ((3, 384, 256, 1, 256), True, 'float32'),
    ((2, 1, 640, 3, 64), True, 'bfloat16'),
  ],
)
def test_drawn_shapes(chip, shape, masked, dtype):
  # Scores of 200 are off by 1 if a factor of theirs is rounded to bfloat16.
  sizes = (1.0,) if dtype == 'bfloat16' else (1.0, 12.0)
  compare(chip, shape, masked, jnp.dtype(dtype), sizes, seed=sum(shape))


@pytest.mark.full
@pytest.mark.filterwarnings('ignore')  # of the interpreter's own callbacks
@pytest.mark.parametrize(
  ('rows', 'chip', 'dim'),
  [(130, 'small', 64), (400, 'small', 64), (600, 'wide', 128)],
)
def test_no_races(rows, chip, dim, capfd):
  shape = (2, rows, 300, 2, dim)
  params = pltpu.InterpretParams(
    detect_races=True, uninitialized_memory='nan', num_cores_or_threads=2
  )
  args, mask = draw(shape, jnp.float32), streams(2, 300)
  got = kernels(chip, params)(*args, mask)
  check(got, expected(args, mask), jnp.float32)
  assert 'RACE DETECTED' not in capfd.readouterr().out  # As it reports them.


def test_what_is_not_supported_names_what_does():
  q, k, v, _ = draw((1, 8, 8, 1, 80), jnp.float32)
  run = lambda *x: attention(*x, implementation='tpu_interpret')
  with pytest.raises(ValueError, match="not 80; 'recompute'"):
    run(q, k, v)
  q, k, v, _ = draw((1, 8, 8, 1, 64), jnp.float32)
  with pytest.raises(ValueError, match="k is float16; 'reference'"):
    run(q, k.astype(jnp.float16), v)
  with pytest.raises(ValueError, match="'cpu'.*'tpu_interpret'"):
    attention(q, k, v, implementation='tpu')
  with pytest.raises(ValueError, match="'cudnn'.*float32 and 64; 'dot_prod"):
    attention(q, k, v, implementation='cudnn')


@pytest.mark.parametrize('chip', ['v5e', 'v5p', 'v6e', 'tpu7x'])
@pytest.mark.parametrize('tokens', [1, 600, 4096, 24000, 76056])
def test_blocks_divide_little_padding(chip, tokens):
  plan = tpu_blocks.plan(chip, tokens, tokens, 128, 2)
  unit = tpu_blocks.CHIPS[chip].unit
  assert tokens <= plan.rows < tokens + unit + 0.03 * tokens
  for blocks in (plan.forward, plan.backward):
    assert plan.rows % blocks.q == 0 and plan.keys % blocks.k == 0
    assert blocks.sub % unit == 0
    if blocks.wide:
      assert blocks.sub <= min(blocks.q, 512)
    else:
      assert blocks.k % blocks.sub == 0
    if tokens > 20000:
      assert min(blocks.q, blocks.k) >= 640
