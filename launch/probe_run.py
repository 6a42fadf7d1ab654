"""Both protocols on one encoder, and the table of what they found."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
import os
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool
import numpy as np

from infomax_jax import (
  augment,
  batches,
  data,
  images,
  probe,
  probe_heads,
  subset,
)
from infomax_jax.encoder import Encoder
from launch import mesh as mesh_lib
from launch.errors import UserError

WARM_UP = 50  # batches that the authors average statistics over before a test


@dataclasses.dataclass(frozen=True)
class Subject:
  """An encoder, its variables, and the images it is probed on."""

  encoder: Encoder
  variables: Any
  source: data.DataConfig


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is measured.

  Attributes:
    plan: Of the classifiers that are trained by steps.
    neighbours: That vote.
    authors: Also their protocol.
    controls: Also raw pixels and an untrained encoder.
  """

  plan: probe_heads.Plan
  neighbours: int = 20
  authors: bool = True
  controls: bool = False


@dataclasses.dataclass(frozen=True)
class Examples:
  """Features [M C] float32 of images, and their labels [M]."""

  features: np.ndarray
  labels: np.ndarray


def run(subject: Subject, settings: Settings) -> dict[str, Any]:
  """Everything that the settings ask for, as it goes into the JSON file.

  Raises:
    UserError: the batch does not fit the devices or the images.
    ValueError: the images are not as the encoder or the config needs them.
    FileNotFoundError: there are none.
  """
  plan, splits = settings.plan, data.Splits(subject.source)
  train, test = splits.train, splits.eval
  fewest = min(len(train), len(test))
  if plan.batch_size > fewest:
    raise UserError(
      f'a batch of {plan.batch_size} is larger than the smaller of both sets of '
      f'images, {fewest}: set --batch_size'
    )
  mesh = mesh_lib.make_mesh({'data': -1}, jax.local_devices())
  mesh_lib.check_batch_size(plan.batch_size, mesh)
  look = Look(subject, settings, mesh, train, test)
  rows = look.frozen('r1', subject.variables)
  if settings.authors:
    rows += look.as_authors()
  if settings.controls:
    rows += look.control_rows()
  return {
    'features': subject.encoder.cfg.n_rkhs,
    'parameters': sum(
      x.size for x in jax.tree.leaves(subject.variables['params'])
    ),
    'train': {'place': subject.source.train, 'images': len(train)},
    'test': {
      'place': subject.source.eval or subject.source.train,
      'images': len(test),
    },
    'epochs': plan.epochs,
    'batch_size': plan.batch_size,
    'neighbours': settings.neighbours,
    'seed': plan.seed,
    'results': rows,
  }


class Look:
  """One subject under the probes."""

  def __init__(
    self,
    subject: Subject,
    settings: Settings,
    mesh: jax.sharding.Mesh,
    train: images.Source,
    test: images.Source,
  ):
    self._subject, self._settings = subject, settings
    self._plan, self._source = settings.plan, subject.source
    self._recipe = subject.source.build_recipe()
    self._batch = mesh_lib.batch_sharding(mesh)
    self._train, self._test = train, test
    self._num_classes = len(train.classes)
    if not train.classes:  # Labels take a whole pass over a TFDS data set.
      top = max(int(train.labels.max()), int(test.labels.max()))
      self._num_classes = top + 1

    @jax.jit
    def encode(variables, batch):
      x = augment.normalize(batch, self._recipe)
      return subject.encoder.apply(variables, x).r1

    self._encode = encode

  def frozen(self, name: str, variables: Any) -> list[dict[str, Any]]:
    """Our protocol: nothing of the encoder moves, every test image counts."""
    return self._score(
      name,
      self._examples(variables, self._train),
      self._examples(variables, self._test),
    )

  def as_authors(self) -> list[dict[str, Any]]:
    """Theirs, with the test images that their loader leaves out left out."""
    plan, size = self._plan, self._plan.batch_size
    rng = np.random.default_rng(plan.seed)
    classifiers, variables = probe_heads.fit_moving(
      self._subject.encoder,
      self._subject.variables,
      self._recipe,
      self._put(batches.views(self._train, self._source, size, plan.seed)),
      len(self._train),
      self._num_classes,
      plan,
    )
    whole = len(self._test) // size * size
    draw = lambda: rng.permutation(len(self._test))[:whole]
    warm = subset.Subset(self._test, draw()[: WARM_UP * size])
    variables = self._warmed(variables, warm)
    shown = self._examples(variables, subset.Subset(self._test, draw()))
    said = classifiers(shown.features)
    return [
      _row('authors', 'r1', kind, said[kind] == shown.labels)
      for kind in ('linear', 'mlp')
    ]

  def control_rows(self) -> list[dict[str, Any]]:
    """Pixels, and an encoder that has learnt nothing but its norms."""
    pixels = [self._pixels(source) for source in (self._train, self._test)]
    cfg = self._subject.encoder.cfg
    x = jnp.zeros((2, cfg.image_size, cfg.image_size, cfg.channels))
    key = jax.random.key(self._plan.seed)
    fresh = nn.unbox(jax.jit(self._subject.encoder.init)(key, x))
    rng = np.random.default_rng(self._plan.seed)
    some = rng.permutation(len(self._train))
    some = some[: WARM_UP * self._plan.batch_size]
    fresh = self._warmed(fresh, subset.Subset(self._train, some))
    return [
      *self._score('pixels', *pixels),
      *self.frozen('untrained r1', fresh),
    ]

  def _score(self, name, train, test):
    model = probe.logistic_regression(
      train.features, train.labels, self._num_classes, self._plan.seed
    )
    rows = [_row('frozen', name, 'linear', model(test.features) == test.labels)]
    rows[0]['penalty'] = model.penalty
    if name != 'pixels':
      mlp = probe_heads.fit_frozen(
        train.features, train.labels, self._num_classes, self._plan
      )
      said = mlp(test.features)['mlp']
      rows.append(_row('frozen', name, 'mlp', said == test.labels))
    said = probe.nearest(
      train.features,
      train.labels,
      test.features,
      self._num_classes,
      self._settings.neighbours,
    )
    return [*rows, _row('frozen', name, 'knn', said == test.labels)]

  def _examples(self, variables, source):
    encode = lambda batch: self._encode(variables, batch)
    return self._collect(source, encode)

  def _pixels(self, source):
    normal = lambda x: augment.normalize(x, self._recipe)
    return self._collect(source, lambda x: normal(x).reshape(len(x), -1))

  def _collect(self, source, function):
    """The images that can be read and have a label, through a function."""
    features, labels = [], []
    for batch in self._put(self._plain(source)):
      rows = np.asarray(batch['mask'] & (batch['label'] >= 0))
      features.append(np.asarray(function(batch['image']))[rows])
      labels.append(np.asarray(batch['label'])[rows])
    found = Examples(np.concatenate(features), np.concatenate(labels))
    if not len(found.labels):
      raise UserError('none of the images has a label: nothing to classify')
    return found

  def _plain(self, source):
    return batches.plain(source, self._source, self._plan.batch_size)

  def _put(self, batches: Iterable[Mapping]) -> Iterable[Mapping]:
    return (mesh_lib.put_batch(batch, self._batch) for batch in batches)

  def _warmed(self, variables, source):
    """The encoder's variables with its norms moved over images."""
    move = probe_heads.make_move(self._subject.encoder, self._recipe)
    stats = variables['batch_stats']
    for batch in self._put(self._plain(source)):
      if batch['mask'].all():  # What fills a batch up is no image.
        _, stats = move(variables['params'], stats, batch['image'])
    return {'params': variables['params'], 'batch_stats': stats}


def _row(
  protocol: str, features: str, kind: str, right: Bool[np.ndarray, 'M']
) -> dict[str, Any]:
  return {
    'protocol': protocol,
    'features': features,
    'probe': kind,
    'accuracy': float(np.mean(right)),
    'images': len(right),
  }


TITLES = {
  ('frozen', 'linear'): 'logistic regression',
  ('frozen', 'mlp'): 'MLP',
  ('frozen', 'knn'): 'nearest neighbours',
  ('authors', 'linear'): "linear, the authors' protocol",
  ('authors', 'mlp'): "MLP, the authors' protocol",
}


def table(report: Mapping[str, Any]) -> Sequence[str]:
  """Lines of at most 80 columns, if paths are short; +-: one standard error."""
  train, test = report['train'], report['test']
  lines = [
    f'{report["workdir"]} at step {report["step"]}',
    f'r1 of {report["features"]}, {report["parameters"] / 1e6:.2f}M parameters',
    f'{train["images"]:,} images of {_last(train["place"])} to train, '
    f'{test["images"]:,} of {_last(test["place"])} to test',
    f'MLP and authors: {report["epochs"]} epochs at batch '
    f'{report["batch_size"]}; neighbours: {report["neighbours"]}, cosine',
    '',
    f'{"":<32}{"of":<16}{"top-1 %":>14}{"test images":>14}',
  ]
  for row in report['results']:
    accuracy, count = row['accuracy'], row['images']
    error = 100 * math.sqrt(accuracy * (1 - accuracy) / count)
    title = TITLES[row['protocol'], row['probe']]
    shown = f'{100 * accuracy:.1f} +- {error:.1f}'
    lines.append(f'{title:<32}{row["features"]:<16}{shown:>14}{count:>14,}')
  return lines


def _last(place: str) -> str:
  return place if place.startswith('tfds:') else os.path.basename(place)
