"""Probes: against scikit-learn, float64 and brute force."""

import numpy as np
import pytest

from infomax_jax import probe, probe_heads

N, C, CLASSES = 300, 6, 3


@pytest.fixture(scope='module')
def examples():
  """Overlapping clouds, off centre and unequally wide: (features, labels)."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, CLASSES, N)
  centres = rng.standard_normal((CLASSES, C))
  x = centres[labels] + 1.2 * rng.standard_normal((N, C))
  x = x * 10.0 ** np.arange(-2, C - 2) + 7
  return x.astype(np.float32), labels.astype(np.int32)


@pytest.fixture(scope='module')
def model(examples):
  return probe.logistic_regression(*examples, CLASSES)


def test_the_logistic_regression_is_where_its_cost_is_least(examples, model):
  """The gradient in float64, written out, is zero at what was found."""
  x, labels = examples
  z = (x.astype(np.float64) - x.mean(0, np.float64)) / x.std(0, np.float64)
  logits = z @ model.kernel + model.bias
  p = np.exp(logits - logits.max(1, keepdims=True))
  p = p / p.sum(1, keepdims=True) - np.eye(CLASSES)[labels]
  slope = z.T @ p / N + model.penalty * model.kernel
  assert np.abs(slope).max() < 1e-4
  assert np.abs(p.mean(0)).max() < 1e-4
  assert model.penalty in probe.PENALTIES


def test_it_classifies_as_scikit_learn_does(examples, model):
  linear_model = pytest.importorskip('sklearn.linear_model')
  x, labels = examples
  z = (x - x.mean(0)) / x.std(0)
  theirs = linear_model.LogisticRegression(C=1 / (model.penalty * N))
  theirs.fit(z, labels)
  said = model(x)
  assert np.mean(said == labels) > 0.6
  np.testing.assert_array_equal(said, theirs.predict(z))


def test_too_few_images_are_said(examples):
  x, labels = examples
  with pytest.raises(ValueError, match='4 images are too few'):
    probe.logistic_regression(x[:4], labels[:4], CLASSES)


def test_the_nearest_vote(examples):
  x, labels = examples
  x = x - x.mean(0)
  train, test = x[:250], x[250:]
  said = probe.nearest(train, labels[:250], test, CLASSES, 5, block=16)
  for query, answer in zip(test.astype(np.float64), said, strict=True):
    length = np.linalg.norm(train, axis=1) * np.linalg.norm(query)
    near = np.argsort(-(train @ query) / length)[:5]
    votes = np.bincount(labels[near], minlength=CLASSES)
    assert votes[answer] == votes.max()


def test_a_tie_goes_to_the_nearer():
  angles = np.array([0.1, 0.2, 0.0, 0.5])
  train = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
  query = np.array([[1, 0]], np.float32)
  labels = np.array([1, 1, 0, 0])
  assert probe.nearest(train, labels, query, 2, 4) == [1]
  assert probe.nearest(train, 1 - labels, query, 2, 4) == [0]


def test_classifiers_learn_frozen_features(examples):
  x, labels = examples
  z = (x - x.mean(0)) / x.std(0)
  plan = probe_heads.Plan(epochs=150, falls=(120,), batch_size=20)
  trained = probe_heads.fit_frozen(z[:240], labels[:240], CLASSES, plan)
  for said in trained(z[240:]).values():
    assert np.mean(said == labels[240:]) > 0.55
  assert int(trained.state.step) == 150 * 12
