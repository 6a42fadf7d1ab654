"""Ids of captions are those of transformers' T5 tokenizers."""

import pytest

from launch import tokenizer
from tests.launch import toy_pieces

REASON = 'parity with the original needs the `convert` extra'
transformers = pytest.importorskip('transformers', reason=REASON)

pytestmark = pytest.mark.filterwarnings('ignore')
TEXTS = (
  'A man, in front of a red wall.',
  '  two   spaces and  an end ',
  'Grüße: naïve café',
  '你好 unknown ☃',
  'a\nb\tc',
  'x',
)


@pytest.fixture(scope='module')
def pieces(tmp_path_factory):
  return toy_pieces.train(tmp_path_factory.mktemp('tokens'), TEXTS[:3])


def test_both_files_give_their_ids(pieces):
  theirs = transformers.T5Tokenizer.from_pretrained(
    str(pieces.parent), extra_ids=0
  )
  theirs.save_pretrained(pieces.parent)
  files = [pieces, pieces.with_name('tokenizer.json')]
  for file in files:
    encode = tokenizer.load(file)
    for text in TEXTS:
      assert encode(text) == theirs(text).input_ids, (file.name, text)
