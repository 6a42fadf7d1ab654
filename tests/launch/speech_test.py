import dataclasses
import importlib.util
import shlex
import sys

import numpy as np
import pytest
import soundfile

from launch import speech
from launch.errors import UserError

needs_tts = pytest.mark.skipif(
  any(importlib.util.find_spec(p) is None for p in speech.PACKAGES),
  reason="needs pip install '.[tts]'",
)


@needs_tts
def test_phones_cover_the_wave_and_repeat():
  said = speech.synthesise('Bob may pay. Papa!')
  assert said.wave.dtype == np.float32 and said.wave.ndim == 1
  assert said.phones[0].start == 0
  for before, after in zip(said.phones, said.phones[1:], strict=False):
    assert before.end == after.start and after.end >= after.start
  assert said.phones[-1].end == pytest.approx(len(said.wave) / 16000, abs=1e-3)
  symbols = [p.symbol for p in said.phones]
  assert symbols.count('b') == 2 and symbols.count('p') == 3
  again = speech.synthesise('Bob may pay. Papa!')
  np.testing.assert_array_equal(said.wave, again.wave)
  # The times are those of the sound: vowels are loud, the full stop is not.
  loudness = {'.': [], 'ɑ': []}
  for symbol, start, end in said.phones:
    if symbol in loudness:
      part = said.wave[int(start * 16000) : int(end * 16000)]
      loudness[symbol].append(np.sqrt(np.mean(part**2)))
  assert max(loudness['.']) < 0.01 < 0.1 < min(loudness['ɑ'])


@needs_tts
def test_another_language_has_its_own_phones():
  for language, letters in (('de', 'vaɪn'), (None, 'waɪn')):
    said = speech.synthesise('Wein.', language=language)
    heard = ''.join(p.symbol for p in said.phones if p.symbol not in '^$_ˈ')
    assert heard.startswith(letters), heard


@needs_tts
def test_nothing_to_say_and_no_such_voice(tmp_path):
  with pytest.raises(UserError, match='no text'):
    speech.synthesise('  ')
  with pytest.raises(UserError, match=r'voice\.onnx: no such file'):
    speech.load_voice(tmp_path / 'voice.onnx')


def test_missing_packages_name_the_extra(monkeypatch):
  monkeypatch.setattr(speech, 'PACKAGES', ('no_such_package',))
  with pytest.raises(UserError, match=r"no_such_package: pip install '\.\[tts"):
    speech.load_voice('other')


def program(tmp_path, source, *arguments):
  path = tmp_path / 'engine.py'
  path.write_text(f'import sys, shutil\n{source}')
  return shlex.join([sys.executable, str(path), *arguments])


def test_any_program_that_writes_a_sound_is_an_engine(tmp_path, talker):
  said = speech.get_engine(talker)('abcde')
  assert len(said.wave) == 5 * 640 and said.phones == []
  assert 0.29 < said.wave.max() < 0.31


@pytest.mark.parametrize('where', ['{text}', '{text_file}', ''])
def test_the_text_arrives_as_it_is(tmp_path, where, monkeypatch):
  """No shell, no option, no second replacement."""
  source = f"""
where = sys.argv[2:]
text = where[0] if where else sys.stdin.read()
text = open(text).read() if {where!r} == '{{text_file}}' else text
open({str(tmp_path / 'heard')!r}, 'w').write(text)
shutil.copy({str(tmp_path / 'a.wav')!r}, sys.argv[1])
"""
  tone = np.sin(np.arange(1600) / 5).astype(np.float32)
  soundfile.write(tmp_path / 'a.wav', tone, 16000)
  words = [where] if where else []
  engine = speech.get_engine(program(tmp_path, source, '{out}', *words))
  text = '-x $(touch no) {out} "q" ü'
  engine(text)
  heard = (tmp_path / 'heard').read_text()
  assert heard == (f' {text}' if where == '{text}' else text)
  assert not (tmp_path / 'no').exists()


@pytest.mark.parametrize(
  ('source', 'said'),
  [
    ('print("a\\nno voice", file=sys.stderr); sys.exit(3)', 'code 3: no voice'),
    ('sys.exit(4)', 'failed with code 4$'),
    ('', 'wrote no {out}'),
    ('open(sys.argv[1], "w").write("x")', 'its sound: is not media'),
    (
      'import numpy, soundfile\n'
      'nan = numpy.full(999, numpy.nan, "float32")\n'
      'soundfile.write(sys.argv[1], nan, 16000, subtype="FLOAT")',
      'made samples that are no numbers',
    ),
    ('import time; time.sleep(60)', 'has not spoken within 0.2 s'),
  ],
)
def test_an_engine_that_fails_is_one_line(tmp_path, source, said):
  engine = speech.get_engine(program(tmp_path, source, '{out}'))
  if '0.2' in said:
    engine = dataclasses.replace(engine, seconds=0.2)
  with pytest.raises(UserError, match=said):
    engine('hello')
  with pytest.raises(UserError, match='no text'):
    engine(' ')


def test_engines_that_are_none():
  for name, said in (
    ('say', '--speech_engine=say: give piper, piper:VOICE.onnx, or a command'),
    ("say '{out}", 'No closing quotation'),
    ('{out}', 'give piper'),
  ):
    with pytest.raises(UserError, match=said):
      speech.get_engine(name)
  with pytest.raises(UserError, match='no-such: cannot be run .No such file'):
    speech.get_engine('/no-such {out}')('a')


@needs_tts
def test_piper_is_an_engine_by_name(tmp_path):
  with pytest.raises(UserError, match=r'v\.onnx: no such file'):
    speech.get_engine(f'piper:{tmp_path}/v.onnx')('hello')
