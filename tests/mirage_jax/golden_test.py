"""The foreign models without torch: what diffusers and transformers gave."""

import numpy as np
import pytest

from tests.mirage_jax import foreign_toys as toys

# One of each kind on every run.
FAST = ('mochi', 't5', 'wav2vec2_large', 'whisper')


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.full] * (name not in FAST))
    for name in toys.TOYS
  ],
)
def test_ours_gives_what_theirs_gave(name):
  with np.load(toys.GOLDEN) as golden:
    want = golden[name]
  got = toys.output(toys.TOYS[name]())
  assert got.shape == want.shape
  assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
