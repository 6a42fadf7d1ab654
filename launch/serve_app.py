"""The HTTP interface of a server: routes, forms, answers.

Everything is JSON but the page, the videos and the events; every error is
{"error": one line}. A client is who holds a cookie: it sees its own jobs only.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
import json
import pathlib
import re
import secrets
import shutil
import tempfile
from typing import Any

import fastapi
from fastapi import Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from launch import script, serve_inputs
from launch.errors import UserError
from launch.serve_body import BodyLimit
from launch.serve_jobs import ENDED, Board, Job, Limits, Refused
from launch.serve_work import FACE
from launch.settings import USUAL, Settings

WEB = pathlib.Path(__file__).with_name('web')
COOKIE, TOKEN = 'client', re.compile('[0-9a-f]{32}')
POLL = 0.2  # Seconds between looks at a job, for events and live video.
QUIET = 15.0  # Seconds without an event until a sign of life is sent.
DECODERS = 2  # Uploads that are decoded at one time.
UPLOAD_SECONDS = 120.0
HEADERS = {
  'Content-Security-Policy': (
    "default-src 'self'; media-src 'self' blob:; img-src 'self' blob: data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
  ),
  'X-Content-Type-Options': 'nosniff',
  'Referrer-Policy': 'no-referrer',
}


class Api:
  """The routes.

  Args:
    board: has the jobs.
    limits: of requests.
    facts: what the page shows of the model, as JSON.
    folder: uploads and videos go into folders in it.
    endpoint: writes scripts; None for none.
    usual: how a video is sampled unless its form says otherwise.
    check: UserError for a text and settings that the model cannot take.
  """

  def __init__(
    self,
    board: Board,
    limits: Limits,
    facts: dict[str, Any],
    folder: pathlib.Path,
    endpoint: script.Endpoint | None = None,
    usual: Settings = USUAL,
    check: Callable[[str, Settings], None] = lambda text, settings: None,
  ):
    self._check = check
    self._board, self._limits, self._facts = board, limits, facts
    self._folder, self._endpoint, self._usual = folder, endpoint, usual
    self._decoders = asyncio.Semaphore(DECODERS)

  def app(self) -> fastapi.FastAPI:
    """The whole application, for uvicorn or a test client."""
    # Its pages of documentation would load scripts from elsewhere.
    app = fastapi.FastAPI(title='Mirage', docs_url=None, redoc_url=None)
    job = '/api/jobs/{name}'
    for method, path, route in (
      ('GET', '/', self.page),
      ('GET', '/face.png', self.face),
      ('GET', '/api/settings', self.settings),
      ('POST', '/api/script', self.write_script),
      ('POST', '/api/jobs', self.submit),
      ('GET', '/api/jobs', self.list),
      ('GET', job, self.show),
      ('DELETE', job, self.delete),
      ('GET', f'{job}/events', self.events),
      ('GET', f'{job}/curves', self.curves),
      ('GET', f'{job}/live.mp4', self.live),
      ('GET', f'{job}/video.mp4', self.video),
    ):
      app.add_api_route(path, route, methods=[method], response_model=None)
    app.mount('/web', StaticFiles(directory=WEB))
    app.add_exception_handler(Refused, _refuse)
    app.add_exception_handler(UserError, _refuse)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_middleware(BodyLimit, mb=self._limits.upload_mb, headers=HEADERS)
    return app

  async def page(self, request: Request) -> Response:
    response = FileResponse(WEB / 'index.html')
    _client(request, response)
    return response

  async def face(self) -> Response:
    return FileResponse(FACE)

  async def settings(self, request: Request, response: Response) -> dict:
    _client(request, response)
    return self._facts | {
      'ready': self._board.ready,
      'writes': self._endpoint is not None,
    }

  async def submit(self, request: Request, response: Response) -> dict:
    """A form of `serve_inputs.FIELDS` and FILES -> a job that waits."""
    owner = _client(request, response)
    self._board.check_room(owner)
    folder = pathlib.Path(tempfile.mkdtemp(dir=self._folder))
    try:
      fields, files, names = await self._receive(request, folder)
      async with self._decoders:
        order = await run_in_threadpool(
          serve_inputs.read_order, fields, files, self._limits, self._usual
        )
        await run_in_threadpool(self._check, order.text, order.settings)
      about = {'sound': names.get('audio', ''), 'image': names.get('image', '')}
      job = self._board.submit(Job(owner, folder, order, about | fields))
    except BaseException as error:
      await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)
      if isinstance(error, UserError):
        raise UserError(_own(str(error), folder)) from error
      raise
    response.status_code = 202
    return self._board.view(job)

  async def list(self, request: Request, response: Response) -> dict:
    jobs = self._board.list(_client(request, response))
    return {'jobs': [self._board.view(job) for job in jobs]}

  async def show(self, name: str, request: Request) -> dict:
    return self._board.view(self._job(name, request))

  async def delete(self, name: str, request: Request) -> Response:
    """Cancels a job; throws one away that has ended."""
    self._board.cancel(self._job(name, request))
    return Response(status_code=204)

  async def curves(self, name: str, request: Request) -> dict:
    """Waveform and mouth, as far as they are known, on one clock."""
    job = self._job(name, request)
    about = {'fps': 25, 'seconds': job.seconds, 'frames': job.frames}
    return about | {'wave': list(job.wave), 'mouth': list(job.mouth)}

  async def events(self, name: str, request: Request) -> Response:
    """Server-sent events: the job, whenever it changes, until it ends."""
    job = self._job(name, request)
    return StreamingResponse(
      self._events(job),
      media_type='text/event-stream',
      headers={'Cache-Control': 'no-store', 'X-Accel-Buffering': 'no'},
    )

  async def live(self, name: str, request: Request) -> Response:
    """The video as far as it is made, and then the rest as it comes."""
    job = self._job(name, request)
    headers = {'Cache-Control': 'no-store'}
    return StreamingResponse(_growing(job), 200, headers, 'video/mp4')

  async def video(self, name: str, request: Request) -> Response:
    job = self._job(name, request)
    if job.state != 'done':
      raise Refused(409, f'the video is {job.state}, not done')
    return FileResponse(job.folder / 'video.mp4', filename=f'{job.id[:8]}.mp4')

  async def write_script(self, request: Request) -> dict:
    """{"request": ...} -> words to say and the four sentences."""
    if self._endpoint is None:
      raise Refused(501, 'no writer is set up here; see --script_endpoint')
    try:
      wish = (await request.json())['request']
    except (ValueError, KeyError, TypeError) as error:
      raise UserError('give a JSON object with "request"') from error
    if not isinstance(wish, str) or len(wish) > self._limits.letters:
      raise UserError(
        f'request: must be a text of at most {self._limits.letters} letters'
      )
    words = max(int(2 * self._limits.seconds), 10)
    written = await run_in_threadpool(self._endpoint.write, wish, None, words)
    return {'script': written.script, 'prompt': written.prompt}

  def _job(self, name, request):
    return self._board.get(_client(request), name)

  async def _receive(self, request, folder):
    """Fields, files and the names that the client gave the files."""
    fields, files, names = {}, {}, {}
    form = request.form(max_files=2, max_fields=40, max_part_size=1 << 16)
    try:
      async with asyncio.timeout(UPLOAD_SECONDS), form as parts:
        for key, value in parts.multi_items():
          if key in fields or key in files:
            raise UserError(f'{key[:40]}: is given twice')
          if isinstance(value, str):
            fields[key] = value
          elif key not in serve_inputs.FILES:
            raise UserError(f'{key[:40]}: is no file that is used here')
          elif value.filename:
            files[key] = folder / key
            names[key] = value.filename[:80]
            await run_in_threadpool(_save, value.file, files[key])
    except TimeoutError as error:
      raise Refused(408, 'the upload takes too long') from error
    except ClientDisconnect as error:
      raise Refused(400, 'the client left in the middle') from error
    return fields, files, names

  async def _events(self, job: Job) -> AsyncIterator[str]:
    last, quiet = None, 0.0
    while True:
      self._board.see(job.owner)
      view = self._board.view(job)
      steady = {k: v for k, v in view.items() if k not in ('spent', 'left')}
      if steady != last:
        last, quiet = steady, 0.0
        yield f'data: {json.dumps(view)}\n\n'
      elif quiet > QUIET:
        quiet = 0.0
        yield ': still here\n\n'
      if view['state'] in ENDED:
        return
      await asyncio.sleep(POLL)
      quiet += POLL


async def _growing(job: Job) -> AsyncIterator[bytes]:
  path = job.folder / 'live.mp4'
  while not path.exists():
    if job.state in ENDED:
      return
    await asyncio.sleep(POLL)
  with path.open('rb') as file:
    while True:
      ended = job.state in ENDED  # Before the read: then it was the last one.
      if data := file.read(1 << 16):
        yield data
      elif ended:
        return
      else:
        await asyncio.sleep(POLL)


def _client(request: Request, response: Response | None = None) -> str:
  """Who asks; a new client gets a cookie with the response."""
  token = request.cookies.get(COOKIE, '')
  if not TOKEN.fullmatch(token):
    token = secrets.token_hex(16)
    if response is not None:
      response.set_cookie(COOKIE, token, httponly=True, samesite='strict')
  return token


def _save(source, path):
  with path.open('wb') as target:
    shutil.copyfileobj(source, target)


def _own(message, folder):
  """Files by the names of their fields, flags by theirs."""
  return message.replace(f'{folder}/', '').removeprefix('--')


async def _refuse(_: Request, error: Exception) -> Response:
  status = 400
  if isinstance(error, Refused):
    status = error.status
  if isinstance(error, HTTPException):
    status, error = error.status_code, error.detail
  headers = {'Retry-After': '10'} if status in (429, 503) else {}
  message = ' '.join(str(error).split()).removeprefix('--')
  return JSONResponse({'error': message}, status, headers)
