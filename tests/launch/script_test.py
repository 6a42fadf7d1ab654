"""Scripts from a chat endpoint: a stand-in server answers well and badly."""

import base64
import json

import pytest

from launch import script
from launch.errors import UserError
from tests.launch.chat import GOOD


def test_a_request_becomes_words_and_four_sentences(chat):
  chat.answers.append(chat.good(script='Good\n morning. '))
  endpoint = script.Endpoint(chat.url + '/', 'm', 'secret')
  written = endpoint.write('greet', words=7)
  assert written.script == 'Good morning.'
  assert written.prompt == 'An old man. He smiles. A park. A close shot.'
  (asked,) = chat.asked
  assert asked['model'] == 'm'
  assert 'at most 7 words' in asked['messages'][0]['content']
  assert asked['messages'][1] == {'role': 'user', 'content': 'greet'}
  assert chat.headers[0]['Authorization'] == 'Bearer secret'
  assert 'secret' not in repr(endpoint)


def test_a_picture_is_shown(chat):
  chat.answers.append(chat.good())
  picture = b'\x89PNG...'
  script.Endpoint(chat.url, 'm').write('greet', picture)
  text, image = chat.asked[0]['messages'][1]['content']
  kind, _, data = image['image_url']['url'].partition(',')
  assert text['text'] == 'greet' and kind == 'data:image/png;base64'
  assert base64.b64decode(data) == picture
  assert 'Authorization' not in chat.headers[0]


def test_a_wrong_answer_is_sent_back_once(chat):
  chat.answers += ['I cannot.', chat.good()]
  assert script.Endpoint(chat.url, 'm').write('greet').script
  *_, answer, complaint = chat.asked[1]['messages']
  assert answer == {'role': 'assistant', 'content': 'I cannot.'}
  assert complaint['content'].startswith('Not as asked for: it is not JSON')
  chat.answers += ['{"script": "a"}', json.dumps(GOOD | {'shot': ''})]
  with pytest.raises(
    UserError, match='m does not answer.*"shot" must be a str'
  ):
    script.Endpoint(chat.url, 'm').write('greet')


@pytest.mark.parametrize(
  ('answer', 'said'),
  [
    ('{"script": "a"', 'it is not JSON'),
    (json.dumps(GOOD | {'script': 3}), '"script" must be a string'),
    (json.dumps(GOOD | {'bearing': 'x' * 501}), '"bearing" has over 500'),
    (json.dumps(GOOD | {'script': 'x' * 4001}), '"script" has over 4000'),
  ],
)
def test_what_is_wrong_with_an_answer_is_named(answer, said):
  with pytest.raises(ValueError, match=said):
    script.parse(answer)


def test_a_server_that_fails_is_one_line(chat):
  chat.answers += [500]
  endpoint = script.Endpoint(chat.url, 'm')
  with pytest.raises(UserError, match=r'127\.0\.0\.1:.*answers 500 no 500$'):
    endpoint.write('greet')
  with pytest.raises(UserError, match='there is no request'):
    endpoint.write(' ')
  with pytest.raises(UserError, match='gives no answer .*is it running'):
    script.Endpoint('http://127.0.0.1:9/v1', 'm').write('greet')


def test_where_it_is_comes_from_flags_or_the_environment(monkeypatch):
  for name in (script.URL, script.MODEL, script.KEY):
    monkeypatch.delenv(name, raising=False)
  assert script.get_endpoint() is None
  with pytest.raises(UserError, match=r'needs --script_model, or \$OPENAI_MOD'):
    script.get_endpoint('http://a')
  with pytest.raises(UserError, match='must begin with http'):
    script.get_endpoint('file:///etc/passwd', 'm')
  monkeypatch.setenv(script.URL, 'https://b/v1')
  monkeypatch.setenv(script.MODEL, 'n')
  monkeypatch.setenv(script.KEY, 'k')
  assert script.get_endpoint() == script.Endpoint('https://b/v1', 'n', 'k')
  assert script.get_endpoint('http://a', 'm').url == 'http://a'


def test_a_server_without_that_format_and_a_model_that_thinks(chat):
  endpoint = script.Endpoint(chat.url, 'm')
  no = '{"error": "response_format.type must be json_schema or text"}'
  thought = f'<think>{{"script": 1}} or {{}}?</think>{chat.good(script="Hi.")}'
  chat.answers += [(400, no), thought]
  assert endpoint.write('greet').script == 'Hi.'
  formats = ['response_format' in asked for asked in chat.asked]
  assert formats == [True, False]
  chat.answers += [(400, 'no such model')]
  with pytest.raises(UserError, match='answers 400 no such model'):
    endpoint.write('greet')
