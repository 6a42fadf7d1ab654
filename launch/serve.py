"""A page, and an HTTP interface, to make talking videos in.

  python -m launch.serve                      # then open http://127.0.0.1:8000

One video is made at a time; others wait. Each client, known by a cookie, sees
its own videos only. The page needs nothing from elsewhere. By hand:

  curl -c jar -b jar -F audio=@speech.wav -F image=@face.jpg \\
    http://127.0.0.1:8000/api/jobs
  curl -c jar -b jar http://127.0.0.1:8000/api/jobs/ID/events
  curl -c jar -b jar -o talk.mp4 http://127.0.0.1:8000/api/jobs/ID/video.mp4

Fields of a job are flags of launch.sample: audio or text_to_speech, image, text,
steps, seed, audio_cfg, cache... DELETE cancels one.

It serves this machine alone unless --host says otherwise, and has no passwords:
put a proxy with TLS and a login before it when others can reach it.
"""

import contextlib
import dataclasses
import pathlib
import shutil
import signal
import sys
import tempfile
from typing import Any

from absl import app, flags

from launch import (
  encoder_flags,
  guidance_flags,
  programs,
  script,
  speech,
  talk,
)
from launch.errors import UserError, one_line
from launch.serve_jobs import Board, Limits
from mirage_jax import quantise

_HOST = flags.DEFINE_string('host', '127.0.0.1', 'address to listen at')
_PORT = flags.DEFINE_integer('port', 8000, 'and port; 0 takes a free one', 0)
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'bundle or workdir; fast, the shipped student of 4 steps; or, if unset, the '
  'shipped bundle',
)
_VAE = flags.DEFINE_string(
  'vae', None, "for a workdir: its VAE's bundle; the shipped one if unset"
)
_ENGINE = flags.DEFINE_string(
  'speech_engine', speech.PIPER, 'who says words; see launch.sample'
)
_ENDPOINT = flags.DEFINE_string(
  'script_endpoint', '', 'who writes words and prompts; see launch.sample'
)
_SCRIPT_MODEL = flags.DEFINE_string(
  'script_model', '', f'its model; ${script.MODEL} if unset'
)
_QUANTISE = flags.DEFINE_string(
  'quantise', quantise.NONE, guidance_flags.QUANTISE_HELP
)
_PROGRAMS = flags.DEFINE_string(
  'programs', None, 'folder of compiled programs; see launch.sample'
)
_UPLOAD_MB = flags.DEFINE_float(
  'upload_mb', Limits.upload_mb, 'largest request, in megabytes', 0.01
)
_SECONDS = flags.DEFINE_float('seconds', Limits.seconds, 'longest video', 0.04)
_MAX_STEPS = flags.DEFINE_integer(
  'max_steps', Limits.steps, 'most steps for each window', 2
)
_QUEUE = flags.DEFINE_integer('queue', Limits.queue, 'jobs that may wait', 1)
_PER_CLIENT = flags.DEFINE_integer(
  'per_client', Limits.per_client, 'jobs of one client', 1
)
_KEEP_MINUTES = flags.DEFINE_float(
  'keep_minutes', Limits.keep_minutes, 'that a finished video is kept', 0
)
_PATIENCE = flags.DEFINE_float(
  'patience', Limits.patience, 'seconds until a silent client has left', 1
)
_ENCODERS = encoder_flags.EncoderFlags()


def main(_: list[str]) -> None:
  with one_line():
    uvicorn = load_uvicorn()
    engine = speech.get_engine(_ENGINE.value)
    endpoint = script.get_endpoint(_ENDPOINT.value, _SCRIPT_MODEL.value)
    generator = talk.load_generator(
      _CHECKPOINT.value,
      _VAE.value,
      _QUANTISE.value,
      _ENCODERS.places,
      programs.keep(_PROGRAMS.value),
    )
    folder = pathlib.Path(tempfile.mkdtemp(prefix='mirage-serve-'))
    try:
      board, app_ = build(generator, engine, read_limits(), folder, endpoint)
      board.start()
      config = uvicorn.Config(
        app_,
        _HOST.value,
        _PORT.value,
        # absl's own logging is set up already.
        log_config=None,
        timeout_graceful_shutdown=3,
      )
      server = uvicorn.Server(config)
      socket = config.bind_socket()
      socket.listen()  # Who comes before the server runs has to wait a moment.
      port = socket.getsockname()[1]
      print(f'open http://{_HOST.value}:{port}', flush=True)
      # Of a signal, too, nothing of the clients stays: by then it has closed.
      signal.signal(signal.SIGTERM, signal.default_int_handler)
      with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[socket])
      board.close()
    finally:
      shutil.rmtree(folder, ignore_errors=True)


def load_uvicorn() -> Any:
  """The package; UserError names the extra that installs it."""
  try:
    import fastapi  # noqa: F401
    import python_multipart  # noqa: F401
    import uvicorn
  except ImportError as error:
    raise UserError(
      f"a server needs {error.name}: pip install '.[serve]'"
    ) from error
  return uvicorn


def read_limits() -> Limits:
  """What the flags allow a client."""
  return Limits(
    upload_mb=_UPLOAD_MB.value,
    seconds=_SECONDS.value,
    steps=_MAX_STEPS.value,
    queue=_QUEUE.value,
    per_client=_PER_CLIENT.value,
    keep_minutes=_KEEP_MINUTES.value,
    patience=_PATIENCE.value,
  )


def build(
  generator: Any,
  engine: speech.Engine,
  limits: Limits,
  folder: pathlib.Path,
  endpoint: script.Endpoint | None = None,
) -> tuple[Board, Any]:
  """The queue, not yet started, and the application before it."""
  from launch import serve_app, serve_facts, serve_work

  if generator.own_steps:
    limits = dataclasses.replace(limits, steps=generator.own_steps)
  studio = serve_work.Studio(generator, engine, limits)
  board = Board(studio, limits, studio.warm_up)
  facts = serve_facts.facts(generator, studio, limits)
  how = generator.usual, generator.check
  api = serve_app.Api(board, limits, facts, folder, endpoint, *how)
  return board, api.app()


if __name__ == '__main__':
  sys.exit(app.run(main))
