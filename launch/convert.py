r"""Converts weights: Mochi 1, T5, wav2vec 2.0, Whisper and AMDIM in, ours out.

  python -m launch.convert --from mochi --to orbax --out weights/mochi \
      --input genmo/mochi-1-preview

--input is a folder of safetensors with their index, one file, or owner/name of
the Hugging Face hub, with a folder in it after that if wanted. Of a whole
pipeline its transformer/, vae/ or text_encoder/ is taken; of an old repository
pytorch_model.bin, which needs the `convert` extra.

  --to orbax        a folder that --config.init_from takes and Orbax restores,
                    in any sharding
  --to safetensors  the same arrays under the same names, with config.json

and back, from a --workdir of launch.train or what was converted:

  --from mirage --to safetensors | orbax
  --from mirage --to diffusers   what Mochi has of it, for from_pretrained
  --from amdim --to pth          for the authors' code

One tensor at a time is in memory, so 10B parameters need little more than the
largest one. Run the same command again after a kill: it continues. What is
written is read back against its checksums, which manifest.json keeps; only then
does the folder get its name. `--verify FOLDER` compares again later.

To see what a machine does with a model of some size, without its weights,

  python -m launch.convert --fabricate --from mochi --depth 6 --out fake

writes a checkpoint of random numbers in Mochi's shapes.
"""

import functools
import json
import pathlib
import sys
from typing import Any

from absl import app, flags

from launch import (
  convert_amdim,
  convert_diffusers,
  convert_encoders,
  convert_fabricate,
  convert_foreign,
  convert_hub,
  convert_job,
  convert_mochi,
  convert_ours,
  convert_sink,
  convert_torch,
)
from launch.convert_source import SafetensorsSource
from launch.errors import UserError, one_line

KINDS = {
  'mochi': convert_mochi.mochi,
  'mochi_vae': convert_mochi.mochi_vae,
  't5': convert_encoders.text_encoder,
  'wav2vec2': convert_encoders.speech_encoder,
  'hubert': convert_encoders.speech_encoder,
  'wavlm': convert_encoders.speech_encoder,
  'whisper': convert_encoders.listener,
}
ROOT = 'ema/'  # Of arrays: what readers of a run take.

_FROM = flags.DEFINE_enum(
  'from', None, [*KINDS, 'amdim', 'mirage'], 'what --input is'
)
_TO = flags.DEFINE_enum(
  'to', 'orbax', ['orbax', 'safetensors', 'diffusers', 'pth'], 'what --out gets'
)
_INPUT = flags.DEFINE_string('input', None, 'folder, file, or owner/name')
_OUT = flags.DEFINE_string('out', None, 'the folder to make; a file for pth')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'keep', ['keep', 'float32', 'bfloat16'], 'of the arrays'
)
_LIMIT = flags.DEFINE_float(
  'shard_gb', 5.0, 'size of one file of safetensors', lower_bound=0.000001
)
_VERIFY = flags.DEFINE_string('verify', None, 'a folder to compare, no more')
_FABRICATE = flags.DEFINE_bool('fabricate', False, 'random weights for trials')
_DEPTH = flags.DEFINE_integer('depth', 6, 'blocks of --fabricate', 1)


def main(_: list[str]) -> None:
  with one_line():
    if _VERIFY.value is not None:
      count = verify(pathlib.Path(_VERIFY.value))
      print(f'{_VERIFY.value}: {count} tensors are as they were written')
      return
    kind = _FROM.value
    needed = {'from': kind, 'out': _OUT.value, 'input': _INPUT.value}
    if _FABRICATE.value:
      del needed['input']
    if missing := [name for name, value in needed.items() if not value]:
      raise UserError(f'--{" and --".join(missing)} needed; see --help')
    out = pathlib.Path(_OUT.value)
    if kind == 'amdim' and _TO.value == 'pth':
      write_pth(out)
      return
    job = make_job(kind)
    new = convert_job.run(job, out)
    size = sum(spec.nbytes for spec in job.specs.values()) / 1e6
    state = 'ready' if new else 'was ready; nothing to do'
    print(f'{out}: {len(job.specs)} tensors, {size:.1f} MB, {state}')


def make_job(kind: str) -> convert_job.Job:
  """The conversion that the flags ask for; UserError if there is none."""
  target = _TO.value
  if _FABRICATE.value:
    return convert_fabricate.job(kind, _DEPTH.value, _limit())
  ours = {'mirage': ('orbax', 'safetensors', 'diffusers')}
  allowed = ours.get(kind, ('orbax', 'safetensors'))
  if target not in allowed:
    raise UserError(
      f'--from {kind} --to {target} is no conversion; --to may be '
      f'{" or ".join(allowed)}'
    )
  if kind == 'mirage':
    return from_ours(target)
  if kind == 'amdim':
    return from_amdim(pathlib.Path(_INPUT.value), target)
  return from_foreign(kind, target)


def from_foreign(kind: str, target: str) -> convert_job.Job:
  """A checkpoint of safetensors (or, safely read, of torch)."""
  path = pathlib.Path(_INPUT.value)
  if not path.exists() and convert_hub.is_id(_INPUT.value):
    path = convert_hub.download(_INPUT.value, kind)
  path = convert_hub.usual_place(path, kind)
  specs, units, seen, config = {}, [], [], {}
  for source in open_sources(path, kind):
    convert_foreign.refuse_strangers(source, kind)
    try:
      found = KINDS[kind](source.tensors, source.config)
    except (ValueError, ZeroDivisionError) as error:
      raise UserError(f'{path}: sizes make no model: {error}') from error
    spelled = convert_foreign.check(source, found)
    specs |= convert_foreign.specs(source, found, spelled, _DTYPE.value, ROOT)
    units += convert_foreign.units(source, found, spelled, ROOT)
    seen += source.fingerprint()
    config = found.config
  halves = {'encoder', 'decoder'} - {name.split('/')[1] for name in specs}
  if kind == 'mochi_vae' and halves:
    raise UserError(
      f'{path}: is one half of the VAE; give the folder with '
      f'{halves.pop()}.safetensors, too'
    )
  return ours_job(kind, target, specs, units, config, seen)


def open_sources(path: pathlib.Path, kind: str) -> list[Any]:
  """Usually one; Genmo's VAE is in two files."""
  if convert_torch.is_torch(path):
    return [convert_torch.TorchSource(path)]
  halves = [path / f'{half}.safetensors' for half in ('encoder', 'decoder')]
  if kind == 'mochi_vae' and all(half.is_file() for half in halves):
    return [SafetensorsSource(half) for half in halves]
  return [SafetensorsSource(path)]


def from_ours(target: str) -> convert_job.Job:
  """A run, or what was converted before."""
  arrays = convert_ours.open_arrays(_INPUT.value)
  seen = arrays.fingerprint()
  if target == 'diffusers':
    made = convert_diffusers.export(arrays, _DTYPE.value)
    if made.left_out:
      print(
        f'{len(made.left_out)} arrays are left out, Mochi has no place for '
        f'them, such as {made.left_out[0]}',
        file=sys.stderr,
      )
    return convert_job.Job(
      made.specs,
      made.units,
      settings('mirage', target, seen),
      functools.partial(
        convert_sink.SafetensorsSink,
        specs=made.specs,
        stem='diffusion_pytorch_model',
        metadata={'format': 'pt'},
        limit=_limit(),
      ),
      {'config.json': made.config},
    )
  units = convert_ours.copy_units(arrays, arrays.specs)
  specs = {
    name: spec._replace(
      dtype=convert_foreign.as_dtype(_DTYPE.value, [spec.dtype])
    )
    for name, spec in arrays.specs.items()
  }
  return ours_job('mirage', target, specs, units, arrays.config, seen)


def from_amdim(path: pathlib.Path, target: str) -> convert_job.Job:
  """The authors' checkpoint, all of it in memory."""
  if _DTYPE.value != 'keep':
    raise UserError('--from amdim keeps every number: leave --dtype out')
  loaded = convert_amdim.load(path)
  specs = {
    name: convert_sink.Spec(array.shape, array.dtype)
    for name, array in loaded.flat.items()
  }
  units = [
    convert_job.Unit(name, None, functools.partial(loaded.flat.get, name))
    for name in specs
  ]
  seen = [path.name, path.stat().st_size]
  return ours_job('amdim', target, specs, units, loaded.config, seen)


def write_pth(out: pathlib.Path) -> None:
  """Our AMDIM as its authors' code saves it."""
  if _INPUT.value.endswith(convert_torch.SUFFIXES):
    raise UserError(f'--input={_INPUT.value}: is a torch file already')
  state = convert_amdim.to_state(convert_ours.open_arrays(_INPUT.value))
  convert_torch.save(out, state)
  print(f'{out}: {len(state["model"])} tensors, ready')


def ours_job(kind, target, specs, units, config, seen) -> convert_job.Job:
  """Arrays under our names, as Orbax or safetensors."""
  sink = functools.partial(convert_sink.OrbaxSink, specs=specs)
  if target == 'safetensors':
    sink = functools.partial(
      convert_sink.SafetensorsSink,
      specs=specs,
      stem='model',
      metadata={'format': 'mirage_jax'},
      limit=_limit(),
    )
  texts = {'config.json': config}
  return convert_job.Job(
    specs, units, settings(kind, target, seen), sink, texts
  )


def settings(kind: str, target: str, seen: list[Any]) -> dict[str, Any]:
  """What the result depends on, for its manifest."""
  made = {'from': kind, 'to': target, 'dtype': _DTYPE.value, 'source': seen}
  return made if target == 'orbax' else made | {'shard_gb': _LIMIT.value}


def verify(folder: pathlib.Path) -> int:
  """Compares a finished folder with its manifest; gives the tensors' number.

  Raises:
    UserError: it is not finished, or a tensor is not what was written.
  """
  path = folder / convert_job.MANIFEST
  if not path.exists():
    raise UserError(f'{folder}: has no manifest.json: it is not finished')
  try:
    manifest = json.loads(path.read_text())
    specs, done = convert_job.read_manifest(manifest)
    target = manifest['to']
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f'{path}: is none of launch.convert, or damaged ({error!r})'
    ) from error
  try:
    if target == 'orbax':
      sink = convert_sink.OrbaxReader(folder, specs)
    else:
      sink = convert_sink.SafetensorsReader(SafetensorsSource(folder).tensors)
    convert_job.check(specs, done, sink, folder)
  except UserError:
    raise
  except Exception as error:  # TensorStore raises its own kinds.
    said = ' '.join(str(error).split())[:200]
    raise UserError(
      f'{folder}: cannot be read back ({said}): copy it again, or convert again'
    ) from error
  return len(specs)


def _limit():
  return int(_LIMIT.value * 1e9)


if __name__ == '__main__':
  sys.exit(app.run(main))
