"""The queue of a server, with work that waits for the test."""

import threading
import time

import pytest

from launch.errors import UserError
from launch.serve_jobs import Board, Job, Limits, Refused


class Work:
  """Goes on when told; what a job's order is, it raises."""

  def __init__(self):
    self.done, self.go = [], threading.Event()

  def __call__(self, job):
    while not self.go.wait(0.01):
      job.check()
    self.done.append(job.id)
    if job.order:
      raise job.order


@pytest.fixture
def make(tmp_path):
  """make(**limits) -> a board at work, and the work."""
  boards = []

  def start(**limits):
    work = Work()
    boards.append(Board(work, Limits(**limits)))
    boards[-1].start()
    return boards[-1], work

  yield start
  for board in boards:
    board.close()


@pytest.fixture
def new(tmp_path):
  def job(owner='a', order=None):
    folder = tmp_path / f'{time.monotonic_ns()}'
    folder.mkdir()
    return Job(owner, folder, order, {})

  return job


def wait(condition):
  end = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


def test_jobs_run_one_by_one_in_their_order_whatever_happens(make, new):
  board, work = make()
  errors = (None, UserError('--image: no'), ZeroDivisionError('x'), None)
  jobs = [board.submit(new('abcd'[i], error)) for i, error in enumerate(errors)]
  wait(lambda: jobs[0].state == 'running')
  assert [board.view(job)['ahead'] for job in jobs] == [0, 1, 2, 3]
  work.go.set()
  wait(lambda: jobs[-1].state == 'done')
  assert [job.state for job in jobs] == ['done', 'failed', 'failed', 'done']
  assert work.done == [job.id for job in jobs]
  assert jobs[1].error == 'image: no'
  assert jobs[2].error == 'the server made a mistake; its log has more'


def test_a_message_has_no_path_of_the_server(make, new):
  board, work = make()
  job = new()
  job.order = UserError(f'{job.folder}/audio: is silent')
  work.go.set()
  board.submit(job)
  wait(lambda: job.state == 'failed')
  assert job.error == 'audio: is silent'


def test_waiting_and_running_jobs_can_be_cancelled(make, new):
  board, work = make()
  running, waiting, last = (board.submit(new()) for _ in range(3))
  wait(lambda: running.state == 'running')
  board.cancel(waiting)
  assert waiting.state == 'cancelled' and running.state == 'running'
  board.cancel(running)
  wait(lambda: running.state == 'cancelled' and last.state == 'running')
  work.go.set()
  wait(lambda: last.state == 'done')
  assert work.done == [last.id]
  assert board.list('a') == [last, waiting, running]
  board.cancel(last)  # Ended: thrown away.
  assert board.list('a') == [waiting, running] and not last.folder.exists()


def test_there_is_room_for_so_many(make, new):
  board, work = make(queue=3, per_client=2)
  first = board.submit(new())
  wait(lambda: first.state == 'running')
  board.submit(new())
  with pytest.raises(Refused, match='2 of your videos are waiting') as refused:
    board.submit(new())
  assert refused.value.status == 429
  board.submit(new('b'))
  board.submit(new('c'))
  with pytest.raises(Refused, match='3 videos are waiting already') as refused:
    board.submit(new('d'))
  assert refused.value.status == 503
  work.go.set()
  wait(lambda: len(work.done) == 4)
  wait(lambda: board.list('c')[0].state == 'done')
  board.check_room('a')


def test_a_client_sees_its_own_jobs_only(make, new):
  board, _ = make()
  job = board.submit(new('a'))
  assert board.get('a', job.id) is job
  for owner, name in (('b', job.id), ('a', 'x'), ('', job.id)):
    with pytest.raises(Refused, match='there is no such video') as refused:
      board.get(owner, name)
    assert refused.value.status == 404
  assert board.list('b') == []


def test_who_has_left_wants_no_video(new, monkeypatch):
  board = Board(Work(), Limits(patience=300))  # Not at work.
  gone, there = board.submit(new('gone')), board.submit(new('there'))
  board.sweep()
  assert gone.state == there.state == 'queued'
  later = time.monotonic() + 301
  monkeypatch.setattr(time, 'monotonic', lambda: later)
  board.see('there')
  board.sweep()
  assert (gone.state, there.state) == ('cancelled', 'queued')
  assert board.list('gone') == [gone]


def test_old_videos_are_thrown_away(make, new):
  board, work = make(kept=2, per_client=9)
  work.go.set()
  jobs = [board.submit(new()) for _ in range(4)]
  wait(lambda: jobs[-1].state == 'done')
  board.sweep()
  assert board.list('a') == jobs[:1:-1]
  assert [job.folder.exists() for job in jobs] == [False, False, True, True]
  jobs[2].ended -= 3601
  board.sweep()
  assert board.list('a') == jobs[3:]


def test_a_start_that_fails_does_not_end_the_work(tmp_path, new):
  def prepare():
    raise ZeroDivisionError

  work = Work()
  board = Board(work, Limits(), prepare)
  board.start()
  work.go.set()
  job = board.submit(new())
  wait(lambda: job.state == 'done')
  board.close()


def test_the_view_tells_how_far_it_is(make, new):
  board, _ = make()
  job = board.submit(new())
  wait(lambda: job.state == 'running')
  job.steps, job.step, job.started = 10, 4, time.time() - 8
  view = board.view(job)
  assert view['left'] == pytest.approx(12, abs=1)
  assert view['spent'] == pytest.approx(8, abs=1)
  assert not {'owner', 'folder', 'order'} & set(view)
