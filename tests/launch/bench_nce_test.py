"""What is timed against the kernels computes the authors' loss, too."""

import jax
import numpy as np
import pytest

from tests.infomax_jax import golden
from tests.launch.binary import Binary


@pytest.mark.parametrize('name', ['plain', 'by_chunks'])
def test_the_loss_and_its_gradients_are_the_authors(name):
  want = golden.part(golden.load('nce'), 'clip/')
  sources = want['src'][:, None].astype('f')
  targets = want['trg'].T.reshape(5, 9, 16).astype('f')
  with Binary('bench_nce').loaded(
    '--nce=xla', '--dtype=float32', '--block=2'
  ) as bench:
    run = jax.jit(jax.value_and_grad(getattr(bench, name), (0, 1)))
    loss, grads = run(sources, targets)
  np.testing.assert_allclose(loss, want['loss'], rtol=2e-6)
  got = grads[0][:, 0], grads[1].reshape(45, 16).T
  for a, b in zip(got, (want['g_src'], want['g_trg']), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())
