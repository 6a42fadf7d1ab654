"""The cycle model against schedules short enough to count by hand."""

import itertools

import pytest

from launch import aot_cycles
from launch.aot_chips import CHIPS

V5E, V5P, V6E = CHIPS['v5e'], CHIPS['v5p'], CHIPS['v6e']
DELAY = ['{}'] * 4


def kernel(*bundles):
  """The dump of a schedule; `$N` in front of a bundle starts region N."""
  lines = ['LH: loop header']
  for number, bundle in enumerate(bundles):
    region = ''
    if bundle.startswith('$'):
      region, bundle = bundle[1:].split(' ', 1)
      region = f' /* Start region {region} */'
    lines.append(f'  {number:#x} LB: > {bundle}{region}')
  return '\n'.join(lines)


def simulate(tmp_path, chip, *bundles):
  file = tmp_path / 'kernel-final_bundles.txt'
  file.write_text(kernel(*bundles))
  return aot_cycles.simulate(file, chip)


def loop(rounds, *body, start='0 /* constant */'):
  """A counted loop; a round takes the body, the compare and a branch."""
  return (
    f'{{ %s1_s0 = smov {start} }}',
    *(['$7 ' + body[0], *body[1:]] if body else []),
    '{ %s2_s0 = sadd.s32 1, %s1_s0 }',
    f'{{ %p3_p0 = scmp.lt.s32.totalorder %s2_s0, {rounds} }}',
    '{ %9 = sbr.rel (%p3_p0) target = $region7 }',
    *DELAY,
  )


def test_a_loop_takes_its_rounds_with_the_delay_slots(tmp_path):
  vector = '{ %v1_v0 = vadd.f32 %v0_v0, %v0_v0  ;;  %v2_v1 = vld [vmem:[%s9]] }'
  got = simulate(tmp_path, V5E, *loop(10, vector, vector))
  assert got.cycles == 1 + 10 * (2 + 3 + 4)
  assert got.unknown == ()


def test_slots_of_a_bundle_do_not_see_each_other(tmp_path):
  swap = '$7 { %s5_s1 = smov %s6_s2  ;;  %s6_s2 = smov %s5_s1 }'
  got = simulate(
    tmp_path,
    V5E,
    '{ %s5_s1 = smov 1  ;;  %s6_s2 = smov 0  ;;  %s1_s0 = smov 0 }',
    swap,
    '{ %s2_s0 = sadd.s32 1, %s1_s0 }',
    # Out once s1 is 1 again: after two swaps. Seen at once, it would never be.
    '{ %p3_p0 = scmp.ne.s32.totalorder %s5_s1, 1 }',
    '{ %9 = sbr.rel (%p3_p0) target = $region7 }',
    *DELAY,
  )
  assert got.cycles == 1 + 2 * (4 + 4)


def test_a_predicate_skips_a_move_and_keeps_the_old_value(tmp_path):
  bundles = (
    '{ %s4_s3 = smov 5  ;;  %p8_p1 = scmp.eq.s32.totalorder 1, 2 }',
    '{ %s5_s3 = smov (%p8_p1, %s4_s3), 9 }',
    '{ %s6_s4 = scalar_select /*predicate=*/%p8_p1, /*on_true=*/1, 2 }',
    '{ %s7_s5 = smul.u32 %s5_s3, %s6_s4 }',
    *loop('%s7_s5', '{ %v1 = vmov 0 }'),
  )
  got = simulate(tmp_path, V5E, *bundles)
  assert got.cycles == 4 + 1 + 10 * 8


def test_waiting_for_a_copy_takes_its_bytes_over_the_bandwidth(tmp_path):
  granules = 2**15
  copy = (
    '{ %28 = dma.hbm_to_vmem [thread:$0]  /*hbm=*/%s23, '
    f'/*size_in_granules=*/{granules}, /*vmem=*/%s26, '
    '/*dst_syncflagno=*/[#allocation7 + $0x1] }'
  )
  wait = '{ %30 = dma.done.wait [#allocation7 + $0x1], 16 /* wait */ }'
  seconds = 2 * granules * 32 / V6E.bandwidth
  got = simulate(tmp_path, V6E, copy, copy, wait, wait)
  assert got.cycles == pytest.approx(1 + seconds * V6E.clock + 700)
  assert got.waits == pytest.approx(got.cycles - 4)
  # Work in between hides it.
  work = ['{ %v1 = vmov 0 }'] * 300
  hidden = simulate(tmp_path, V6E, copy, copy, *work, wait, wait)
  assert hidden.cycles == pytest.approx(got.cycles)
  assert hidden.waits == pytest.approx(got.waits - 300)


@pytest.mark.parametrize(
  ('chip', 'kind', 'rows'),
  [(V5E, 'bf16.gmra', 16), (V6E, 'bf16.gmra', 8), (V5E, 'f32.gmra', 8)],
)
def test_a_matrix_unit_takes_a_row_at_a_time(tmp_path, chip, kind, rows):
  """More products than its rate are a floor, whatever was scheduled."""
  product = f'{{ %v4 = vmatmul.{kind}.mxu1 %v3_v3 }}'
  got = simulate(tmp_path, chip, *loop(10, product, product))
  assert got.matmul == 10 * 2 * rows
  assert got.cycles == max(got.matmul, 1 + 10 * 9)


def test_the_slowest_core_counts(tmp_path):
  """Core 1 of v5p gets twice the rounds."""
  bundles = (
    '{ %s8_s7 = sld [smem:[#allocation3]] /* core id */ }',
    '{ %s9_s8 = sadd.s32 1, %s8_s7 }',
    '{ %s9_s9 = sshll.u32 %s9_s8, 2 }',
    *loop('%s9_s9', '{ %v1 = vmov 0 }'),
  )
  assert simulate(tmp_path, V5E, *bundles).cycles == 4 + 4 * 8
  assert simulate(tmp_path, V5P, *bundles).cycles == 4 + 8 * 8


def test_a_counter_in_memory_is_followed(tmp_path):
  got = simulate(
    tmp_path,
    V5E,
    '{ %1 = sst [smem:[#allocation5 + $0x2]] 3 }',
    '{ %s1_s1 = smov 0 }',
    *loop(
      '%s4_s4',
      '{ %s4_s4 = sld [smem:[#allocation5 + $0x2]] }',
    ),
  )
  assert got.cycles == 3 + 3 * 8 and not got.unknown


def test_a_branch_to_no_region_ends_the_kernel(tmp_path):
  leave = '{ %9 = sbr.rel target = $region4 }'
  rest = ['{ %v1 = vmov 0 }'] * 50
  assert simulate(tmp_path, V5E, leave, *DELAY, *rest).cycles == 5


def test_a_loop_that_depends_on_data_is_told(tmp_path):
  bundles = ('{ %s9_s9 = spop %33 }', *loop('%s9_s9', '{ %v1 = vmov 0 }'))
  got = simulate(tmp_path, V5E, *bundles)
  assert got.unknown == ('loop to region 7',)
  assert got.cycles == 2 + 8


def test_a_branch_that_depends_on_data_goes_as_if_it_were_zero(tmp_path):
  """What a prefetched array holds is not known; a loop over it is still."""

  def choice(*rounds):
    return simulate(
      tmp_path,
      V5E,
      '{ %s8_s8 = sld [smem:[#allocation4]] }',
      '{ %p5_p5 = scmp.ne.s32.totalorder %s8_s8, 0 }',
      '{ %9 = sbr.rel (%p5_p5) target = $region3 }',
      *DELAY,
      *['{ %v1 = vmov 0 }'] * 50,  # of zero
      '$3 { %p6_p6 = scmp.eq.s32.totalorder %s8_s8, 0 }',
      '{ %9 = sbr.rel (%p6_p6) target = $region4 }',
      *DELAY,
      *['{ %v1 = vmov 0 }'] * 900,  # of another number
      '$4 { %v1 = vmov 0 }',
      *loop(*rounds),
    )

  got = choice('3', '{ %v1 = vmov 0 }')
  assert got.assumed and not got.unknown
  assert got.cycles == 3 + 4 + 50 + 2 + 4 + 1 + 1 + 3 * 8
  assert choice('%s8_s8', '{ %v1 = vmov 0 }').unknown == ('loop to region 7',)


def test_a_loop_that_zeros_do_not_reach_needs_no_count(tmp_path):
  """As that over masked keys, in a kernel that is timed without masks."""
  got = simulate(
    tmp_path,
    V5E,
    '{ %s8_s8 = sld [smem:[#allocation4]] }',
    '{ %p5_p5 = scmp.eq.s32.totalorder %s8_s8, 0 }',
    '{ %9 = sbr.rel (%p5_p5) target = $region4 }',
    *DELAY,
    *loop('%s8_s8', '{ %v1 = vmov 0 }'),
    '$4 { %v1 = vmov 0 }',
  )
  assert got.assumed and not got.unknown
  assert got.cycles == 3 + 4 + 1


INTEGERS = (-(2**31), -7, -1, 0, 1, 5, 31, 2**31 - 1)


@pytest.mark.parametrize(
  ('name', 'reference'),
  [
    ('sadd.s32', lambda np, a, b: a + b),
    ('ssub.s32', lambda np, a, b: a - b),
    ('smul.u32', lambda np, a, b: a * b),
    ('sand.u32', lambda np, a, b: a & b),
    ('sxor.u32', lambda np, a, b: a ^ b),
    ('smin.u32', lambda np, a, b: np.minimum(a.view('u4'), b.view('u4'))),
    ('scmp.lt.s32.totalorder', lambda np, a, b: a < b),
    ('scmp.ge.u32.totalorder', lambda np, a, b: a.view('u4') >= b.view('u4')),
  ],
)
def test_arithmetic_is_numpys(name, reference):
  import numpy as np

  for a, b in itertools.product(INTEGERS, INTEGERS):
    x, y = np.array([a], np.int32), np.array([b], np.int32)
    want = reference(np, x, y).astype(np.int64)
    want = int(np.asarray(want).astype(np.int32)[0])
    assert aot_cycles.compute(name, [a, b]) == want, (a, b)


def test_what_is_known_decides_without_what_is_not():
  for name, args, want in (
    ('por', [1, None], 1),
    ('por', [0, None], None),
    ('pand', [None, 0], 0),
    ('pnand', [0, None], 1),
    ('pnand', [1, 1], 0),
    ('pneg', [1], 0),
    ('pneg', [None], None),
    ('scalar_lea.smem', [('#a', 4), 8], ('#a', 12)),
    ('scalar_select', [None, 3, 3], 3),
    ('scalar_select', [0, 3, 4], 4),
    ('spop', [], None),
  ):
    assert aot_cycles.compute(name, args) == want, (name, args)
