"""Queries and keys, normalised and turned, in one kernel; see `api`."""

from mirage_jax.ops.rotary.api import supports, turned

__all__ = ['supports', 'turned']
