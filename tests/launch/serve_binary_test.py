"""python -m launch.serve, but for the waiting."""

import pathlib
import signal
import sys
import tempfile

import pytest

from launch import faces

uvicorn = pytest.importorskip('uvicorn', reason='needs the serve extra')
pytest.importorskip('fastapi', reason='needs the serve extra')

from starlette.testclient import TestClient  # noqa: E402


def test_it_serves_what_its_flags_say_and_cleans_up(
  binary, tiny_file, tmp_path, talker, monkeypatch, capsys
):
  found = {}

  def run(self, sockets):
    with TestClient(self.config.app) as client:
      found.update(client.get('/api/settings').json())
    (folder,) = tmp_path.glob('mirage-serve-*')
    found['folder'] = folder
    found['port'] = sockets[0].getsockname()[1]
    with TestClient(self.config.app) as client:
      form = {'text_to_speech': 'a', 'text': 'x' * 99}
      found['refused'] = client.post('/api/jobs', data=form)
    sockets[0].close()
    # Uvicorn raises a signal that has ended it anew.
    found['ends'] = signal.getsignal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)

  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  monkeypatch.setattr(faces, 'default_mesh', lambda: 'mesh')
  monkeypatch.setattr(uvicorn.Server, 'run', run)
  before = signal.getsignal(signal.SIGTERM)
  # Of a process in the background a shell has SIGINT ignored.
  interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
  flags = [f'--checkpoint={tiny_file}', f'--speech_engine={talker}']
  assert binary('serve')(*flags, '--port=0', '--seconds=3', '--queue=2') == 0
  signal.signal(signal.SIGTERM, before)
  signal.signal(signal.SIGINT, interrupt)
  assert found['ends'] is signal.default_int_handler
  assert capsys.readouterr().out == f'open http://127.0.0.1:{found["port"]}\n'
  assert found['size'] == 16 and found['text_length'] == 8
  # The model's own limits are told at once, too.
  assert found['refused'].status_code == 400
  assert found['refused'].json()['error'] == (
    'text: has 99 bytes, this checkpoint reads 8; shorten it'
  )
  assert found['limits']['seconds'] == 3 and found['limits']['queue'] == 2
  assert found['weights'][0]['name'] == 'audio_cfg'
  assert not pathlib.Path(found['folder']).exists()


def test_without_the_extra_it_says_how(binary, one_error, monkeypatch):
  monkeypatch.setitem(sys.modules, 'fastapi', None)
  assert binary('serve')() == 1
  assert one_error() == "a server needs fastapi: pip install '.[serve]'"
