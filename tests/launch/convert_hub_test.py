"""What is read from a hub, and what is said when there is none."""

import errno
import http.server
import json
import threading

import pytest

from launch import convert_hub
from launch.errors import UserError

COMMIT = 'c' * 40
ASKED = []
FILES = {
  'README.md': b'hello',
  'model_index.json': b'{}',
  'transformer/config.json': b'{"num_layers": 1}',
  'transformer/diffusion_pytorch_model.safetensors': b'weights',
  'transformer/diffusion_pytorch_model.fp16.safetensors': b'half',
  'sharded/model.bf16-00001-of-00002.safetensors': b'1',
  'sharded/model.bf16-00002-of-00002.safetensors': b'2',
  'sharded/model-00001-of-00001.safetensors': b'whole',
  'sharded/model.safetensors.index.bf16.json': b'{}',
  'sharded/model.safetensors.index.json': b'{}',
  'vae/config.json': b'{}',
}


class Hub(http.server.BaseHTTPRequestHandler):
  """As much of the hub's protocol as its client asks for."""

  def answer(self):
    path = self.path.split('?')[0]
    ASKED.append(path)
    if path == '/api/models/genmo/mochi/tree/main':
      rows = [
        {'type': 'file', 'path': name, 'size': len(data), 'oid': 'a' * 40}
        for name, data in FILES.items()
      ]
      return (
        200,
        json.dumps(rows).encode(),
        {'Content-Type': 'application/json'},
      )
    name = path.removeprefix('/genmo/mochi/resolve/main/')
    if name in FILES:
      headers = {'ETag': f'"{name.replace("/", "-")}"', 'X-Repo-Commit': COMMIT}
      return 200, FILES[name], headers
    return 404, b'{}', {'X-Error-Code': 'RepoNotFound'}

  def do_GET(self):
    code, data, headers = self.answer()
    self.send_response(code)
    for key, value in (headers | {'Content-Length': len(data)}).items():
      self.send_header(key, str(value))
    self.end_headers()
    if self.command == 'GET':
      self.wfile.write(data)

  do_HEAD = do_GET

  def log_message(self, *_):
    """Keeps quiet."""


@pytest.fixture(scope='module')
def hub():
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  yield f'http://127.0.0.1:{server.server_port}'
  server.shutdown()
  thread.join()
  server.server_close()


def test_only_what_is_needed_is_downloaded(hub, tmp_path):
  folder = convert_hub.download('genmo/mochi', 'mochi', hub, str(tmp_path))
  names = sorted(p.name for p in folder.iterdir())
  assert names == ['config.json', 'diffusion_pytorch_model.safetensors']
  weights = folder / 'diffusion_pytorch_model.safetensors'
  assert weights.read_bytes() == b'weights'
  asked = [path for path in ASKED if 'fp16' in path or 'README' in path]
  assert not asked


def test_a_file_or_folder_may_be_named(hub, tmp_path):
  name = 'transformer/diffusion_pytorch_model.fp16.safetensors'
  file = convert_hub.download(
    f'genmo/mochi/{name}', 'mochi', hub, str(tmp_path)
  )
  assert file.read_bytes() == b'half'
  with pytest.raises(UserError, match='no weights in vae .it has README'):
    convert_hub.download('genmo/mochi/vae', 'mochi', hub, str(tmp_path))
  with pytest.raises(UserError, match='the repository has no such file'):
    convert_hub.download('genmo/mochi/x.safetensors', 't5', hub, str(tmp_path))


def test_a_variant_is_had_by_its_index(hub, tmp_path):
  name = 'sharded/model.safetensors.index.bf16.json'
  file = convert_hub.download(
    f'genmo/mochi/{name}', 'mochi', hub, str(tmp_path)
  )
  assert file.name == name.split('/')[1]
  assert sorted(p.name for p in file.parent.iterdir()) == [
    'model.bf16-00001-of-00002.safetensors',
    'model.bf16-00002-of-00002.safetensors',
    file.name,
  ]
  plain = name.replace('bf16.', '')
  got = convert_hub.choose(list(FILES), plain, 'mochi', 'a/b')
  assert got == [plain, 'sharded/model-00001-of-00001.safetensors']


def test_genmo_s_files_are_not_all_downloaded():
  halves = ['encoder.safetensors', 'decoder.safetensors']
  files = ['README.md', 'dit.safetensors', *halves]
  choose = lambda kind, *more: convert_hub.choose(
    [*files, *more], '', kind, 'a/b'
  )
  assert choose('mochi') == ['dit.safetensors']
  assert choose('mochi_vae') == halves
  file = 'vae/diffusion_pytorch_model.safetensors'
  assert choose('mochi_vae', file) == [file]


def test_a_full_disk_is_no_fault_of_the_network(hub, tmp_path, monkeypatch):
  def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr('huggingface_hub.hf_hub_download', full)
  with pytest.raises(UserError, match='the disk of the cache') as error:
    convert_hub.download('genmo/mochi', 'mochi', hub, str(tmp_path))
  assert 'HF_HOME' in str(error.value) and 'network' not in str(error.value)


def test_old_repositories_have_torchs_files(hub, tmp_path):
  files = ['config.json', 'flax_model.msgpack', 'pytorch_model.bin']
  got = convert_hub.choose(files, '', 'wavlm', 'a/b')
  assert got == ['pytorch_model.bin', 'config.json']
  shards = [f'pytorch_model-0000{i}-of-00002.bin' for i in (1, 2)]
  files = [*shards, 'pytorch_model.bin.index.json']
  assert convert_hub.choose(files, '', 't5', 'a/b') == files
  got = convert_hub.choose([*files, 'model.safetensors'], '', 't5', 'a/b')
  assert got == ['model.safetensors']
  assert convert_hub.choose(files, shards[0], 't5', 'a/b') == shards[:1]


def test_no_such_repository(hub, tmp_path):
  with pytest.raises(UserError, match='genmo/none: is no local path') as error:
    convert_hub.download('genmo/none', 'mochi', hub, str(tmp_path))
  assert 'check the name and the network' in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.full
def test_a_hub_that_cannot_be_reached(tmp_path, capfd):
  with pytest.raises(UserError, match='the hub did not give it') as error:
    convert_hub.download('a/b', 'mochi', 'http://127.0.0.1:9', str(tmp_path))
  assert '\n' not in str(error.value)
  assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('text', ['a/b', 'genmo/mochi-1-preview/transformer'])
def test_what_is_a_name_of_the_hub(text):
  assert convert_hub.is_id(text)


@pytest.mark.parametrize(
  'text', ['a', '/a/b', './a/b', '../a/b', 'a//b', 'a b/c']
)
def test_what_is_none(text):
  assert not convert_hub.is_id(text)
