"""Text to the ids of a checkpoint's own tokenizer."""

from collections.abc import Callable
import os
import pathlib

from launch.errors import UserError


def find(path: str | os.PathLike) -> pathlib.Path:
  """The file of a tokenizer: itself, or one in the folder.

  Raises:
    UserError: there is none.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    names = ('spiece.model', 'tokenizer.json')
    found = [path / name for name in names if (path / name).exists()]
    if not found:
      raise UserError(f'{path}: has neither {" nor ".join(names)}')
    return found[0]
  if not path.exists():
    raise UserError(
      f'{path}: no such file; give spiece.model of the checkpoint'
    )
  return path


def load(path: str | os.PathLike) -> Callable[[str], list[int]]:
  """A tokenizer whose ids end with the end of the text, as T5 wants them.

  Args:
    path: sentencepiece's spiece.model or tokenizers' tokenizer.json, or the
      folder of one.

  Raises:
    UserError: there is none, or it is damaged.
  """
  path = find(path)
  try:
    if path.suffix == '.json':
      return _json(path)
    return _pieces(path)
  except Exception as error:  # Both libraries raise their own kinds.
    raise UserError(
      f'{path}: is no tokenizer of sentencepiece or tokenizers ({error})'
    ) from error


def _json(path):
  import tokenizers

  made = tokenizers.Tokenizer.from_file(str(path))
  made.no_padding()
  made.no_truncation()
  end = made.token_to_id('</s>')

  def encode(text):
    ids = made.encode(text).ids
    # What a file does after the pieces is its own choice.
    return ids if end is None or ids[-1:] == [end] else [*ids, end]

  return encode


def _pieces(path):
  import sentencepiece

  made = sentencepiece.SentencePieceProcessor(model_file=str(path))
  return lambda text: [*made.encode(text), made.eos_id()]
