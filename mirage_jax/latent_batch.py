"""What a batch of latents and conditions looks like, and parameters for it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mirage_jax import config as config_lib, data
from mirage_jax.dit import Mirage


def abstract_batch(
  config: Mapping[str, Any], batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of a batch of `data.latents`.

  Args:
    config: `data` (data.LatentConfig), `model` (MirageConfig), `latent_size`.
    batch_size: B.
  """
  source = config_lib.build(data.LatentConfig, config['data'])
  model = config_lib.build(config_lib.MirageConfig, config['model'])
  rows, columns = config['latent_size']
  grid = (rows, columns, model.latent_channels)
  frames = source.num_chunks * data.CHUNK_FRAMES
  references = 1 + source.past
  shapes = dict(
    video=((source.num_chunks * data.CHUNK_LATENTS, *grid), jnp.float32),
    reference=((references, *grid), jnp.float32),
    reference_time=((references,), jnp.float32),
    reference_mask=((references,), jnp.bool_),
  )
  for name, stream in model.frame_streams().items():
    shapes[name] = (frames, stream.in_dim), jnp.float32
  if model.text is not None:
    length = (source.text_length,)
    shapes['text'] = (*length, model.text.in_dim), jnp.float32
    if model.text_vocab:
      shapes['text'] = length, jnp.int32
    shapes['text_mask'] = length, jnp.bool_
  return {
    name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
    for name, (shape, dtype) in shapes.items()
  }


def fresh_params(
  model: Mirage, key: jax.Array, batch: Mapping[str, jax.ShapeDtypeStruct]
) -> Any:
  """A model's parameters as drawn; `batch` is `abstract_batch` of any size."""
  cond = {k: jnp.zeros(v.shape, v.dtype) for k, v in batch.items()}
  video = cond.pop('video')
  return model.init(key, video, jnp.zeros(len(video)), cond)['params']
