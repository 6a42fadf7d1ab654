"""A stand-in for a server of chat completions, on this machine."""

import http.server
import json
import threading

GOOD = {
  'script': 'Good morning.',
  'appearance': 'An old man.',
  'bearing': 'He smiles',
  'background': 'A park.',
  'shot': 'A close shot.',
}


class Chat:
  """Answers from a list, in order, and keeps what it was asked.

  Attributes:
    url: Its address.
    answers: Each a string (the content), an int (an HTTP status), or a tuple
      of a status and what is said with it.
    asked: The bodies of the requests.
    headers: And their headers.
  """

  def __init__(self):
    chat = self
    self.answers, self.asked, self.headers = [], [], []

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_POST(self):
        length = int(self.headers['Content-Length'])
        chat.asked.append(json.loads(self.rfile.read(length)))
        chat.headers.append(dict(self.headers))
        answer = chat.answers.pop(0)
        status = answer if isinstance(answer, int) else 200
        body = f'no\n{status}'
        if isinstance(answer, tuple):
          status, body = answer
        if isinstance(answer, str):
          message = {'role': 'assistant', 'content': answer}
          body = json.dumps({'choices': [{'message': message}]})
        self.send_response(status)
        self.send_header('Content-Length', str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

      def log_message(self, *_):
        """Silent."""

    self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self.url = f'http://127.0.0.1:{self._server.server_port}/v1'
    self._thread = threading.Thread(target=self._server.serve_forever)
    self._thread.start()

  def good(self, **values):
    """An answer as asked for, in the fence that models like to add."""
    return f'Sure!\n```json\n{json.dumps(GOOD | values)}\n```'

  def close(self):
    self._server.shutdown()
    self._thread.join()
    self._server.server_close()
