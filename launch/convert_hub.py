"""Checkpoints on the Hugging Face hub."""

import pathlib
import re

from launch.convert_source import ANY_INDEX, PLAIN
from launch.convert_torch import BIN, BIN_INDEX, SUFFIXES
from launch.errors import UserError, disk_is_full

# Where repositories of whole pipelines keep a model, if they do.
FOLDERS = {
  'mochi': 'transformer',
  'mochi_vae': 'vae',
  't5': 'text_encoder',
}
DIT = 'dit.safetensors'  # Genmo's transformer, beside its VAE's two files.
GENMO = {
  'mochi': (DIT,),
  'mochi_vae': ('encoder.safetensors', 'decoder.safetensors'),
}
FILES = ('.safetensors', *SUFFIXES)
_INDEX = re.compile(r'(.*)\.safetensors\.index(\.[\w-]+)?\.json$')
_ID = re.compile(r'^\w[\w.-]*/\w[\w.-]*(/[\w.-]+)*$')


def is_id(text: str) -> bool:
  """Whether it reads as owner/name or owner/name/path."""
  return bool(_ID.match(text)) and '..' not in text


def download(
  text: str, kind: str, endpoint: str | None = None, cache: str | None = None
) -> pathlib.Path:
  """Downloads what a conversion needs, into the hub's cache; resumes.

  Args:
    text: owner/name, with a folder, a file or an index in it after that if
      wanted.
    kind: the value of --from.
    endpoint: of the hub; its own default if None.
    cache: folder of the cache; the hub's own default if None.

  Returns:
    The local folder or file.

  Raises:
    UserError: the hub cannot be reached, or has no such thing.
  """
  import huggingface_hub
  from huggingface_hub.utils import logging

  owner, name, *inside = text.split('/')
  repo, inside = f'{owner}/{name}', '/'.join(inside)
  said = logging.get_verbosity()
  logging.set_verbosity_error()  # It tells of each time that it tries again.
  try:
    api = huggingface_hub.HfApi(endpoint=endpoint)
    wanted = choose(api.list_repo_files(repo), inside, kind, text)
    paths = [
      huggingface_hub.hf_hub_download(
        repo, file, endpoint=endpoint, cache_dir=cache
      )
      for file in wanted
    ]
  except UserError:
    raise
  except Exception as error:  # Of its own, of the network's and of the disk's.
    if disk_is_full(error):
      raise UserError(
        f'{text}: the disk of the cache of the hub is full: make room, or put '
        'the cache elsewhere by HF_HOME, and run the same command: what is '
        'there is kept'
      ) from error
    reason = ' '.join(str(error).split())[:200]
    raise UserError(
      f'{text}: is no local path, and the hub did not give it '
      f'({type(error).__name__}: {reason}): check the name and the network, log in '
      'with `hf auth login` if it is gated, or download it and give the folder'
    ) from error
  finally:
    logging.set_verbosity(said)
  first = pathlib.Path(paths[0])
  is_file = inside.endswith(FILES) or _INDEX.match(inside)
  return first if is_file else first.parent


def choose(files: list[str], inside: str, kind: str, text: str) -> list[str]:
  """The files of a repository that a conversion reads, weights first.

  Raises:
    UserError: there are no weights where they are looked for.
  """
  index = _INDEX.match(inside)
  if inside.endswith(FILES) or index:
    if inside not in files:
      raise UserError(f'{text}: the repository has no such file')
    folder = inside.rpartition('/')[0]
    weights = [inside]
    if index:
      # As diffusers names the shards of a variant, and of none.
      shard = re.escape(f'{index[1]}{index[2] or ""}')
      shard = re.compile(rf'{shard}-\d{{5}}-of-\d{{5}}\.safetensors$')
      weights += [f for f in files if shard.match(f)]
  else:
    folder = inside.strip('/')
    usual = FOLDERS.get(kind, '')
    if not folder and any(f.startswith(f'{usual}/') for f in files):
      folder = usual
    here = [f for f in files if f.rpartition('/')[0] == folder]
    # Genmo's files lie side by side: the other model's are not needed.
    own = [f'{folder}/{name}'.lstrip('/') for name in GENMO.get(kind, ())]
    weights = own if own and set(own) <= set(here) else []
    weights = weights or [f for f in here if PLAIN.search(f)]
    weights = weights or [
      f for f in here if f.endswith('.safetensors') or ANY_INDEX.search(f)
    ]
    # Older repositories have torch's own files only.
    weights = weights or [f for f in here if _is_bin(f.rpartition('/')[2])]
  if not weights:
    seen = ', '.join(files[:8]) or 'nothing'
    raise UserError(
      f'{text}: the repository has no weights in {folder or "its top"} '
      f'(it has {seen}): give owner/name/folder'
    )
  names = ('config.json', 'preprocessor_config.json')
  extra = [f'{folder}/{name}' if folder else name for name in names]
  return weights + [file for file in extra if file in files]


def usual_place(path: pathlib.Path, kind: str) -> pathlib.Path:
  """Where a whole pipeline's folder has a model, else the folder itself.

  Args:
    path: a local copy of a repository, or what `--input` names.
    kind: the value of --from.
  """
  usual = FOLDERS.get(kind)
  if usual and (path / usual).is_dir():
    return path / usual
  if kind == 'mochi' and (path / DIT).is_file():
    return path / DIT
  return path


def _is_bin(name):
  return name == BIN_INDEX or bool(BIN.match(name))
