"""Requests that are too large are answered before they fill the disk."""

from collections.abc import Mapping
import json

from launch.serve_jobs import Refused

# So much of what is too large is read and forgotten: a client that is still
# sending would take an early answer for a broken connection.
DRAIN = 4


class BodyLimit:
  """ASGI middleware: a limit on bodies, and headers for every response.

  Args:
    app: what comes after.
    mb: megabytes that a body may have.
    headers: added to each response.
  """

  def __init__(self, app, mb: float, headers: Mapping[str, str]):
    self._app, self._mb = app, mb
    self._limit = int(mb * 1e6)
    self._headers = [
      (k.lower().encode(), v.encode()) for k, v in headers.items()
    ]

  async def __call__(self, scope, receive, send) -> None:
    if scope['type'] != 'http':
      await self._app(scope, receive, send)
      return

    async def with_headers(message):
      if message['type'] == 'http.response.start':
        message['headers'] = [*message.get('headers', []), *self._headers]
      await send(message)

    promised = dict(scope['headers']).get(b'content-length', b'0')
    if int(promised) > self._limit:
      await self._drain(receive)
      await self._answer(with_headers)
      return
    count = 0

    async def counted():
      nonlocal count
      message = await receive()
      count += len(message.get('body', b''))
      if count > self._limit:
        if message.get('more_body'):
          await self._drain(receive)
        raise Refused(413, self._message())
      return message

    await self._app(scope, counted, with_headers)

  def _message(self):
    return f'the request is larger than {self._mb:g} MB; send less'

  async def _drain(self, receive):
    left = DRAIN * self._limit
    while left > 0:
      message = await receive()
      left -= len(message.get('body', b''))
      if message['type'] == 'http.disconnect' or not message.get('more_body'):
        return

  async def _answer(self, send):
    body = json.dumps({'error': self._message()}).encode()
    kind = (b'content-type', b'application/json')
    length = (b'content-length', str(len(body)).encode())
    start = {'type': 'http.response.start', 'status': 413}
    await send(start | {'headers': [kind, length]})
    await send({'type': 'http.response.body', 'body': body})
