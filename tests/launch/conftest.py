"""One tiny bundle for all, and what a binary says."""

import sys

import pytest
import soundfile

from launch import bundle as bundle_lib, generate, media
from tests import tiny
from tests.launch.binary import Binary
from tests.launch.chat import Chat

# Beeps 40 ms for every letter of a file.
TALKER = """
import sys, numpy, soundfile
count = 640 * len(open(sys.argv[1]).read())
wave = 0.3 * numpy.sin(numpy.arange(count) / 16000 * 2 * numpy.pi * 300)
soundfile.write(sys.argv[2], wave, 16000)
"""


@pytest.fixture(scope='session')
def tiny_file(tmp_path_factory):
  """The file of a bundle of 16 x 16 frames with random weights."""
  path = tmp_path_factory.mktemp('bundle') / 'tiny.safetensors'
  bundle_lib.save(path, tiny.bundle())
  return path


@pytest.fixture(scope='session')
def generator(tiny_file):
  return generate.Generator(bundle_lib.load(tiny_file), str(tiny_file))


@pytest.fixture
def binary():
  """binary('sample')('--audio=a.wav', ...) -> exit code."""
  return Binary


@pytest.fixture
def one_error(capsys):
  """The one line that a run has put on stderr, without 'error: '."""

  def last():
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith('error: ')]
    assert len(errors) == 1 and lines[-1] == errors[0], lines
    return errors[0].removeprefix('error: ')

  return last


@pytest.fixture
def talker(tmp_path):
  """A program that speaks, as --speech_engine has it."""
  path = tmp_path / 'talker.py'
  path.write_text(TALKER)
  return f'{sys.executable} {path} {{text_file}} {{out}}'


@pytest.fixture
def chat():
  """A stand-in for a server of chat completions."""
  server = Chat()
  yield server
  server.close()


@pytest.fixture
def sample(binary, tiny_file):
  """Runs launch.sample with the tiny bundle; returns the exit code."""

  def run(*arguments):
    given = [f'--checkpoint={tiny_file}', '--steps=2', *arguments]
    return binary('sample')(*given)

  return run


@pytest.fixture
def wav(tmp_path):
  path = tmp_path / 'a.wav'
  soundfile.write(path, tiny.speech(0.5), 16000)
  return path


@pytest.fixture
def face(tmp_path):
  """A picture of the model's own size is taken as it is."""
  media.write_image(tmp_path / 'face.png', tiny.picture())
  return tmp_path / 'face.png'
