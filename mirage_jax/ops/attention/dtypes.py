"""What the kernels take."""

from jaxtyping import Array

DTYPES = ('bfloat16', 'float32')


def check(name: str, q: Array, k: Array, v: Array) -> None:
  """Raises ValueError if these are not all of one of DTYPES."""
  for part, x in dict(q=q, k=k, v=v).items():
    if x.dtype.name not in DTYPES or x.dtype != q.dtype:
      raise ValueError(
        f'attention {name!r} takes q, k and v all in one of {DTYPES}, but '
        f"{part} is {x.dtype.name}; 'reference' takes any float."
      )
