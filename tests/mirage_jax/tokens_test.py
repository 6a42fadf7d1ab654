import numpy as np
import pytest

from mirage_jax import tokens


def test_patches_run_row_by_row_and_come_back():
  latents = np.arange(2 * 2 * 4 * 6 * 3, dtype=np.float32)
  latents = latents.reshape(2, 2, 4, 6, 3)
  patches = tokens.patchify(latents, 2)
  assert patches.shape == (2, 2 * 2 * 3, 12)
  # Token 4 is row 1, column 1 of the first frame.
  np.testing.assert_array_equal(
    patches[1, 4], latents[1, 0, 2:4, 2:4].reshape(-1)
  )
  np.testing.assert_array_equal(
    tokens.unpatchify(patches, latents.shape, 2), latents
  )


def test_an_odd_size_is_refused():
  with pytest.raises(ValueError, match='5 x 4'):
    tokens.patchify(np.zeros((1, 1, 5, 4, 3)), 2)


def test_key_mask_fills_parts_without_a_mask():
  mask = np.array([[True, False], [False, False]])
  got = tokens.key_mask([(3, None), (2, mask)], batch=2)
  want = [[True] * 4 + [False], [True] * 3 + [False] * 2]
  np.testing.assert_array_equal(got, want)
  assert tokens.key_mask([(3, None), (2, None)], batch=2) is None


def test_join_and_split_are_inverse():
  parts = [np.full((1, n, 2), n) for n in (1, 2, 3)]
  got = tokens.split(tokens.join(parts), [1, 2, 3])
  for a, b in zip(got, parts, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  'cond, message',
  [
    ({'texts': 0}, "unknown condition 'texts'"),
    ({'audio_mask': 0}, 'audio_mask is given without audio'),
    ({'reference': 0}, 'without reference_time'),
  ],
)
def test_conditions_that_nobody_reads_are_refused(cond, message):
  with pytest.raises(ValueError, match=message):
    tokens.check_cond(cond)
