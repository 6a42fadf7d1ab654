"""One entry for all implementations of attention, chosen by name."""

import functools

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from mirage_jax.ops.attention import recompute, reference


def attention(
  q: Float[Array, 'B T H D'],
  k: Float[Array, 'B S H D'],
  v: Float[Array, 'B S H D'],
  mask: Bool[Array, 'B S'] | None = None,
  *,
  implementation: str = 'reference',
) -> Float[Array, 'B T H D']:
  """Softmax attention with logits scaled by D ** -0.5.

  Args:
    q: Queries.
    k: Keys.
    v: Values.
    mask: True for keys that may be attended to; None for all. A sample with no
      such key gets zeros.
    implementation: Never replaced by another one when it cannot run:
      'reference': plain XLA, softmax in float32.
      'recompute': the same without stored weights.
      'dot_product': `jax.nn.dot_product_attention`, XLA's.
      'cudnn': the same, cuDNN's kernels, for NVIDIA GPUs.
      'tpu': flash attention in Pallas, see `tpu.attention`.
      'tpu_interpret': the same kernels, interpreted on any machine: for tests.
      'splash': JAX's own TPU kernel, to compare with.

  Returns:
    Weighted values, in q's dtype.

  Raises:
    ValueError: There is no such implementation, or it does not support the
      shapes, dtypes or chip; the message names one that does.
  """
  if implementation not in _IMPLEMENTATIONS:
    raise ValueError(
      f'no attention implementation {implementation!r}; '
      f'there are {sorted(_IMPLEMENTATIONS)}.'
    )
  return _IMPLEMENTATIONS[implementation](q, k, v, mask)


def _dot_product(q, k, v, mask, implementation='xla'):
  run = functools.partial(
    jax.nn.dot_product_attention, implementation=implementation
  )
  if mask is None:
    return run(q, k, v)
  out = run(q, k, v, mask=mask[:, None, None, :])
  some = jnp.any(mask, axis=1)[:, None, None, None]
  return jnp.where(some, out, jnp.zeros_like(out))


def _cudnn(q, k, v, mask):
  if q.dtype not in (jnp.bfloat16, jnp.float16) or q.shape[-1] > 128:
    raise ValueError(
      "attention 'cudnn' takes bfloat16 or float16 and heads of up to 128, not "
      f"{q.dtype.name} and {q.shape[-1]}; 'dot_product' and 'recompute' do."
    )
  return _dot_product(q, k, v, mask, 'cudnn')


def _tpu(q, k, v, mask, **options):
  # Pallas takes a second to import, which other machines need not wait for.
  from mirage_jax.ops.attention import tpu

  return tpu.attention(q, k, v, mask, **options)


def _splash(q, k, v, mask):
  from mirage_jax.ops.attention import splash

  return splash.attention(q, k, v, mask)


_IMPLEMENTATIONS = {
  'reference': reference.attention,
  'recompute': recompute.attention,
  'splash': _splash,
  'dot_product': _dot_product,
  'cudnn': _cudnn,
  'tpu': _tpu,
  'tpu_interpret': functools.partial(_tpu, chip='v5p', interpret=True),
}
