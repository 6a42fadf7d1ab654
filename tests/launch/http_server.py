"""A server of launch.serve inside the test's process, with other work."""

import socket
import threading

import httpx2
import uvicorn

from launch import serve_app
from launch.serve_jobs import Board


class Server:
  """uvicorn in a thread, at a free port; `client()` is a new one each time.

  Attributes:
    folder: Of uploads and videos.
    address: Host and port.
  """

  def __init__(self, folder, work, limits, facts=None, endpoint=None):
    self.folder, self.board = folder, Board(work, limits)
    folder.mkdir()
    api = serve_app.Api(self.board, limits, facts or {}, folder, endpoint)
    config = uvicorn.Config(
      api.app(), log_level='error', lifespan='off', timeout_graceful_shutdown=1
    )
    self._server = uvicorn.Server(config)
    self._socket = socket.create_server(('127.0.0.1', 0))
    self.address = self._socket.getsockname()
    self.url = 'http://{}:{}'.format(*self.address)
    self._thread = threading.Thread(
      target=self._server.run, args=([self._socket],)
    )
    self._clients = []
    self.board.start()
    self._thread.start()

  def client(self):
    client = httpx2.Client(base_url=self.url, timeout=600, verify=False)
    self._clients.append(client)
    return client

  def close(self):
    for client in self._clients:
      client.close()
    self.board.close()
    self._server.should_exit = True
    self._thread.join()
    self._socket.close()
