"""The GPU kernels, interpreted, against the reference; and cuDNN's lengths."""

import functools

import jax
from jax import numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh
import numpy as np
import pytest

from mirage_jax.ops.attention import attention, gpu_blocks, gpu_forward
from tests.mirage_jax.ops.attention_parallel_test import compare, draw as parts
from tests.mirage_jax.ops.attention_tpu_test import (
  check,
  draw,
  expected,
  outputs,
  streams,
)

SMALL = gpu_blocks.Plan(
  gpu_blocks.Blocks(32, 64, 4, 2),
  gpu_blocks.Blocks(64, 32, 4, 2),
  gpu_blocks.Blocks(32, 16, 4, 2),
)


@pytest.fixture
def small_blocks(monkeypatch):
  """So that few tokens make several of them, of float32, too."""
  monkeypatch.setattr(gpu_blocks, 'plan', lambda dim, itemsize: SMALL)


def against_reference(
  shape, masked, dtype, sizes=(1.0,), name='gpu_interpret', gone=jnp.nan
):
  """`sizes` scale q, and so the scores; `gone` is what is masked."""
  run = outputs(functools.partial(attention, implementation=name))
  mask = streams(shape[0], shape[2], sum(shape)) if masked else None
  for size in sizes:
    q, k, v, w = draw(shape, dtype, sum(shape))
    args = [q * jnp.asarray(size, dtype), k, v, w]
    want = expected(args, mask)
    if masked:
      keep = mask[:, :, None, None]
      args[1:3] = (jnp.where(keep, x, gone).astype(dtype) for x in (k, v))
    got = run(*args, mask)
    assert got['out'].dtype == dtype and got['dk'].dtype == dtype
    check(got, want, dtype)
    again = run(*args, mask)
    for part, value in got.items():
      np.testing.assert_array_equal(value, again[part], err_msg=part)


@pytest.mark.usefixtures('small_blocks')
def test_ragged_streams_of_any_size_of_scores():
  against_reference((2, 70, 130, 2, 64), True, jnp.float32, sizes=(1.0, 12.0))


@pytest.mark.full
@pytest.mark.usefixtures('small_blocks')
@pytest.mark.parametrize(
  ('shape', 'masked', 'dtype'),
  [
    ((1, 128, 128, 2, 64), False, 'float32'),  # Nothing but whole blocks.
    ((3, 40, 33, 1, 128), True, 'bfloat16'),
    ((2, 1, 200, 2, 64), False, 'bfloat16'),
    ((2, 97, 3, 1, 256), False, 'float32'),
  ],
)
def test_drawn_shapes(shape, masked, dtype):
  against_reference(shape, masked, jnp.dtype(dtype))


@pytest.mark.full
@pytest.mark.parametrize('dim', [64, 128, 256])
@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_the_blocks_of_each_head_size(dim, dtype):
  against_reference((2, 150, 290, 1, dim), True, jnp.dtype(dtype))


@pytest.mark.full
@pytest.mark.parametrize('way', ['ring', 'both'])
def test_on_many_devices(way):
  some, mask = parts(heads=2, dim=64)
  compare((2, 1, 4, 1), way, 'gpu_interpret', some, mask)


@pytest.mark.parametrize('size', [1, 4, 16])
def test_tables_have_the_blocks_with_keys_the_whole_ones_first(size):
  used = np.ones((4, 50), bool)
  used[1, 13:31] = used[2] = False
  used[3] = np.random.default_rng(size).random(50) < 0.8
  for mask in (used, None):
    table = gpu_forward.tables(mask, 4, 50, size)
    for i, row in enumerate(np.asarray(table)):
      sample = np.ones(50, bool) if mask is None else mask[i]
      blocks = [sample[at : at + size] for at in range(0, 50, size)]
      whole = [j for j, b in enumerate(blocks) if b.all() and len(b) == size]
      some = [j for j, b in enumerate(blocks) if b.any() and j not in whole]
      assert row[2 : row[0] + 2].tolist() == whole
      assert row[row[0] + 2 : row[1] + 2].tolist() == some


def test_cudnn_gets_used_keys_first_and_their_number(monkeypatch):
  """Its attention is XLA's here; it would know no mask."""
  plain, calls = jax.nn.dot_product_attention, []

  def fake(*args, implementation, **options):
    calls.append((implementation, sorted(options)))
    return plain(*args, implementation='xla', **options)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', fake)
  against_reference((3, 5, 40, 1, 8), True, jnp.bfloat16, name='cudnn', gone=9)
  assert calls[0] == ('cudnn', ['key_value_seq_lengths'])


def test_lowers_for_a_gpu_without_one():
  x = jax.ShapeDtypeStruct((2, 300, 3, 64), jnp.bfloat16)
  mask = jax.ShapeDtypeStruct((2, 300), jnp.bool_)

  def loss(q, k, v, mask):
    out = attention(q, k, v, mask, implementation='gpu')
    return jnp.sum(out.astype(jnp.float32) ** 2)

  device = AbstractDevice('NVIDIA H100 80GB HBM3', 132, 'gpu')
  custom_call = jax.export.DisabledSafetyCheck.custom_call
  with jax.sharding.use_abstract_mesh(
    AbstractMesh((1,), ('x',), abstract_device=device)
  ):
    exported = jax.export.export(
      jax.jit(jax.grad(loss, (0, 1, 2))),
      platforms=('cuda',),
      disabled_checks=[custom_call('__gpu$xla.gpu.triton')],
    )(x, x, x, mask)
  assert exported.platforms == ('cuda',)
  text = exported.mlir_module()
  for name in ('attention_forward', 'attention_queries', 'attention_keys'):
    assert f'name = "{name}"' in text, name


def test_what_is_not_supported_names_what_does():
  run = lambda *x, name='gpu_interpret': attention(*x, implementation=name)
  q, k, v, _ = draw((1, 8, 8, 1, 192), jnp.float32)
  with pytest.raises(ValueError, match="64, 128, 256.*not 192; 'recompute'"):
    run(q, k, v)
  q, k, v, _ = draw((1, 8, 8, 1, 64), jnp.float32)
  with pytest.raises(ValueError, match="k is float16; 'reference'"):
    run(q, k.astype(jnp.float16), v)
  with pytest.raises(ValueError, match="'cpu'.*'gpu_interpret'"):
    run(q, k, v, name='gpu')
  with pytest.raises(ValueError, match="eights, not bfloat16 and 12; 'dot_pr"):
    run(*(x.astype(jnp.bfloat16)[..., :12] for x in (q, k, v)), name='cudnn')
