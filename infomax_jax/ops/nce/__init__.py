"""Sums over all negatives of the NCE; see `api`."""

from infomax_jax.ops.nce.api import against_all

__all__ = ['against_all']
