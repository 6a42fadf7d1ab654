"""Both kinds of files that hold a tokenizer, and what is none."""

import pytest
import sentencepiece
import tokenizers

from launch import tokenizer
from launch.errors import UserError
from tests.launch import toy_pieces

TEXTS = ('blue wall', 'a man in front of a red wall')


@pytest.fixture(scope='module')
def pieces(tmp_path_factory):
  return toy_pieces.train(tmp_path_factory.mktemp('tokens'), TEXTS)


def test_both_kinds_of_tokenizers(pieces, tmp_path):
  vocab = {'<pad>': 0, '</s>': 1, 'blue': 2, 'wall': 3, '<unk>': 4}
  model = tokenizers.models.WordLevel(vocab, unk_token='<unk>')
  made = tokenizers.Tokenizer(model)
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  made.save(str(tmp_path / 'tokenizer.json'))
  assert tokenizer.load(tmp_path)('blue wall') == [2, 3, 1]
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single='$A </s>', special_tokens=[('</s>', 1)]
  )
  made.save(str(tmp_path / 'tokenizer.json'))
  assert tokenizer.load(tmp_path / 'tokenizer.json')('wall') == [3, 1]
  ids = tokenizer.load(pieces.parent)('blue wall')
  processor = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
  assert ids[-1] == 1 and processor.decode(ids[:-1]) == 'blue wall'
  for path, said in (
    (tmp_path / 'none.model', 'no such file'),
    (tmp_path / 'broken.model', 'is no tokenizer'),
    (tmp_path / 'broken.json', 'is no tokenizer'),
  ):
    if said != 'no such file':
      path.write_bytes(b'broken')
    with pytest.raises(UserError, match=said):
      tokenizer.load(path)
