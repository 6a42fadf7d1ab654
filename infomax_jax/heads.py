"""Linear and MLP classifiers on the features, which they leave alone."""

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from infomax_jax.config import HeadsConfig
from infomax_jax.conv import Linear
from infomax_jax.norm import BatchNorm


@flax.struct.dataclass
class Logits:
  """Unclipped logits of both classifiers, each [B N] for N classes."""

  linear: jax.Array
  mlp: jax.Array


class Heads(nn.Module):
  """Both classifiers on r1, as the authors train them beside the encoder.

  Gradients stop at the features: labels never reach the encoder.
  """

  cfg: HeadsConfig

  @nn.compact
  def __call__(self, r1: Float[Array, 'B C'], train: bool = False) -> Logits:
    """Classifies; training needs a 'dropout' key and mutable 'batch_stats'."""
    cfg = self.cfg
    x = jax.lax.stop_gradient(r1).astype(jnp.float32)
    linear = Linear(cfg.num_classes, name='linear')(x)
    x = nn.Dropout(cfg.dropout, deterministic=not train)(x)
    x = Linear(cfg.hidden, use_bias=False, name='hidden')(x)
    norm = BatchNorm(random_scale=cfg.random_scale, name='norm')
    x = nn.relu(norm(x, train))
    x = nn.Dropout(cfg.dropout, deterministic=not train)(x)
    return Logits(linear, Linear(cfg.num_classes, name='output')(x))


def loss(
  logits: Float[Array, 'B N'], labels: Int[Array, 'B'], cfg: HeadsConfig
) -> Float[Array, '']:
  """Mean cross-entropy of clipped logits, and the mean square of unclipped.

  Label -1 is none: such a row counts in the mean square alone.
  """
  clipped = cfg.clip * jnp.tanh(logits / cfg.clip)
  known = labels >= 0
  index = jnp.where(known, labels, 0)[:, None]
  picked = jnp.take_along_axis(jax.nn.log_softmax(clipped), index, 1)[:, 0]
  total = jnp.where(known, picked, 0).sum()
  fit = -total / jnp.maximum(known.sum(), 1)
  return fit + cfg.reg_weight * jnp.square(logits).mean()
