"""Which mixture component speaks for which part of an image, and how well.

The posterior q(f1^j | f7^i) of the mixture, laid out on the 7x7 map, is a
segmentation that no label was used for (figure 3d of the paper). Whether its
segments follow what is in the image is measured on pixels.
"""

import jax
from jaxtyping import Array, Float, Int
import numpy as np

from infomax_jax import mixture, nce
from infomax_jax.config import ObjectiveConfig
from infomax_jax.encoder import Features


def posterior_maps(
  features: Features, cfg: ObjectiveConfig
) -> Float[Array, 'B Y X k']:
  """q(component | position) of each image's own 7x7 map; sums to 1 over k.

  The other images of the batch are the negatives of the scores.

  Raises:
    ValueError: the encoder has no mixture, or B is 1.
  """
  if features.components is None:
    raise ValueError(
      'the encoder has no mixture: train one with encoder.components of 2 or '
      'more, as configs/infomax/cifar10.py:mixture'
    )
  shape = features.r7.shape
  scores = nce.score(
    features.components,
    features.r7.reshape(shape[0], -1, shape[-1]),
    clip=cfg.clip,
    block=cfg.block,
    dtype=cfg.dtype,
  )
  q = mixture.posterior(scores.log_softmax, cfg.temperature)
  return jax.numpy.moveaxis(q, 1, -1).reshape(*shape[:-1], -1)


def enlarge(
  maps: Float[np.ndarray, 'B Y X *k'] | Int[np.ndarray, 'B Y X'], rows: int
) -> np.ndarray:
  """The nearest entry of a square map for each of rows x rows pixels."""
  at = (np.arange(rows) + 0.5) * maps.shape[1] / rows
  at = at.astype(int)
  return maps[:, at][:, :, at]


def colour_explained(
  images: Float[np.ndarray, 'B Y X C'], segments: Int[np.ndarray, 'B Y X']
) -> Float[np.ndarray, 'B']:
  """Share of an image's colour variance that lies between its segments.

  0 for segments of equal mean colour, 1 for segments of one colour each; an
  image of one colour has none to explain: 0.
  """
  x = images.reshape(len(images), -1, images.shape[-1]).astype(np.float64)
  x -= x.mean(1, keepdims=True)
  between = 0
  for label in range(segments.max() + 1):
    inside = (segments == label).reshape(len(images), -1)
    total = (x * inside[..., None]).sum(1)
    between += np.square(total).sum(-1) / np.maximum(inside.sum(1), 1)
  whole = np.square(x).sum((1, 2))
  return between / np.maximum(whole, 1e-12)


def rand_index(
  segments: Int[np.ndarray, 'B Y X'], truth: Int[np.ndarray, 'B Y X']
) -> Float[np.ndarray, 'B']:
  """Adjusted Rand index (Hubert and Arabie 1985): 0 by chance, 1 if equal."""
  return np.array(
    [_rand_index(a, b) for a, b in zip(segments, truth, strict=True)]
  )


def _rand_index(a, b):
  counts = np.zeros((a.max() + 1, b.max() + 1))
  np.add.at(counts, (a.ravel(), b.ravel()), 1)
  pairs = lambda n: (n * (n - 1) / 2).sum()
  both, first = pairs(counts), pairs(counts.sum(1))
  second, every = pairs(counts.sum(0)), pairs(counts.sum())
  chance = first * second / every
  best = (first + second) / 2
  return 1.0 if best == chance else (both - chance) / (best - chance)


def spatial_kmeans(
  rows: int, clusters: int, seed: int = 0, tries: int = 10
) -> Int[np.ndarray, 'Y X']:
  """Positions of a square map clustered by nearness alone: the control.

  The best of several starts of Lloyd's algorithm.
  """
  rng = np.random.default_rng(seed)
  places = np.stack(np.indices((rows, rows)), -1).reshape(-1, 2).astype(float)
  best, least = None, np.inf
  for _ in range(tries):
    centres = places[rng.choice(len(places), clusters, replace=False)]
    for _ in range(50):
      distance = np.square(places[:, None] - centres[None]).sum(-1)
      label = distance.argmin(1)
      for k in np.unique(label):
        centres[k] = places[label == k].mean(0)
    if distance.min(1).sum() < least:
      best, least = label, distance.min(1).sum()
  return best.reshape(rows, rows)
