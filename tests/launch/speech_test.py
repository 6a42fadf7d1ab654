import importlib.util

import numpy as np
import pytest

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
def test_nothing_to_say_and_no_such_voice(tmp_path):
  with pytest.raises(UserError, match='no text'):
    speech.synthesise('  ')
  with pytest.raises(UserError, match=r'voice\.onnx: no such file'):
    speech.load_voice(tmp_path / 'voice.onnx')


def test_missing_packages_name_the_extra(monkeypatch):
  monkeypatch.setattr(speech, 'PACKAGES', ('no_such_package',))
  with pytest.raises(UserError, match=r"no_such_package: pip install '\.\[tts"):
    speech.load_voice('other')
