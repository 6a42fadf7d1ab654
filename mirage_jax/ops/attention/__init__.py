"""Attention over one joint sequence; see `api`."""

from mirage_jax.ops.attention.api import attention

__all__ = ['attention']
