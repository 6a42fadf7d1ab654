"""One entry for all backends of the sums over negatives, chosen by name."""

import functools

from jaxtyping import Array, Float

from infomax_jax.ops.nce import chunked, pallas_gpu, pallas_tpu, reference
from infomax_jax.ops.nce.plan import Kernels


def against_all(
  sources: Float[Array, 'B K C'],
  targets: Float[Array, 'B L C'],
  *,
  clip: float | None,
  block: int,
  implementation: str = 'xla',
) -> tuple[Float[Array, 'B K'], Float[Array, ' K']]:
  """What scores of each source with the targets of all images sum to.

  score[i, k, j, l] = c tanh(raw / c), raw = <source_ik, target_jl> / sqrt(C).
  Under jit with the batch over devices (the logical axis 'batch') images j are
  those of all devices; see `infomax_jax.nce.score` for what that is for.

  Args:
    sources: float32 or bfloat16.
    targets: Of the same dtype.
    clip: c, or None for no clipping.
    block: Images whose sources are scored at once. The kernels take as many of
      each device, whole tiles of memory, and 2,048 sources at least.
    implementation: 'xla', any device and shape; 'pallas', TPU kernels that
      keep scores out of memory, for a clip of at most 40 and C a multiple of
      128, gradients of sources being summed over devices in their dtype;
      'pallas_interpret', the same interpreted, on any device; 'pallas_gpu' and
      'pallas_gpu_interpret', likewise for NVIDIA GPUs. Never replaced by
      another one when it cannot run.

  Returns:
    float32: log of the sum of exp(score) over j != i and l, for each i and k;
    the sum of raw squared over i, j, l for each k.

  Raises:
    ValueError: There is no such implementation, or it does not do this; the
      message names one that does.
  """
  if implementation == 'xla':
    return reference.against_all(sources, targets, clip, block)
  if implementation not in KERNELS:
    raise ValueError(
      f'no nce {implementation!r}; there are {sorted(["xla", *KERNELS])}.'
    )
  kernels = KERNELS[implementation]
  return chunked.against_all(sources, targets, clip, block, kernels)


def _kernels(name, backend, interpret=False):
  return Kernels(
    name=name,
    forward=functools.partial(backend.forward, interpret=interpret),
    backward=functools.partial(backend.backward, interpret=interpret),
    tile_limit=backend.tile_limit,
    rows=backend.ROWS,
    lanes=backend.LANES,
  )


KERNELS = {
  'pallas': _kernels('pallas', pallas_tpu),
  'pallas_interpret': _kernels('pallas_interpret', pallas_tpu, True),
  'pallas_gpu': _kernels('pallas_gpu', pallas_gpu),
  'pallas_gpu_interpret': _kernels('pallas_gpu_interpret', pallas_gpu, True),
}
