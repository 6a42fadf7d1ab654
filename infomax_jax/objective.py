"""The multi-scale infomax objective between two views."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from infomax_jax import mixture, nce
from infomax_jax.config import ObjectiveConfig
from infomax_jax.encoder import Features

Locations = dict[str, Int[Array, 'B 2']]
Metrics = dict[str, Float[Array, '']]


def draw_locations(
  key: PRNGKeyArray, one: Features, two: Features, cfg: ObjectiveConfig
) -> Locations:
  """Positions that a step uses, uniform, per image and view.

  'source': where in r5 the source of 5->5 is. With sampled targets also
  'target5' and 'target7': which position of r5 and r7 is predicted. Positions
  count along rows; column v of each array is of view v.
  """
  grids = {'source': 'r5'}
  if cfg.targets == 'sampled':
    grids |= {'target5': 'r5', 'target7': 'r7'}
  drawn = {}
  for i, (name, grid) in enumerate(grids.items()):
    limits = [_flat(getattr(view, grid)).shape[1] for view in (one, two)]
    drawn[name] = jax.random.randint(
      jax.random.fold_in(key, i), (len(one.r1), 2), 0, jnp.array([limits])
    )
  return drawn


def infomax(
  one: Features, two: Features, locations: Locations, cfg: ObjectiveConfig
) -> tuple[Float[Array, ''], Metrics]:
  """The loss of two views of the same images, in nats.

  Each view predicts the other: r1 -> r5, r1 -> r7 and one vector of r5 -> r5.
  The views may come from two encoders, say of sound and of sight, whose grids
  differ; only C must be the same. Where they have mixture components, these
  take the place of r1.

  Args:
    one: Features of the first view.
    two: Features of the second; row i is of the same image as row i of `one`.
    locations: From `draw_locations`.
    cfg: Which terms, and their constants.

  Returns:
    The loss, and its parts: each task's NCE as the mean of both directions,
    'lgt_reg' and, with a mixture, 'entropy' of the posterior in nats.

  Raises:
    ValueError: B or C of the views differ, or B is 1.
  """
  there = _direction(one, two, 0, locations, cfg)
  back = _direction(two, one, 1, locations, cfg)
  parts = jax.tree.map(lambda a, b: (a + b) / 2, there, back)
  parts['lgt_reg'] = cfg.reg_weight * parts['lgt_reg']
  return sum(parts[name] for name in (*cfg.tasks, 'lgt_reg')), parts


def _direction(source, target, view, locations, cfg):
  """NCE of each task from one view to the other, and the summed squares."""
  vectors = source.components
  if vectors is None:
    vectors = source.r1[:, None]
  local = _pick(_flat(source.r5), locations['source'][:, view])[:, None]
  parts, squares, entropies = {}, 0.0, []
  for grid, name in (('5', 'r5'), ('7', 'r7')):
    entering = {'1': vectors, '5': local}
    tasks = [task for task in cfg.tasks if task[-1] == grid]
    if not tasks:
      continue
    kinds = [entering[task[0]] for task in tasks]
    scores = nce.score(
      jnp.concatenate(kinds, 1),  # One pass over the targets for all.
      _flat(getattr(target, name)),
      clip=cfg.clip,
      block=cfg.block,
      dtype=cfg.dtype,
      implementation=cfg.nce,
    )
    start = 0
    for task, kind in zip(tasks, kinds, strict=True):
      part = slice(start, start + kind.shape[1])
      start = part.stop
      log_softmax = scores.log_softmax[:, part]
      fit = mixture.value(log_softmax, cfg.temperature)
      parts[task] = -_mean(fit, locations, f'target{grid}', 1 - view)
      squares += scores.mean_square[part].mean()
      if kind.shape[1] > 1:
        q = mixture.posterior(log_softmax, cfg.temperature)
        entropies.append(mixture.entropy(q).mean())
  if entropies:
    parts['entropy'] = sum(entropies) / len(entropies)
  return parts | {'lgt_reg': squares}


def _mean(fit, locations, name, view):
  """Over all positions, or over those drawn."""
  if name in locations:
    fit = _pick(fit[..., None], locations[name][:, view])
  return fit.mean()


def _flat(grid):
  return grid.reshape(len(grid), -1, grid.shape[-1])


def _pick(x, index):
  """x[b, index[b]], as a masked sum: its gradient scatters nothing."""
  chosen = jnp.arange(x.shape[1])[None] == index[:, None]
  return jnp.where(chosen[..., None], x, 0).sum(1)
