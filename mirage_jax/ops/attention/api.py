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
      'cudnn': the same, cuDNN's kernels, for NVIDIA GPUs; keys that may be
        attended to are moved to the front, which is all it knows of masks.
      'gpu': flash attention in Pallas for NVIDIA GPUs, see `gpu.attention`.
      'gpu_interpret': the same kernels, interpreted on any machine: for tests.
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


def _dot_product(q, k, v, mask):
  run = functools.partial(jax.nn.dot_product_attention, implementation='xla')
  if mask is None:
    return run(q, k, v)
  return _zeros_without(mask, run(q, k, v, mask=mask[:, None, None, :]))


def _zeros_without(mask, out):
  some = jnp.any(mask, axis=1)[:, None, None, None]
  return jnp.where(some, out, jnp.zeros_like(out))


def _cudnn(q, k, v, mask):
  capability = getattr(jax.devices()[0], 'compute_capability', '0')
  most, dim = 256 if float(capability) >= 9 else 128, q.shape[-1]
  if q.dtype not in (jnp.bfloat16, jnp.float16) or dim > most or dim % 8:
    raise ValueError(
      f"attention 'cudnn' takes bfloat16 or float16 and heads of up to {most} "
      f'in eights, not {q.dtype.name} and {dim}; '
      "'dot_product' and 'recompute' do."
    )
  run = functools.partial(jax.nn.dot_product_attention, implementation='cudnn')
  if mask is None:
    return run(q, k, v)
  # It takes a length, or a bias for each query and key. The order of keys is
  # nothing to attention.
  order = jnp.argsort(~mask, axis=1, stable=True)
  sort = jax.vmap(
    lambda x, i: x.at[i].get(unique_indices=True, mode='promise_in_bounds')
  )
  length = jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.int32), 1)
  out = run(q, sort(k, order), sort(v, order), key_value_seq_lengths=length)
  return _zeros_without(mask, out)


def _gpu(q, k, v, mask, interpret=False):
  # Pallas takes a second to import, which other machines need not wait for.
  from mirage_jax.ops.attention import gpu

  return gpu.attention(q, k, v, mask, interpret=interpret)


def _tpu(q, k, v, mask, **options):
  from mirage_jax.ops.attention import tpu  # As above.

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
  'gpu': _gpu,
  'gpu_interpret': functools.partial(_gpu, interpret=True),
  'tpu': _tpu,
  'tpu_interpret': functools.partial(_tpu, chip='v5p', interpret=True),
}
