"""Rectified flow between noise and latents: path, noise levels, loss.

Sigma is the share of noise: x = (1 - sigma) * data + sigma * noise, and the
velocity points from noise to data (Mochi 1's convention). `apply` is any
callable (video, sigma, cond) -> velocity.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from mirage_jax import config, tokens

Apply = Callable[[Array, Array, Mapping[str, Array]], Array]


def linear_quadratic(
  num_steps: int, threshold_noise: float = 0.025
) -> np.ndarray:
  """Mochi 1's schedule: a slow linear half, then a quadratic one.

  The first num_steps // 2 steps remove `threshold_noise` evenly; the others go
  on at that slope and speed up so as to end at 0. One step goes all the way.

  Returns:
    float32 [num_steps + 1], sigmas from 1 down to 0.
  """
  linear = num_steps // 2
  if not linear:
    return np.array([1, 0], np.float32)
  steps = np.arange(num_steps + 1)
  slope = threshold_noise / linear
  bend = (1 - slope * num_steps) / (num_steps - linear) ** 2
  data = slope * steps + bend * np.maximum(steps - linear, 0) ** 2
  return (1 - data).astype(np.float32)


def sample_sigma(
  key: jax.Array, shape: Sequence[int], cfg: config.FlowConfig
) -> Float[Array, '...']:
  """Draws noise levels for training.

  'linear_quadratic' takes a step of the table at random (the paper's reading:
  half of them are above 1 - threshold_noise), 'uniform' draws from [0, 1),
  'logit_normal' the sigmoid of a normal.
  """
  shape = tuple(shape)
  if cfg.schedule == 'uniform':
    return jax.random.uniform(key, shape)
  if cfg.schedule == 'logit_normal':
    normal = jax.random.normal(key, shape)
    return jax.nn.sigmoid(cfg.logit_mean + cfg.logit_std * normal)
  key_step, key_jitter = jax.random.split(key)
  table = jnp.asarray(linear_quadratic(cfg.num_steps, cfg.threshold_noise))
  step = jax.random.randint(key_step, shape, 0, cfg.num_steps)
  if not cfg.jitter:
    return table[step]
  part = jax.random.uniform(key_jitter, shape)
  return table[step] + part * (table[step + 1] - table[step])


def interpolate(
  data: Float[Array, 'B *n'],
  noise: Float[Array, 'B *n'],
  sigma: Float[Array, 'B'],
) -> Float[Array, 'B *n']:
  """The point of the straight path at noise level sigma."""
  sigma = sigma.reshape(-1, *(1,) * (data.ndim - 1))
  return (1 - sigma) * data + sigma * noise


def velocity(
  data: Float[Array, '*n'], noise: Float[Array, '*n']
) -> Float[Array, '*n']:
  """The path's constant derivative as sigma falls."""
  return data - noise


def drop_conditions(
  key: jax.Array, cond: Mapping[str, Array], cfg: config.FlowConfig
) -> dict[str, Array]:
  """Masks out conditions of random samples, for classifier-free guidance.

  Each present condition is dropped on its own with its probability, and all
  together with `drop_all`. Only masks change. What is drawn for a condition
  does not depend on which others there are.
  """
  present = tokens.conditions(cond)
  result = dict(cond)
  if not present:
    return result
  known = tokens.CONDITIONS
  keys = dict(zip((*known, 'all'), jax.random.split(key, 4), strict=True))
  further = [name for name in present if name not in known]
  for i, name in enumerate(further):
    keys[name] = jax.random.fold_in(key, i)
  batch = cond[present[0]].shape[0]
  drop_all = jax.random.bernoulli(keys['all'], cfg.drop_all, (batch,))
  for name in present:
    rate = cfg.drop_extra if name in further else getattr(cfg, f'drop_{name}')
    drop = drop_all | jax.random.bernoulli(keys[name], rate, (batch,))
    result[f'{name}_mask'] = tokens.hidden(cond, name, ~drop)
  return result


def error_weights(
  video: Float[Array, 'B F Y X C'],
  cfg: config.FlowConfig,
  heard: Float[Array, 'B F Y X C'] | None = None,
) -> Float[Array, 'B 1 Y X 1']:
  """How much each place of a sample counts, to a mean of 1.

  Args:
    video: What is learned. A place counts by its deviation over time.
    cfg: By how much.
    heard: What sound changes in the prediction, for `heard_weight`. A place
      counts by its square; if sound changes nothing, all count less.
  """
  places = 1.0 + cfg.motion_weight * _relative(video.std(1).mean(-1))
  if heard is not None:
    share = _relative(jnp.square(heard).mean((1, 4)))
    places = places + cfg.heard_weight * share
  places = places / (1.0 + cfg.motion_weight + cfg.heard_weight)
  return places[:, None, :, :, None]


def _relative(places):
  """[B Y X] over its mean."""
  return places / (places.mean((1, 2), keepdims=True) + 1e-6)


def _heard(apply, noisy, sigma, cond, predicted, cfg):
  """The part of a prediction that is there for its sound; None if not asked."""
  if not cfg.heard_weight or 'audio' not in cond:
    return None
  none = jnp.zeros(len(sigma), bool)
  silent = {**cond, 'audio_mask': tokens.hidden(cond, 'audio', none)}
  change = predicted - apply(noisy, sigma, silent)
  return jax.lax.stop_gradient(change.astype(jnp.float32))


def loss(
  apply: Apply,
  video: Float[Array, 'B F Y X C'],
  cond: Mapping[str, Array],
  key: jax.Array,
  cfg: config.FlowConfig,
) -> tuple[Float[Array, ''], dict[str, Array]]:
  """The training loss: mean squared error of the velocity, on video alone.

  Args:
    apply: The network with its parameters bound.
    video: Clean, normalised latents.
    cond: Conditions, see `dit.Mirage`; some are dropped here.
    key: For the noise, its level and the dropped conditions.
    cfg: The objective.

  Returns:
    The loss, and {'sigma': [B], 'loss': [B]} per sample, all float32.
  """
  return score(apply, draw(video, cond, key, cfg), cfg)


def draw(
  video: Float[Array, 'B F Y X C'],
  cond: Mapping[str, Array],
  key: jax.Array,
  cfg: config.FlowConfig,
) -> dict[str, Any]:
  """All that is random in `loss`, as rows [B ...] for `score`."""
  key_sigma, key_noise, key_drop = jax.random.split(key, 3)
  return dict(
    video=video.astype(jnp.float32),
    sigma=sample_sigma(key_sigma, video.shape[:1], cfg),
    noise=jax.random.normal(key_noise, video.shape),
    cond=drop_conditions(key_drop, cond, cfg),
  )


def score(
  apply: Apply, rows: Mapping[str, Any], cfg: config.FlowConfig
) -> tuple[Float[Array, ''], dict[str, Array]]:
  """`loss` of what `draw` gave, or of some rows of it."""
  video, sigma, noise = rows['video'], rows['sigma'], rows['noise']
  noisy, cond = interpolate(video, noise, sigma), rows['cond']
  predicted = apply(noisy, sigma, cond)
  heard = _heard(apply, noisy, sigma, cond, predicted, cfg)
  error = predicted.astype(jnp.float32) - velocity(video, noise)
  error = jnp.square(error) * error_weights(video, cfg, heard)
  losses = jnp.mean(error, axis=range(1, video.ndim))
  if cfg.full_weight_from:
    losses *= jnp.minimum(sigma / cfg.full_weight_from, 1) ** 2
  return jnp.mean(losses), {'sigma': sigma, 'loss': losses}
