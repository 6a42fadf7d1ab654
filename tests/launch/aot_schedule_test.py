"""The walk over a schedule against times that can be added up by hand."""

import pytest

from launch import aot_schedule
from launch.aot_chips import CHIPS
from launch.aot_cycles import Cycles

CHIP = CHIPS['v5e']
LINKS = CHIP.link * CHIP.links


def fusion(name, cycles):
  return (
    f'  %{name} = bf16[8,128]{{1,0:T(8,128)(2,1)}} fusion(%p), kind=kLoop, '
    f'calls=%f, metadata={{op_name="jit(step)/{name}/mul"}}, '
    f'backend_config={{"estimated_cycles":"{cycles}"}}'
  )


def program(*entry, others=''):
  body = '\n'.join(entry)
  return (
    f'HloModule jit_step, is_scheduled=true\n\n{others}\n'
    f'ENTRY %main.1 (p: bf16[8,128]) -> bf16[8,128] {{\n'
    f'  %p = bf16[8,128]{{1,0}} parameter(0)\n{body}\n}}\n'
  )


def walk(text, devices=8, cycles=lambda name, pallas: None):
  return aot_schedule.Walk(text, CHIP, devices, cycles).timeline


GATHER = (
  '(bf16[64,128]{1,0}, bf16[512,128]{1,0}) all-gather-start(%p), '
  'replica_groups=[1,8]<=[8], dimensions={0}'
)
GATHER_SECONDS = 512 * 128 * 2 * 7 / 8 / LINKS


def gather(*between):
  return (
    f'  %all-gather-start.3 = {GATHER}',
    *between,
    '  %all-gather-done.3 = bf16[512,128]{1,0} all-gather-done('
    '%all-gather-start.3)',
  )


def test_work_between_start_and_done_hides_a_collective():
  enough = round(GATHER_SECONDS * CHIP.clock * 3)
  timeline = walk(program(*gather(fusion('a', enough))))
  assert timeline.seconds == pytest.approx(enough / CHIP.clock)
  row = timeline.collectives['all-gather', 'async', 8]
  assert (row.count, row.size, row.exposed) == (1, 512 * 128 * 2, 0)
  assert row.seconds == pytest.approx(GATHER_SECONDS)


def test_what_is_left_of_a_collective_is_exposed():
  half = round(GATHER_SECONDS * CHIP.clock / 2)
  timeline = walk(program(*gather(fusion('a', half))))
  assert timeline.seconds == pytest.approx(GATHER_SECONDS)
  assert timeline.exposed == pytest.approx(GATHER_SECONDS - half / CHIP.clock)


def test_two_collectives_share_the_links():
  text = program(
    *[line.replace('.3', '.4') for line in gather()[:1]], *gather()
  )
  assert walk(text).seconds == pytest.approx(2 * GATHER_SECONDS)


def test_a_synchronous_collective_stops_everything():
  line = (
    '  %all-reduce.2 = f32[1024]{0} all-reduce(%p), '
    'replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add'
  )
  timeline = walk(program(fusion('a', 1500), line))
  want = 2 * 4096 / 2 / LINKS
  assert timeline.exposed == pytest.approx(want)
  assert timeline.seconds == pytest.approx(1e-6 + want)
  assert ('all-reduce', 'sync', 2) in timeline.collectives


LOOP = f"""%cond.1 (c: (s32[])) -> pred[] {{
  %n = s32[]{{:T(128)}} constant(48)
  ROOT %less = pred[] compare(%c, %n), direction=LT
}}

%body.1 (c: (s32[])) -> (s32[]) {{
{fusion('inside', 3000)}
  ROOT %t = (s32[]) tuple(%c)
}}
"""
WHILE = (
  '  %while.1 = (s32[], /*index=1*/bf16[2]{0}) while(%t), condition=%cond.1, '
  'body=%body.1'
)


@pytest.mark.parametrize(
  ('config', 'trips'),
  [('', 48), (', backend_config={"known_trip_count":{"n":"5"}}', 5)],
)
def test_a_loop_counts_its_trips(config, trips):
  timeline = walk(program(WHILE + config, fusion('after', 1500), others=LOOP))
  assert timeline.seconds == pytest.approx(trips * 2e-6 + 1e-6)
  assert timeline.fusions['jit(step)/inside/mul'].count == trips
  assert timeline.estimated == trips + 1


def test_the_slower_branch_counts():
  branch = '%{0} (x: f32[]) -> f32[] {{\n{1}\n}}\n'
  others = branch.format('one', fusion('a', 1500))
  others += branch.format('two', fusion('b', 4500))
  line = (
    '  %conditional.1 = f32[] conditional(%i, %x, %y), '
    'branch_computations={%one, %two}'
  )
  assert walk(program(line, others=others)).seconds == pytest.approx(3e-6)


# Attributes of Pallas kernels go over several lines.
KERNEL = (
  '  %flash.7 = bf16[8,128]{1,0} custom-call(%p), '
  'custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={\n'
  '"xprof_metadata":"{\\"block_q\\": 1024}"\n'
  '}}, metadata={op_name="jit(step)/flash"}'
)


def test_a_pallas_kernel_takes_its_cycles():
  known = {'flash.7': Cycles(15_000, 0, 0, ()), 'a': Cycles(600, 0, 0, ())}
  timeline = walk(
    program(KERNEL, fusion('a', 1500), fusion('b', 900)),
    cycles=lambda name, pallas: known.get(name),
  )
  assert timeline.seconds == pytest.approx((15_000 + 600 + 900) / CHIP.clock)
  assert timeline.kernels['flash.7'].seconds == pytest.approx(1e-5)
  assert (timeline.simulated, timeline.estimated) == (2, 1)
  assert not timeline.unknown


def test_a_kernel_without_a_time_is_told():
  assert 'flash.7' in walk(program(KERNEL)).unknown
  loops = Cycles(10, 0, 0, ('loop to region 7',))
  timeline = walk(program(KERNEL), cycles=lambda name, pallas: loops)
  assert timeline.unknown == {'flash.7': 'loop to region 7'}
  masks = Cycles(10, 0, 0, (), assumed=True)
  timeline = walk(program(KERNEL), cycles=lambda name, pallas: masks)
  assert timeline.assumed == {'flash.7'} and not timeline.unknown


@pytest.mark.parametrize(
  ('op', 'attribute'),
  [('custom-call', 'called_computations={%sc}'), ('call', 'to_apply=%sc')],
)
def test_a_collective_on_the_sparse_core(op, attribute):
  others = (
    '%sc (x: bf16[64]) -> bf16[512] {\n'
    '  ROOT %g = bf16[512]{0} all-gather(%x), replica_groups=mesh['
    "'axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}\n}\n"
  )
  timeline = walk(
    program(
      '  %all-gather.9-start = ((bf16[64]{0}), bf16[512]{0}) '
      f'{op}-start(%p), {attribute}',
      f'  %all-gather.9-done = bf16[512]{{0}} {op}-done(%all-gather.9-start)',
      others=others,
    )
  )
  row = timeline.collectives['all-gather', 'async', 4]
  assert row.size == 1024
  assert timeline.seconds == pytest.approx(1024 * 3 / 4 / LINKS)


@pytest.mark.parametrize(
  ('type', 'want'),
  [
    ('bf16[2,3,4]{2,1,0:T(8,128)(2,1)S(1)}', 48),
    ('(f32[8]{0}, /*index=1*/s4[6]{0}, pred[])', 32 + 3 + 1),
    ('f8e4m3fn[16]{0}', 16),
    ('token[]', 0),
  ],
)
def test_sizes_of_types(type, want):
  assert aot_schedule.size(type) == want


@pytest.mark.parametrize(
  ('op', 'want'),
  [
    ('all-gather', 800 * 3 / 4),
    ('all-reduce', 2 * 800 * 3 / 4),
    ('reduce-scatter', 800 * 3),
    ('all-to-all', 800 * 3 / 4),
  ],
)
def test_bytes_that_cross_the_links(op, want):
  got = aot_schedule.collective_seconds(op, 800, 4, CHIP)
  assert got == pytest.approx(want / LINKS)
