"""Sentences of a synthesiser, in several languages, as rows of robustness.

One American voice speaks them all: what differs are the phones and their order.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Float, UInt8
import numpy as np

from launch import clip_scores, closures, faces, robustness_report, speech

Generate = Callable[
  [Float[np.ndarray, 'S'], UInt8[np.ndarray, 'H W 3'], int],
  UInt8[np.ndarray, 'N H W 3'],
]


class Text(NamedTuple):
  """A language by eSpeak's name, and what is said in it."""

  language: str
  sentences: tuple[str, ...]


TEXTS = {
  'synthesised': Text(
    'en-us',
    (
      'Bob may bring a big map, so please put my blue bag by the lamp.',
      'My mother bought a brown umbrella, because it might rain tomorrow.',
    ),
  ),
  'synthesised, German': Text(
    'de', ('Bitte bring mir morgen die blaue Lampe, sie steht beim Bett.',)
  ),
  'synthesised, French': Text(
    'fr', ('Le petit bateau bleu passe sous le pont, puis il part.',)
  ),
  'synthesised, Spanish': Text(
    'es', ('Mi abuela compra pan blanco y un poco de pimienta.',)
  ),
  'synthesised, Mandarin': Text('cmn', ('妈妈把白色的杯子放在门旁边。',)),
  'synthesised, Hindi': Text('hi', ('मेरी माँ बाज़ार से पीले फल लाती है।',)),
}


def measure(
  text: Text,
  image: UInt8[np.ndarray, 'H W 3'],
  truth: clip_scores.Look,
  rois: list[faces.Roi],
  generate: Generate,
  mesh: faces.FaceMesh,
) -> dict[str, Any]:
  """A row of the table: the usual figures, and how often the lips close.

  Args:
    text: what is said.
    image: who says it.
    truth: a real clip, which tells how much a mouth moves.
    rois: where its face is.
    generate: (wave, image, seed) -> frames.
    mesh: finds the landmarks.
  """
  found, hits, chances = [], [], []
  for n, sentence in enumerate(text.sentences):
    spoken = speech.synthesise(sentence, language=text.language)
    made = generate(spoken.wave, image, n)
    seen = clip_scores.look(made, mesh, rois[:1] * len(made))
    found.append(robustness_report.figures(seen, truth, spoken.wave))
    lips = closures.count(seen.mouth, spoken.phones)
    hits += lips.hits.tolist()
    chances += [lips.chance] * len(lips.hits)
  return robustness_report.mean(found, None) | {
    'closures': sum(hits),
    'closures_of': len(hits),
    'closures_by_chance': float(sum(chances)),
  }
