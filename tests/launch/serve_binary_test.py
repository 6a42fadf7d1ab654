"""python -m launch.serve, but for the waiting."""

import pathlib
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
    sockets[0].close()

  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  monkeypatch.setattr(faces, 'default_mesh', lambda: 'mesh')
  monkeypatch.setattr(uvicorn.Server, 'run', run)
  flags = [f'--checkpoint={tiny_file}', f'--speech_engine={talker}']
  assert binary('serve')(*flags, '--port=0', '--seconds=3', '--queue=2') == 0
  assert capsys.readouterr().out == f'open http://127.0.0.1:{found["port"]}\n'
  assert found['size'] == 16 and found['text_length'] == 8
  assert found['limits']['seconds'] == 3 and found['limits']['queue'] == 2
  assert found['weights'][0]['name'] == 'audio_cfg'
  assert not pathlib.Path(found['folder']).exists()


def test_without_the_extra_it_says_how(binary, one_error, monkeypatch):
  monkeypatch.setitem(sys.modules, 'fastapi', None)
  assert binary('serve')() == 1
  assert one_error() == "a server needs fastapi: pip install '.[serve]'"
