"""A request, as "a nurse cheers up a boy", becomes words to say and a prompt.

By any endpoint that speaks OpenAI's chat completions: a local server or a hosted
one. The prompt has the four sentences of Mirage's captions (section 3.7):
appearance, bearing, background and shot.
"""

import base64
import dataclasses
import http.client
import json
import os
from typing import Any, NamedTuple
import urllib.error
import urllib.parse
import urllib.request

from launch.errors import UserError

URL, MODEL, KEY = 'OPENAI_BASE_URL', 'OPENAI_MODEL', 'OPENAI_API_KEY'
SENTENCES = ('appearance', 'bearing', 'background', 'shot')
LONGEST = {'script': 4000} | dict.fromkeys(SENTENCES, 500)
REPLY_BYTES = 1 << 20
FORMAT = 'response_format'
ASK = """\
You prepare a video of one person who speaks to the camera. Answer with one JSON
object and nothing else. Its keys, each a string:
"script": the words that the person says, at most {words} words, plain text to be
read aloud: no stage directions, no emoji, numbers written out;
"appearance": one sentence on the person: age, hair, clothes;
"bearing": one sentence on posture, gaze, mood and gestures;
"background": one sentence on the place and its light;
"shot": one sentence on the camera: framing, angle, lens.
If there is a picture, appearance and background are those of the picture."""


class Script(NamedTuple):
  """What to say, and the four sentences on how it looks."""

  script: str
  appearance: str
  bearing: str
  background: str
  shot: str

  @property
  def prompt(self) -> str:
    """The four sentences, in the order of the captions."""
    return ' '.join(getattr(self, name) for name in SENTENCES)


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """Who writes.

  Attributes:
    url: Up to /chat/completions, as http://localhost:8000/v1.
    model: Its name there.
    key: For the Authorization header; '' sends none.
    seconds: An answer may take.
  """

  url: str
  model: str
  key: str = dataclasses.field(default='', repr=False)
  seconds: float = 120.0

  def write(
    self, request: str, image: bytes | None = None, words: int = 60
  ) -> Script:
    """Asks for a script; once more if the answer is not as asked for.

    Args:
      request: what the video is for.
      image: the person, a PNG, JPEG or WebP file, for a model that sees.
      words: the script has at most.

    Raises:
      UserError: no request, no answer, or twice one that is not as asked for.
    """
    if not request.strip():
      raise UserError('there is no request; say what the video is for')
    content: Any = request
    if image is not None:
      address = {'url': f'data:{_kind(image)};base64,{_base64(image)}'}
      content = [
        {'type': 'text', 'text': request},
        {'type': 'image_url', 'image_url': address},
      ]
    messages = [
      {'role': 'system', 'content': ASK.format(words=words)},
      {'role': 'user', 'content': content},
    ]
    answer = self._ask(messages)
    try:
      return parse(answer)
    except ValueError as error:
      messages += [
        {'role': 'assistant', 'content': answer},
        {'role': 'user', 'content': f'Not as asked for: {error}. Again.'},
      ]
    try:
      return parse(self._ask(messages))
    except ValueError as error:
      raise UserError(
        f'{self.url}: {self.model} does not answer as asked for ({error}); try '
        'another model'
      ) from error

  def _ask(self, messages):
    body = {'model': self.model, 'messages': messages}
    try:
      return self._post(body | {FORMAT: {'type': 'json_object'}})
    except _HttpError as error:
      # Some servers know of no format, or of others only.
      if error.status not in (400, 422) or FORMAT not in str(error):
        raise
    return self._post(body)

  def _post(self, body):
    headers = {'Content-Type': 'application/json'}
    if self.key:
      headers['Authorization'] = f'Bearer {self.key}'
    request = urllib.request.Request(
      f'{self.url.rstrip("/")}/chat/completions',
      json.dumps(body).encode(),
      headers,
    )
    try:
      with urllib.request.urlopen(request, timeout=self.seconds) as reply:
        answer = json.loads(reply.read(REPLY_BYTES))
      return str(answer['choices'][0]['message']['content'])
    except urllib.error.HTTPError as error:
      said = ' '.join(error.read(300).decode(errors='replace').split())
      raise _HttpError(self.url, error.code, said) from error
    except (OSError, http.client.HTTPException) as error:
      why = getattr(error, 'reason', None) or error
      raise UserError(
        f'{self.url}: gives no answer ({why}); is it running?'
      ) from error
    except (ValueError, LookupError, TypeError) as error:
      raise UserError(
        f'{self.url}: the answer is no chat completion; the address ends in /v1 '
        'for most servers'
      ) from error


class _HttpError(UserError):
  def __init__(self, url, status, said):
    super().__init__(f'{url}: answers {status} {said}')
    self.status = status


def get_endpoint(url: str = '', model: str = '') -> Endpoint | None:
  """The endpoint of the flags or else of the environment; None without an URL.

  The key comes from the environment alone: every user of a machine can read the
  flags of a process.

  Raises:
    UserError: it is no web address, or no model is named.
  """
  url = url or os.environ.get(URL, '')
  if not url:
    return None
  if urllib.parse.urlsplit(url).scheme not in ('http', 'https'):
    raise UserError(
      f'--script_endpoint={url}: must begin with http:// or https://'
    )
  model = model or os.environ.get(MODEL, '')
  if not model:
    raise UserError(
      f'--script_endpoint={url}: needs --script_model, or ${MODEL}'
    )
  return Endpoint(url, model, os.environ.get(KEY, ''))


def parse(answer: str) -> Script:
  """The script in an answer, with or without a fence around its JSON.

  What a model thinks aloud before it is passed over.

  Raises:
    ValueError: in words that the writer understands, too.
  """
  answer = answer.rpartition('</think>')[2]
  start, end = answer.find('{'), answer.rfind('}')
  try:
    row = json.loads(answer[start : end + 1])
  except ValueError as error:
    raise ValueError(f'it is not JSON: {error}') from error
  parts = {}
  for key in Script._fields:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
      raise ValueError(f'"{key}" must be a string with text')
    parts[key] = ' '.join(value.split())
    if len(parts[key]) > LONGEST[key]:
      raise ValueError(f'"{key}" has over {LONGEST[key]} letters')
    if key in SENTENCES and parts[key][-1] not in '.!?':
      parts[key] += '.'
  return Script(**parts)


def _kind(image):
  if image.startswith(b'\x89PNG'):
    return 'image/png'
  return 'image/webp' if image[8:12] == b'WEBP' else 'image/jpeg'


def _base64(data):
  return base64.b64encode(data).decode()
