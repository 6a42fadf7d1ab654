"""Labelled images: files in class folders, unpacked or in a tar.

A source has a length and gives (uint8 [Y X 3], label) at an index; it says the
name and the label of each image without reading it. Reading is safe in threads
and in forked or spawned processes.
"""

import io
import os
import struct
import tarfile
from typing import Protocol
import weakref
import zlib

from jaxtyping import Int, UInt8
import numpy as np
from PIL import Image, UnidentifiedImageError

SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif')
SUFFIXES += ('.tiff', '.webp')
UNLABELLED = -1

# What PIL's decoders raise on bytes that are not what they say.
_BROKEN = (
  OSError,
  SyntaxError,
  ValueError,
  EOFError,
  IndexError,
  KeyError,
  TypeError,
  OverflowError,
  struct.error,
  zlib.error,
  Image.DecompressionBombError,
)


class CorruptImage(ValueError):
  """An image that cannot be read: its `name`, and the `reason`."""

  def __init__(self, name: str, reason: str):
    super().__init__(f'{name}: {reason}')
    self.name, self.reason = name, reason


class Source(Protocol):
  """What `data` reads.

  Attributes:
    classes: Names in the order of the labels; () without labels.
    labels: int32, `UNLABELLED` where there is none.
    ranks: The place of each image when all are sorted by name.
  """

  classes: tuple[str, ...]
  labels: Int[np.ndarray, 'N']
  ranks: Int[np.ndarray, 'N']

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, 'Y X 3'], int]:
    """Raises CorruptImage if the image cannot be read."""

  def name(self, index: int) -> str:
    """Where the image is, for a person to find it."""


def decode(data: bytes, name: str) -> UInt8[np.ndarray, 'Y X 3']:
  """Bytes of an image file, of any kind that PIL reads, as 8-bit RGB.

  Grey becomes equal channels, transparency is laid over white, 16 bits are
  scaled to 8, palettes and CMYK are converted. As in torchvision, EXIF
  orientation and colour profiles are not applied, and of an animation the first
  frame counts.

  Raises:
    CorruptImage: the bytes are no image, or broken, or have no agreed range.
  """
  try:
    with Image.open(io.BytesIO(data)) as image:
      return _rgb(image)
  except _BROKEN as error:
    reason = ' '.join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
      reason = 'no image of a known kind' if data else 'empty'
    raise CorruptImage(name, reason) from error


def _rgb(image):
  if image.mode.startswith('I'):
    return _from_16_bits(np.asarray(image))
  if image.mode == 'F':
    raise ValueError('floats have no agreed range: save it with 8 or 16 bits')
  if image.has_transparency_data:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(white, image)
  return np.asarray(image.convert('RGB'))


def _from_16_bits(grey):
  """PIL's own conversion would clip everything above 255 to white."""
  if grey.min() < 0 or grey.max() > 65535:
    raise ValueError('32 bits have no agreed range: save it with 8 or 16 bits')
  scaled = (grey.astype(np.float32) / 257).round().astype(np.uint8)
  return np.stack([scaled] * 3, -1)


class Folder:
  """A folder of class folders of images, or of images without labels.

  Classes are the sub-folders, sorted; images are sorted by class, then by file
  name. What lies deeper belongs to the class as well. Hidden files and files
  with other suffixes than `SUFFIXES` are left out.
  """

  def __init__(self, path: str):
    """Lists the folder.

    Raises:
      FileNotFoundError: no such folder, or no image in it.
      ValueError: images both in sub-folders and beside them.
    """
    if not os.path.isdir(path):
      raise FileNotFoundError(f'there is no folder {path!r}')
    self._path = path
    found = []
    for folder, _, files in os.walk(path, followlinks=True):
      inside = os.path.relpath(folder, path)
      at = () if inside == '.' else tuple(inside.split(os.sep))
      found += [(*at, file) for file in files]
    names, self.labels, self.classes = _by_class(found, path)
    self._names = ['/'.join(name) for name in names]
    self.ranks = np.arange(len(names))

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, 'Y X 3'], int]:
    try:
      with open(self.name(index), 'rb') as file:
        data = file.read()
    except OSError as error:
      raise CorruptImage(self.name(index), str(error.strerror)) from error
    return decode(data, self.name(index)), int(self.labels[index])

  def name(self, index: int) -> str:
    return os.path.join(self._path, self._names[index])


class Tar:
  """Class folders of images inside an uncompressed tar, read in place.

  The tar is indexed once. A folder that holds everything (such as `train/`) is
  looked through; `inside` picks one of several.
  """

  def __init__(self, path: str, inside: str = ''):
    """Reads the headers.

    Raises:
      FileNotFoundError: no such file, or no image in it (below `inside`).
      ValueError: the file is compressed or no tar, or has images both in
        sub-folders and beside them.
    """
    self._path = path
    if not os.path.isfile(path):
      raise FileNotFoundError(f'there is no file {path!r}')
    members = _members(path)
    root = tuple(part for part in inside.split('/') if part)
    found = {m[len(root) :]: m for m in members if m[: len(root)] == root}
    where = os.path.join(path, inside) if inside else path
    names, self.labels, self.classes = _by_class(found, where, not inside)
    names = [found[name] for name in names]
    self._names = ['/'.join(name) for name in names]
    self.ranks = np.arange(len(names))
    self._spans = np.array([members[name] for name in names], np.int64)
    self._open()

  def _open(self):
    self._file = os.open(self._path, os.O_RDONLY)
    weakref.finalize(self, os.close, self._file)

  def __getstate__(self):
    return {k: v for k, v in self.__dict__.items() if k != '_file'}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._open()

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, 'Y X 3'], int]:
    offset, size = self._spans[index].tolist()
    # Reads at a place move no common position: safe in threads and forks.
    data = os.pread(self._file, size, offset)
    return decode(data, self.name(index)), int(self.labels[index])

  def name(self, index: int) -> str:
    return f'{self._path}/{self._names[index]}'


def _members(path):
  """{parts of a file's name: (its offset, its size)}."""
  members = {}
  try:
    with tarfile.open(path, 'r:') as tar:
      while (member := tar.next()) is not None:
        if member.isreg():
          parts = tuple(p for p in member.name.split('/') if p not in ('', '.'))
          members[parts] = (member.offset_data, member.size)
        tar.members = []  # It would keep them all: 1 GB for ImageNet.
  except tarfile.TarError as error:
    raise ValueError(
      f'{path!r} is no plain tar ({error}): if it is compressed, decompress it '
      'first, so that images can be read in any order'
    ) from error
  return members


def _by_class(found, where, look_through=False):
  """(sorted image names in parts, labels, classes) of files at `where`."""
  names = [
    parts
    for parts in found
    if parts[-1].lower().endswith(SUFFIXES) and parts[-1][0] != '.'
  ]
  if not names:
    raise FileNotFoundError(
      f'no image in {where!r}: it must hold class folders of files ending in '
      f'{", ".join(SUFFIXES)}'
    )
  depth = 0
  if look_through:
    while all(
      n[depth] == names[0][depth] and len(n) > depth + 2 for n in names
    ):
      depth += 1
  flat = [len(name) == depth + 1 for name in names]
  if any(flat) and not all(flat):
    loose = '/'.join(names[flat.index(True)])
    raise ValueError(
      f'{where!r} has class folders and images beside them, such as {loose!r}: '
      'move every image into the folder of its class, or none'
    )
  names.sort(key=lambda name: name[depth:])
  if all(flat):
    return names, np.full(len(names), UNLABELLED, np.int32), ()
  classes = sorted({name[depth] for name in names})
  index = {name: label for label, name in enumerate(classes)}
  labels = np.array([index[name[depth]] for name in names], np.int32)
  return names, labels, tuple(classes)
