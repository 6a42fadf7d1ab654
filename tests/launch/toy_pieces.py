"""A small sentencepiece model with T5's special ids."""

from collections.abc import Sequence
import io
import pathlib

import sentencepiece


def train(folder: pathlib.Path, texts: Sequence[str]) -> pathlib.Path:
  """spiece.model in a folder, learned from some sentences."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([*texts, 'red and blue men'] * 20),
    model_writer=model,
    vocab_size=60,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  path = folder / 'spiece.model'
  path.write_bytes(model.getvalue())
  return path
