"""Our own weights as a source: runs, and what `launch.convert` wrote."""

from collections.abc import Mapping, Sequence
import functools
import json
import os
import pathlib
from typing import Any, Protocol

import numpy as np

from launch import checkpoint
from launch.convert_job import Unit, slabs
from launch.convert_sink import SafetensorsReader, Spec
from launch.convert_source import SafetensorsSource
from launch.errors import UserError
from mirage_jax import config as config_lib, lora
from mirage_jax.linear import LORA

SLAB = 64 << 20  # Larger arrays move entry by entry of their first axis.
# What a run may hold besides: nothing that a user of weights needs.
ROOTS = ('ema', 'params', 'batch_stats', 'rest')
BASE = 'base'  # What a run with config.lora changes.


class Arrays(Protocol):
  """Weights by path.

  Attributes:
    where: For messages.
    config: As in a run's config.json.
    specs: Path to spec; paths begin with one of ROOTS.
  """

  where: pathlib.Path
  config: Mapping[str, Any]
  specs: Mapping[str, Spec]

  def get(self, path: str, lead: int | None) -> np.ndarray:
    """An array, or one entry of its first axis."""

  def fingerprint(self) -> list[Any]:
    """What tells these weights from others."""


def open_arrays(path: str | os.PathLike) -> Arrays:
  """A workdir, or a folder that `launch.convert` wrote.

  Raises:
    UserError: It is neither, or damaged.
  """
  path = pathlib.Path(path)
  if (path / 'checkpoints').is_dir():
    lora = checkpoint.read_config(path).get('lora')
    return LoraArrays(path) if lora else OrbaxArrays(path)
  if path.exists() and (path.is_file() or (path / 'manifest.json').exists()):
    return SafetensorsArrays(path)
  raise UserError(
    f'{path}: is no --workdir of a run and no folder that launch.convert '
    'wrote: give one'
  )


def copy_units(arrays: Arrays, specs: Mapping[str, Spec]) -> list[Unit]:
  """Slabs that are copied as they are."""
  return [
    Unit(name, lead, functools.partial(arrays.get, name, lead))
    for name, lead in slabs(specs)
  ]


def _spec(shape, dtype):
  spec = Spec(tuple(shape), np.dtype(dtype))
  stacked = spec.nbytes > SLAB and len(shape) > 1
  return spec._replace(stacked=stacked)


class SafetensorsArrays(SafetensorsReader):
  """Safetensors whose names are paths."""

  def __init__(self, path: pathlib.Path):
    source = SafetensorsSource(path)
    super().__init__(source.tensors)
    self.where, self.config = source.where, source.config
    self.fingerprint = source.fingerprint
    strange = [n for n in source.tensors if n.split('/')[0] not in ROOTS]
    if strange or not self.config:
      raise UserError(
        f'{path}: holds no weights of launch.convert (it has {strange[:1]}, '
        f'config.json {"is there" if self.config else "is missing"})'
      )
    self.specs = {
      name: _spec(t.shape, t.dtype) for name, t in source.tensors.items()
    }


class OrbaxArrays:
  """The averaged parameters of a run's last checkpoint, read in parts."""

  def __init__(self, workdir: pathlib.Path, roots: Sequence[str] = ROOTS):
    """Opens what of the checkpoint lies under `roots`, reads nothing of it."""
    self.where = workdir
    self.config = checkpoint.read_config(workdir)
    steps = checkpoint.saved_steps(workdir)
    if not steps:
      raise UserError(f'{workdir}/checkpoints: holds no step: train first')
    self._state = workdir.resolve() / 'checkpoints' / str(steps[-1]) / 'state'
    try:
      metadata = json.loads((self._state / '_METADATA').read_text())
      trees = [
        [str(key['key']) for key in entry['key_metadata']]
        for entry in metadata['tree_metadata'].values()
      ]
    except (OSError, ValueError, KeyError) as error:
      raise checkpoint.damaged(self._state, error) from error
    wanted = set(roots)
    if any(keys[0] == 'ema' for keys in trees):
      wanted.discard('params')  # The average is what one samples with.
    trees = [keys for keys in trees if keys[0] in wanted]
    opened = {'/'.join(keys): self._open(metadata, keys) for keys in trees}
    self._arrays = {name: array.result() for name, array in opened.items()}
    self.specs = {
      name: _spec(array.shape, array.dtype.numpy_dtype)
      for name, array in self._arrays.items()
    }

  def _open(self, metadata, keys):
    import tensorstore

    name = '.'.join(keys)
    store = {'driver': 'file', 'path': f'{self._state}/{name}/'}
    if metadata['use_ocdbt']:
      base = f'file://{self._state}/'
      store = {'driver': 'ocdbt', 'base': base, 'path': f'{name}/'}
    driver = 'zarr3' if metadata.get('use_zarr3') else 'zarr'
    spec = {'driver': driver, 'kvstore': store}
    return tensorstore.open(spec, open=True, read=True)

  def get(self, path: str, lead: int | None) -> np.ndarray:
    """See `Arrays`."""
    index = ... if lead is None else lead
    try:
      return np.asarray(self._arrays[path][index].read().result())
    except Exception as error:  # TensorStore raises its own kinds.
      raise checkpoint.damaged(self._state, error) from error

  def fingerprint(self) -> list[Any]:
    """See `Arrays`."""
    time = (self._state / '_METADATA').stat().st_mtime_ns
    return [str(self._state), time]


class LoraArrays:
  """A run with config.lora: what it learned merged into its base, in parts."""

  def __init__(self, workdir: pathlib.Path):
    self.where = workdir
    self._held = OrbaxArrays(workdir, (BASE, 'ema'))
    self.config = dict(self._held.config)
    self._lora = config_lib.build(lora.LoraConfig, self.config.pop('lora'))
    self.specs = {
      'ema' + path.removeprefix(BASE): spec
      for path, spec in self._held.specs.items()
      if path.startswith(f'{BASE}/')
    }
    self.fingerprint = self._held.fingerprint

  def get(self, path: str, lead: int | None) -> np.ndarray:
    """See `Arrays`."""
    base = self._held.get(BASE + path.removeprefix('ema'), lead)
    parts = [path.removesuffix('kernel') + part for part in LORA]
    if not path.endswith('/kernel') or parts[0] not in self._held.specs:
      return base
    a, b = (self._held.get(part, None) for part in parts)
    if lead is None:
      return base + lora.delta(self._lora, path, a, b)
    some = slice(lead, lead + 1)
    b = b[some] if lora.stacks(path, a.ndim) else b
    return base + lora.delta(self._lora, path, a[some], b)[0]
