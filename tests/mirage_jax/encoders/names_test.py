"""Layouts as data: loading, saving, and what a person reads when it fails."""

import jax
import ml_dtypes
import numpy as np
import pytest

from mirage_jax.encoders import names, names_diff
from mirage_jax.encoders.names import Place, Places

# Two layers stacked; q and v live in one tensor of theirs; one has no reader.
LAYOUT = Places(
  'a toy of two layers',
  (
    *(
      Place(f'layer.{i}.qv', f'{x}/kernel', '(h d) c -> c h d', (i,), part, h)
      for i in range(2)
      for x, part, h in (('q', (0, 2), {'d': 3}), ('v', (1, 2), {'d': 3}))
    ),
    Place('out.weight', 'out/kernel', 'o i -> i o'),
    Place('dead', None, shape=(5,)),
  ),
  prefixes=('model.',),
  ignored=('head.',),
  aliases={'out.w': 'out.weight'},
)
SHAPES = {'q': (2, 4, 2, 3), 'v': (2, 4, 2, 3), 'out': (6, 7)}
OURS = {
  name: {'kernel': jax.ShapeDtypeStruct(shape, np.float32)}
  for name, shape in SHAPES.items()
}


def make():
  rng = np.random.default_rng(0)
  shapes = {'layer.0.qv': (12, 4), 'layer.1.qv': (12, 4)}
  shapes |= {'out.weight': (7, 6), 'dead': (5,)}
  return {k: rng.standard_normal(v, np.float32) for k, v in shapes.items()}


def test_values_go_where_the_layout_says_and_back():
  theirs = make()
  params = names.load(LAYOUT, OURS, theirs)
  # Row h * 3 + d of the second half is head h, channel d of v.
  want = theirs['layer.1.qv'][6 + 1 * 3 + 2]
  np.testing.assert_array_equal(params['v']['kernel'][1, :, 1, 2], want)
  np.testing.assert_array_equal(params['out']['kernel'], theirs['out.weight'].T)
  back = names.save(LAYOUT, params)
  assert back.keys() == theirs.keys()
  for name in theirs:
    want = np.zeros(5) if name == 'dead' else theirs[name]
    np.testing.assert_array_equal(back[name], want)


def test_their_shapes_cost_no_memory():
  shape = (4, 1 << 20, 1 << 20, 3)
  ours = {'q': {'kernel': jax.ShapeDtypeStruct(shape, np.float32)}}
  layout = Places('x', (Place('q', 'q/kernel', '(h d) c -> c h d', (1,)),))
  assert names.their_shapes(layout, ours) == {'q': (3 << 20, 1 << 20)}


def test_prefixes_aliases_ignored_parts_and_bfloat16_load():
  theirs = make()
  other = {
    f'model.{k}': v.astype(ml_dtypes.bfloat16) for k, v in theirs.items()
  }
  other['model.out.w'] = other.pop('model.out.weight')
  other['head.bias'] = np.zeros(3)
  params = names.load(LAYOUT, OURS, other)
  assert params['out']['kernel'].dtype == np.float32
  want = theirs['out.weight'].T
  np.testing.assert_allclose(params['out']['kernel'], want, rtol=1e-2)


def test_each_tensor_is_read_once():
  theirs, read = make(), []

  def tensor(name):
    read.append(name)
    return theirs[name]

  spelled = names.check(LAYOUT, OURS, theirs)
  assert len(list(names.pieces(LAYOUT, spelled, tensor))) == 5
  assert read == ['layer.0.qv', 'layer.1.qv', 'out.weight']


def test_every_kind_of_difference_is_told():
  theirs = make()
  theirs['out.weight'] = theirs['out.weight'].T
  theirs['layer.1.qv'] = np.zeros((12, 4), np.int8)
  theirs['blocks.0.x'] = theirs['blocks.1.x'] = np.zeros(2)
  del theirs['layer.0.qv']
  with pytest.raises(names_diff.NamesError) as error:
    names.load(LAYOUT, OURS, theirs)
  assert str(error.value).splitlines() == [
    'the checkpoint is not a toy of two layers: 1 of 4 tensors fit; '
    'use the configuration that made it, or another file.',
    'missing (1):',
    '  layer.0.qv [12, 4]',
    'extra (2):',
    '  blocks.*.x [2] (x2)',
    'wrong shape (1):',
    '  out.weight [6, 7], must be [7, 6]',
    'not a float (1):',
    '  layer.1.qv int8',
  ]


def test_long_lists_are_cut():
  lines = names_diff.fold([(f'name{i}', '[1]') for i in range(100)])
  assert len(lines) == names_diff.MAX_LINES + 1
  assert lines[-1] == f'and {100 - names_diff.MAX_LINES} more kinds'


def test_a_layout_that_forgets_a_parameter_is_refused():
  ours = OURS | {'new': {'bias': jax.ShapeDtypeStruct((1,), np.float32)}}
  with pytest.raises(KeyError, match='new/bias'):
    names.load(LAYOUT, ours, make())
