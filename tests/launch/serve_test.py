"""A server as strangers meet it: over HTTP, with work that takes no time."""

import concurrent.futures
import io
import json
import pathlib
import socket
import struct
import time
import zlib

import numpy as np
import pytest
import soundfile

from launch import media
from launch.serve_jobs import Limits
from tests import tiny

httpx = pytest.importorskip('httpx2', reason='comes with huggingface-hub')
pytest.importorskip('uvicorn', reason='needs the serve extra')
pytest.importorskip('fastapi', reason='needs the serve extra')

from launch import script, serve_app  # noqa: E402
from tests.launch.http_server import Server  # noqa: E402

LIMITS = Limits(upload_mb=0.3, seconds=2, letters=50, steps=20, queue=6)


def work(job):
  """What the real one leaves behind; the words 'wait' take until cancelled."""
  job.seconds, job.steps, job.wave = 1.0, 2, [(-1.0, 1.0)]
  (job.folder / 'live.mp4').write_bytes(b'a' * 100)
  job.advance()
  while job.order.text_to_speech == 'wait':
    job.check()
    time.sleep(0.01)
  job.frames, job.mouth = 25, [0.5, None]
  (job.folder / 'video.mp4').write_bytes(b'mp4' + job.order.text.encode())


@pytest.fixture
def server(tmp_path):
  running = Server(tmp_path / 'jobs', work, LIMITS)
  yield running
  running.close()


@pytest.fixture
def client(server):
  return server.client()


def sound(seconds=0.5, rate=16000, kind='WAV', scale=1.0):
  file = io.BytesIO()
  soundfile.write(file, scale * tiny.speech(seconds), rate, format=kind)
  return file.getvalue()


def picture(tmp_path):
  media.write_image(tmp_path / 'face.png', tiny.picture())
  return (tmp_path / 'face.png').read_bytes()


def ended(client, job):
  """The events of a job, the last one its end."""
  found = []
  with client.stream('GET', f'/api/jobs/{job["id"]}/events') as stream:
    assert stream.headers['content-type'].startswith('text/event-stream')
    for line in stream.iter_lines():
      if line.startswith('data: '):
        found.append(json.loads(line.removeprefix('data: ')))
  return found


def test_from_upload_to_video(client, server, tmp_path):
  files = {
    'audio': ('my voice.wav', sound()),
    'image': ('me.png', picture(tmp_path)),
  }
  answer = client.post('/api/jobs', files=files, data={'text': 'red wall'})
  assert answer.status_code == 202
  job = answer.json()
  assert job['about'] == {
    'sound': 'my voice.wav',
    'image': 'me.png',
    'text': 'red wall',
  }
  *_, last = ended(client, job)
  assert last['state'] == 'done' and last['frames'] == 25
  path = f'/api/jobs/{job["id"]}'
  video = client.get(f'{path}/video.mp4')
  assert video.content == b'mp4red wall'
  assert video.headers['content-type'] == 'video/mp4'
  part = client.get(f'{path}/video.mp4', headers={'Range': 'bytes=3-5'})
  assert part.status_code == 206 and part.content == b'red'
  assert client.get(f'{path}/live.mp4').content == b'a' * 100
  curves = client.get(f'{path}/curves').json()
  assert curves['wave'] == [[-1, 1]] and curves['mouth'] == [0.5, None]
  assert client.get('/api/jobs').json()['jobs'] == [last]
  assert client.delete(path).status_code == 204
  assert client.get(path).status_code == 404
  assert list(server.folder.iterdir()) == []


def test_events_tell_of_progress_and_a_job_can_be_cancelled(client):
  job = client.post('/api/jobs', data={'text_to_speech': 'wait'}).json()
  states = []
  with client.stream('GET', f'/api/jobs/{job["id"]}/events') as stream:
    for line in stream.iter_lines():
      if line.startswith('data: '):
        news = json.loads(line.removeprefix('data: '))
        states.append(news['state'])
        if news['step'] == 1 and news['state'] == 'running':
          client.delete(f'/api/jobs/{job["id"]}')
  assert states[-2:] == ['running', 'cancelled']
  answer = client.get(f'/api/jobs/{job["id"]}/video.mp4')
  assert answer.status_code == 409
  assert answer.json() == {'error': 'the video is cancelled, not done'}


def test_live_video_comes_while_it_is_made(client):
  job = client.post('/api/jobs', data={'text_to_speech': 'wait'}).json()
  with client.stream('GET', f'/api/jobs/{job["id"]}/live.mp4') as stream:
    parts = stream.iter_bytes()
    assert next(parts) == b'a' * 100
    client.delete(f'/api/jobs/{job["id"]}')
    assert list(parts) == []


def test_nothing_of_one_client_reaches_another(client, server):
  data = {'text_to_speech': 'secret', 'text': 'secret'}
  job = client.post('/api/jobs', data=data).json()
  ended(client, job)
  other = server.client()
  assert other.get('/api/jobs').json() == {'jobs': []}
  path = f'/api/jobs/{job["id"]}'
  for end in ('', '/events', '/curves', '/live.mp4', '/video.mp4'):
    answer = other.get(path + end)
    assert answer.status_code == 404 and 'secret' not in answer.text
  assert other.delete(path).status_code == 404
  assert client.get(f'{path}/video.mp4').status_code == 200
  for wrong in ('', 'x', job['id'].upper(), "' or 1"):
    other.cookies.set('client', wrong)
    assert other.get('/api/jobs').json() == {'jobs': []}
  for path in (
    '/web/../serve.py',
    '/web/%2e%2e/serve.py',
    '/web/..%2fserve.py',
  ):
    assert server.client().get(path).status_code == 404
  cookie = server.client().get('/').headers['set-cookie'].lower()
  assert 'httponly' in cookie and 'samesite=strict' in cookie


def chunk(name, data):
  check = struct.pack('>I', zlib.crc32(name + data))
  return struct.pack('>I', len(data)) + name + data + check


def wrong_forms(tmp_path):
  """Fields, files, and the error."""
  says = {'text_to_speech': 'a'}
  silent = io.BytesIO()
  soundfile.write(silent, np.zeros(16000 * 40), 16000, format='FLAC')
  mute = tmp_path / 'mute.mp4'
  media.write_video(mute, np.zeros((5, 16, 16, 3), np.uint8), None)
  # Only the header of a picture, which promises much.
  header = struct.pack('>IIBBBBB', 9000, 6000, 8, 2, 0, 0, 0)
  wide = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', b'')
  yield {}, {}, 'give either audio, a file, or text_to_speech'
  yield {'text_to_speech': '  '}, {}, 'give either audio, a file, or text_to_'
  yield says, {'audio': sound()}, 'give either audio, a file, or text_to_speec'
  yield {'audio': 'a.wav'}, {}, 'audio: unknown; there are text_to_speech, fac'
  yield {'text_to_speech': 'a' * 51}, {}, 'text_to_speech: has 51 letters, at'
  yield {}, {'audio': b''}, 'audio: is empty (0 bytes)'
  yield {}, {'audio': b'RIFF' + bytes(range(256)) * 9}, 'audio: is not media th'
  yield {}, {'audio': sound()[:44]}, 'audio: no sound can be decoded'
  yield {}, {'audio': mute.read_bytes()}, 'audio: has no audio; give a file wi'
  yield {}, {'audio': picture(tmp_path)}, 'audio: has no audio'
  yield {}, {'audio': sound(2.3)}, 'audio: is longer than 2 s, the longest'
  yield {}, {'audio': silent.getvalue()}, 'audio: is longer than 2 s'
  yield says, {'image': b'no'}, 'image: is not an image; give a PNG or JPEG'
  yield says, {'image': sound()}, 'image: is not an image'
  yield says, {'image': wide}, 'image: has 9000 x 6000 pixels; scal'
  yield says, {'video': b'x'}, 'video: is no file that is used here'
  yield says | {'face': 'x'}, {}, 'face=x: give one of shipped, none'
  yield says | {'steps': '21'}, {}, 'steps=21: at most 20 are taken'
  yield says | {'steps': '0'}, {}, 'steps=0: at least 1'
  yield says | {'steps': '2.5'}, {}, 'steps=2.5: must be a whole number'
  yield says | {'steps': '9' * 5000}, {}, 'steps=9999'
  yield says | {'seed': '-1'}, {}, 'seed=-1: must lie between 0 and'
  yield says | {'audio_cfg': '31'}, {}, 'audio_cfg=31: must lie between 0 and'
  yield says | {'audio_cfg': 'nan'}, {}, 'audio_cfg=nan: must be a number'
  yield says | {'solver': 'rk4'}, {}, 'solver=rk4: there is no such solver'
  yield says | {'guidance_schedule': 'x'}, {}, 'guidance_schedule=x: '
  yield says | {'negative_text': 'x'}, {}, 'negative_text: has no effect'
  yield says | {'checkpoint': '/etc'}, {}, 'checkpoint: unknown; there are'


def test_a_bad_form_is_one_line_and_leaves_nothing(client, server, tmp_path):
  for data, files, said in wrong_forms(tmp_path):
    named = {key: (f'../{key}.x', value) for key, value in files.items()}
    answer = client.post('/api/jobs', data=data, files=named)
    assert answer.status_code == 400, said
    assert list(answer.json()) == ['error']
    assert answer.json()['error'].startswith(said), answer.text
    assert len(answer.text) < 400 and str(tmp_path) not in answer.text
  assert list(server.folder.iterdir()) == []
  assert client.post('/api/jobs', data={'text_to_speech': 'a'}).is_success


def test_forms_that_are_no_forms(client, server):
  both = [('audio', ('a', sound())), ('audio', ('b', sound()))]
  assert 'is given twice' in client.post('/api/jobs', files=both).text
  kind = {'Content-Type': 'multipart/form-data; boundary=x'}
  for body in (b'', b'--x\r\nnonsense', b'\xff' * 1000):
    assert client.post('/api/jobs', content=body, headers=kind).is_client_error
  many = {str(n): 'x' for n in range(50)}
  assert client.post('/api/jobs', data=many).status_code == 400
  assert client.put('/api/jobs').json() == {'error': 'Method Not Allowed'}
  assert client.get('/no').json() == {'error': 'Not Found'}
  assert list(server.folder.iterdir()) == []


def test_what_is_too_large_is_refused_while_it_comes(client, server):
  large = {'audio': ('a', bytes(400_000))}
  answer = client.post('/api/jobs', files=large)
  assert answer.status_code == 413
  assert answer.json()['error'].startswith('the request is larger than 0.3 MB')

  def unannounced():
    yield b'--x\r\nContent-Disposition: form-data; name="audio"; '
    yield b'filename="a"\r\n\r\n'
    for _ in range(40):
      yield bytes(10_000)

  kind = {'Content-Type': 'multipart/form-data; boundary=x'}
  answer = client.post('/api/jobs', content=unannounced(), headers=kind)
  assert answer.status_code == 413
  assert list(server.folder.iterdir()) == []


def test_fifty_uploads_at_once(server):
  """As many as there is room for are taken; the others hear why not."""
  body = sound()

  def upload(number):
    client = clients[number]
    files = {'audio': (f'{number}.wav', body)}
    answer = client.post('/api/jobs', files=files)
    if answer.status_code != 202:
      return answer.status_code, answer.json()['error']
    job = answer.json()
    own = client.get('/api/jobs').json()['jobs']
    assert [j['id'] for j in own] == [job['id']]
    return 202, ended(client, job)[-1]['about']['sound']

  clients = [server.client() for _ in range(50)]
  with concurrent.futures.ThreadPoolExecutor(50) as pool:
    found = list(pool.map(upload, range(50)))
  taken = [name for status, name in found if status == 202]
  assert len(taken) >= LIMITS.queue
  assert taken == [f'{n}.wav' for n in range(50) if found[n][0] == 202]
  refused = [said for status, said in found if status == 503]
  assert len(refused) == 50 - len(taken)
  assert all('videos are waiting already' in said for said in refused)


def test_clients_that_leave(server, client):
  """In the middle of an upload, of events, of a video; the server stays up."""
  job = client.post('/api/jobs', data={'text_to_speech': 'wait'}).json()
  cookie = f'Cookie: client={client.cookies["client"]}\r\n'
  head = (
    'POST /api/jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n'
    'Content-Type: multipart/form-data; boundary=x\r\n\r\n'
    '--x\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n'
  )
  gets = [
    f'GET /api/jobs/{job["id"]}/{end} HTTP/1.1\r\nHost: a\r\n{cookie}\r\n'
    for end in ('events', 'live.mp4')
  ]
  for text in (head, *gets, 'GET / HT', 'nonsense\r\n\r\n'):
    with socket.create_connection(server.address) as line:
      line.sendall(text.encode())
      if text in gets:
        assert line.recv(4096).startswith(b'HTTP/1.1 200')
  assert client.get(f'/api/jobs/{job["id"]}').json()['state'] == 'running'
  client.delete(f'/api/jobs/{job["id"]}')
  assert ended(client, job)[-1]['state'] == 'cancelled'
  folders = list(server.folder.iterdir())
  assert len(folders) == 1  # Of the half upload, nothing.


def test_the_page_comes_whole_and_from_here_alone(client):
  page = client.get('/')
  assert page.status_code == 200 and '<h1>Mirage</h1>' in page.text
  policy = page.headers['content-security-policy']
  assert "default-src 'self'" in policy
  web = pathlib.Path(serve_app.WEB)
  for file in web.iterdir():
    assert client.get(f'/web/{file.name}').status_code == 200
    text = file.read_text().replace('http://www.w3.org/2000/svg', '')
    assert 'http:' not in text and 'https:' not in text
  assert client.get('/face.png').headers['content-type'] == 'image/png'
  settings = client.get('/api/settings').json()
  assert settings['ready'] and not settings['writes']


def test_scripts(tmp_path, chat, client):
  answer = client.post('/api/script', json={'request': 'a'})
  assert answer.status_code == 501
  endpoint = script.Endpoint(chat.url, 'm')
  server = Server(tmp_path / 'other', work, LIMITS, endpoint=endpoint)
  try:
    client = server.client()
    chat.answers += [chat.good(), 500]
    answer = client.post('/api/script', json={'request': 'greet'})
    assert answer.json()['script'] == 'Good morning.'
    assert answer.json()['prompt'].startswith('An old man. He smiles.')
    answer = client.post('/api/script', json={'request': 'greet'})
    assert answer.status_code == 400 and 'answers 500' in answer.text
    for wrong in ({}, [], {'request': 3}, {'request': 'x' * 51}):
      assert client.post('/api/script', json=wrong).status_code == 400
    assert client.post('/api/script', content=b'{').status_code == 400
  finally:
    server.close()
