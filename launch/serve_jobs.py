"""The queue of a server: who may add what, what runs, what is thrown away.

One thread does the work, job after job. Every other method may be called from
any thread, and returns at once.
"""

from collections.abc import Callable
import dataclasses
import pathlib
import shutil
import threading
import time
from typing import Any
import uuid

from absl import logging

from launch.errors import UserError

ENDED = ('done', 'failed', 'cancelled')
TICK = 1.0  # Seconds between looks at who has left.


class Cancelled(Exception):
  """Raised by the work of a job that nobody wants any more."""


class Refused(Exception):
  """Why a request is not served, and the HTTP status that says so."""

  def __init__(self, status: int, message: str):
    super().__init__(message)
    self.status = status


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a client may ask for.

  Attributes:
    upload_mb: The size of a request.
    seconds: The length of a video.
    letters: The length of words to say, and of a request to the writer.
    steps: The number of steps a window.
    queue: Jobs that wait, of all clients.
    per_client: Jobs that wait or run, of one.
    keep_minutes: A finished job is kept.
    kept: Finished jobs, of all clients.
    patience: Seconds after which a client that no longer asks has left, and its
      jobs are cancelled.
  """

  upload_mb: float = 25.0
  seconds: float = 60.0
  letters: int = 1000
  steps: int = 64
  queue: int = 16
  per_client: int = 4
  keep_minutes: float = 60.0
  kept: int = 100
  patience: float = 300.0


@dataclasses.dataclass
class Job:
  """One video, from the request to the end.

  Attributes:
    owner: The client; nobody else sees the job.
    folder: Of its own, for its uploads and its video.
    order: What is to be made; the worker knows its type.
    about: What the client may read of it.
    state: 'queued', 'running', or one of ENDED.
    steps, step: To take, and taken.
    seconds: Of the sound, once it is known.
    frames: Made so far.
    first_frame: Seconds from the start of the work to the first frames.
    error: Why it failed, in one line.
    took: Seconds of each stage.
    wave: Lowest and highest sample of each column of a waveform.
    mouth: Mouth opening of each frame; None where no face is found.
  """

  owner: str
  folder: pathlib.Path
  order: Any
  about: dict[str, Any]
  id: str = ''
  state: str = 'queued'
  steps: int = 0
  step: int = 0
  seconds: float = 0.0
  frames: int = 0
  first_frame: float | None = None
  error: str = ''
  took: dict[str, float] = dataclasses.field(default_factory=dict)
  wave: list[tuple[float, float]] = dataclasses.field(default_factory=list)
  mouth: list[float | None] = dataclasses.field(default_factory=list)
  created: float = dataclasses.field(default_factory=time.time)
  started: float = 0.0
  ended: float = 0.0
  stop: threading.Event = dataclasses.field(default_factory=threading.Event)

  def advance(self) -> None:
    """Counts a step.

    Raises:
      Cancelled: there is no need for another one.
    """
    self.step += 1
    self.check()

  def check(self) -> None:
    """Raises Cancelled if the job is."""
    if self.stop.is_set():
      raise Cancelled


class Board:
  """All jobs of a server.

  Args:
    work: makes the video of a job, in this class's thread.
    prepare: called once in that thread, before the first job.
    limits: what is refused.
  """

  def __init__(
    self,
    work: Callable[[Job], None],
    limits: Limits,
    prepare: Callable[[], None] = lambda: None,
  ):
    self._work, self._prepare, self._limits = work, prepare, limits
    self._jobs: dict[str, Job] = {}
    self._seen: dict[str, float] = {}
    self._changed = threading.Condition()
    self._closing = False
    self.ready = False
    self._thread = threading.Thread(target=self._run, name='work', daemon=True)

  def start(self) -> None:
    """Starts to work."""
    self._thread.start()

  def close(self) -> None:
    """Ends the running job and the thread."""
    with self._changed:
      self._closing = True
      for job in self._jobs.values():
        job.stop.set()
      self._changed.notify_all()
    self._thread.join()

  def check_room(self, owner: str) -> None:
    """Raises Refused if a job of this client would not be taken."""
    with self._changed:
      waiting = [j for j in self._jobs.values() if j.state == 'queued']
      if len(waiting) >= self._limits.queue:
        raise Refused(
          503, f'{len(waiting)} videos are waiting already; try again later'
        )
      own = [j for j in self._of(owner) if j.state not in ENDED]
      if len(own) >= self._limits.per_client:
        raise Refused(
          429,
          f'{len(own)} of your videos are waiting already; let one end, or '
          'cancel it',
        )

  def submit(self, job: Job) -> Job:
    """Takes a job in, or raises Refused; then its folder is the caller's."""
    with self._changed:
      self.check_room(job.owner)
      job.id = uuid.uuid4().hex
      self._jobs[job.id] = job
      self._seen[job.owner] = time.monotonic()
      self._changed.notify_all()
    return job

  def get(self, owner: str, name: str) -> Job:
    """A job of this client; Refused with 404 for any other."""
    self.see(owner)
    job = self._jobs.get(name)
    if job is None or job.owner != owner:
      raise Refused(404, 'there is no such video, or no longer')
    return job

  def list(self, owner: str) -> list[Job]:
    """This client's jobs, the newest first."""
    self.see(owner)
    with self._changed:
      return self._of(owner)[::-1]

  def cancel(self, job: Job) -> None:
    """Stops a job; one that has ended is thrown away."""
    with self._changed:
      if job.state in ENDED:
        self._drop(job)
      else:
        job.stop.set()
        if job.state == 'queued':
          self._end(job, 'cancelled')

  def see(self, owner: str) -> None:
    """Notes that this client is still there."""
    if owner in self._seen:
      self._seen[owner] = time.monotonic()

  def view(self, job: Job) -> dict[str, Any]:
    """A job as its client sees it, ready for JSON."""
    with self._changed:
      queued = [j for j in self._jobs.values() if j.state == 'queued']
      ahead = queued.index(job) if job in queued else 0
      busy = any(j.state == 'running' for j in self._jobs.values())
    now = job.ended or time.time()
    spent = now - job.started if job.started else 0.0
    left = spent / job.step * (job.steps - job.step) if job.step else None
    names = ('id', 'state', 'steps', 'step', 'seconds', 'frames', 'error')
    names += ('first_frame', 'took', 'created', 'about')
    return {name: getattr(job, name) for name in names} | {
      'ahead': ahead + (busy and job.state == 'queued'),
      'spent': spent,
      'left': left if job.state == 'running' else None,
    }

  def sweep(self) -> None:
    """Cancels the jobs of clients that left; throws old ones away."""
    limits, now = self._limits, time.monotonic()
    with self._changed:
      for job in list(self._jobs.values()):
        away = now - self._seen[job.owner]
        if job.state not in ENDED and away > limits.patience:
          self.cancel(job)
      ended = [j for j in self._jobs.values() if j.state in ENDED]
      ended.sort(key=lambda job: job.ended)
      excess = len(ended) - limits.kept
      for index, job in enumerate(ended):
        old = time.time() - job.ended > limits.keep_minutes * 60
        if old or index < excess:
          self._drop(job)
      owners = {job.owner for job in self._jobs.values()}
      self._seen = {k: v for k, v in self._seen.items() if k in owners}

  def _of(self, owner):
    return [job for job in self._jobs.values() if job.owner == owner]

  def _end(self, job, state, error=''):
    job.state, job.error, job.ended = state, error, time.time()

  def _drop(self, job):
    self._jobs.pop(job.id, None)
    shutil.rmtree(job.folder, ignore_errors=True)

  def _next(self):
    """The first job that waits, now running; None if there is none."""
    with self._changed:
      for job in self._jobs.values():
        if job.state == 'queued':
          job.state, job.started = 'running', time.time()
          return job
      if not self._closing:
        self._changed.wait(TICK)
    return None

  def _run(self):
    try:
      self._prepare()
    except Exception:
      logging.exception('the model does not start; its jobs will fail, too')
    self.ready = True
    while not self._closing:
      self.sweep()
      if job := self._next():
        self._do(job)

  def _do(self, job):
    """Whatever goes wrong with one job, the next one has its turn."""
    try:
      self._work(job)
      state, error = 'done', ''
    except Cancelled:
      state, error = 'cancelled', ''
    except UserError as wrong:
      state, error = 'failed', _plain(wrong, job.folder)
    except Exception:
      logging.exception('job %s', job.id)
      state, error = 'failed', 'the server made a mistake; its log has more'
    with self._changed:
      self._end(job, state, error)


def _plain(error, folder):
  """A message without the server's own paths, flags as names of fields."""
  return str(error).replace(f'{folder}/', '').removeprefix('--')
