"""Every kind of image file becomes 8-bit RGB; folders and tars read alike."""

import concurrent.futures
import io
import os
import pathlib
import pickle
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image
import pytest

from infomax_jax import images

DATA = pathlib.Path(__file__).parents[3] / 'shared/data/cifar10/train.tar'


def encode(image, kind, **options):
  data = io.BytesIO()
  image.save(data, kind, **options)
  return data.getvalue()


def pixel(image, kind='PNG', **options):
  """The one colour of a decoded image."""
  got = images.decode(encode(image, kind, **options), 'x')
  assert got.dtype == np.uint8 and got.shape == (4, 6, 3)
  colours = np.unique(got.reshape(-1, 3), axis=0)
  assert len(colours) == 1
  return colours[0].tolist()


def solid(mode, colour):
  return Image.new(mode, (6, 4), colour)


def png_of_16_bits(channels, kind, value):
  """A PNG as its specification has it; PIL writes none of 16-bit colour."""

  def chunk(name, body):
    checked = name + body
    return (
      struct.pack('>I', len(body))
      + checked
      + struct.pack('>I', zlib.crc32(checked))
    )

  rows = (b'\0' + struct.pack('>H', value) * channels * 6) * 4
  header = struct.pack('>IIBBBBB', 6, 4, 16, kind, 0, 0, 0)
  body = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows))
  return b'\x89PNG\r\n\x1a\n' + body + chunk(b'IEND', b'')


def test_colour_grey_and_palettes():
  assert pixel(solid('RGB', (10, 20, 30))) == [10, 20, 30]
  assert pixel(solid('L', 77)) == [77] * 3
  assert pixel(solid('1', 1)) == [255] * 3
  assert pixel(solid('RGB', (200, 0, 50)).quantize(4), 'GIF') == [200, 0, 50]


def test_transparency_lies_over_white():
  assert pixel(solid('RGBA', (10, 20, 30, 255))) == [10, 20, 30]
  assert pixel(solid('RGBA', (10, 20, 30, 0))) == [255] * 3
  assert pixel(solid('LA', (100, 51))) == [224] * 3  # 0.2 * 100 + 0.8 * 255.
  palette = solid('RGB', (200, 0, 50)).quantize(4)
  assert pixel(palette, transparency=palette.getpixel((0, 0))) == [255] * 3
  assert pixel(solid('RGB', (9, 8, 7)), transparency=(9, 8, 7)) == [255] * 3


def test_cmyk_is_converted():
  for kind in ('TIFF', 'JPEG'):
    assert pixel(solid('CMYK', (255, 0, 0, 0)), kind) == [0, 255, 255]
    assert pixel(solid('CMYK', (0, 0, 0, 255)), kind) == [0, 0, 0]


@pytest.mark.parametrize('value', [0, 300, 25700, 65535])
def test_16_bits_are_scaled(value):
  expected = round(value / 257)
  for kind in ('PNG', 'TIFF'):
    image = Image.fromarray(np.full((4, 6), value, np.uint16))
    assert pixel(image, kind) == [expected] * 3
  pgm = b'P5 6 4 65535\n' + struct.pack('>H', value) * 24
  assert (images.decode(pgm, 'x') == expected).all()
  for channels, kind in ((1, 0), (3, 2)):
    got = images.decode(png_of_16_bits(channels, kind, value), 'x')
    assert got.shape == (4, 6, 3)
    np.testing.assert_allclose(got, expected, atol=1)
  opaque = images.decode(png_of_16_bits(4, 6, 65535), 'x')
  assert (opaque == 255).all()


def test_what_is_no_image_is_named():
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  jpeg, png = (encode(Image.fromarray(noise), kind) for kind in ('JPEG', 'PNG'))
  broken = png[:60] + bytes(200) + png[260:]
  for data, said in (
    (jpeg[: len(jpeg) // 2], 'truncated'),
    (png[: len(png) // 2], 'truncated'),
    (broken, 'broken|checksum|CRC|invalid'),
    (b'<html>', 'no image of a known kind'),
    (b'', 'empty'),
    (encode(solid('F', 0.5), 'TIFF'), 'floats have no agreed range'),
    (encode(solid('I', 70000), 'TIFF'), '32 bits have no agreed range'),
  ):
    with pytest.raises(images.CorruptImage, match=f'^a/b.png: .*({said})'):
      images.decode(data, 'a/b.png')


# Not in the order of their names; the label is the red of the image.
FILES = {
  'dog/2.png': 1,
  'dog/10.JPEG': 1,
  'cat/b/1.png': 0,
  'cat/a.png': 0,
  'cat dog/0.webp': 2,
}


def write(folder, files):
  for name, red in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {'.JPEG': 'JPEG', '.webp': 'WEBP'}.get(path.suffix, 'PNG')
    path.write_bytes(encode(solid('RGB', (round(100 * red), 0, 0)), kind))


def pack(folder, path, mode='w', under='.'):
  with tarfile.open(path, mode) as tar:
    for file in sorted(folder.rglob('*'), reverse=True):
      if file.is_file():
        tar.add(file, f'{under}/{file.relative_to(folder)}')
  return str(path)


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / 'pets'
  write(folder, FILES)
  (folder / 'dog/notes.txt').write_text('good dogs')
  (folder / 'dog/._2.png').write_text('left by another system')
  return folder


def sources(folder, tmp_path):
  yield images.Folder(str(folder))
  yield images.Tar(pack(folder, tmp_path / 'a.tar'))
  yield images.Tar(pack(folder, tmp_path / 'b.tar', under='x/train'))
  yield images.Tar(pack(folder, tmp_path / 'c.tar', under='x/train'), 'x/train')


def test_classes_and_order(folder, tmp_path):
  order = ['cat/a.png', 'cat/b/1.png', 'cat dog/0.webp', 'dog/10.JPEG']
  for source in sources(folder, tmp_path):
    assert source.classes == ('cat', 'cat dog', 'dog')
    names = [source.name(i) for i in range(len(source))]
    for name, end in zip(names, [*order, 'dog/2.png'], strict=True):
      assert name.endswith(end) and name.startswith(str(tmp_path))
    assert source.labels.tolist() == [0, 0, 1, 2, 2]
    assert source.ranks.tolist() == [0, 1, 2, 3, 4]
    for index, red in enumerate([0, 0, 200, 100, 100]):
      image, label = source[index]
      assert image.shape == (4, 6, 3) and abs(int(image[0, 0, 0]) - red) < 4
      assert label == source.labels[index] and type(label) is int


def test_linked_class_folders_are_followed(folder, tmp_path):
  (tmp_path / 'links').mkdir()
  (tmp_path / 'links/pup').symlink_to(folder / 'dog')
  source = images.Folder(str(tmp_path / 'links'))
  assert source.classes == ('pup',) and len(source) == 2


def test_images_without_class_folders_have_no_label(tmp_path):
  write(tmp_path / 'flat', {'1.png': 1, '0.png': 0})
  pack(tmp_path / 'flat', tmp_path / 'a.tar', under='x')
  for source in (
    images.Folder(str(tmp_path / 'flat')),
    images.Tar(pack(tmp_path / 'flat', tmp_path / 'flat.tar')),
    images.Tar(str(tmp_path / 'a.tar'), 'x'),
  ):
    assert source.classes == () and source.labels.tolist() == [-1, -1]
    assert [source[i][0][0, 0, 0] for i in range(2)] == [0, 100]
    assert source[0][1] == images.UNLABELLED


def test_one_of_several_folders_in_a_tar(folder, tmp_path):
  write(tmp_path / 'both', {f'train/{name}': 0 for name in FILES})
  write(tmp_path / 'both', {'test/cat/1.png': 2})
  path = pack(tmp_path / 'both', tmp_path / 'both.tar')
  assert images.Tar(path).classes == ('test', 'train')
  assert len(images.Tar(path, 'train')) == 5
  test = images.Tar(path, 'test/')
  assert test.classes == ('cat',) and len(test) == 1
  assert test.name(0) == f'{path}/test/cat/1.png'
  with pytest.raises(FileNotFoundError, match="no image in '.*both.tar/val'"):
    images.Tar(path, 'val')


def test_a_tar_is_read_in_threads_and_by_copies(tmp_path):
  count = 60
  write(tmp_path / 'many', {f'c/{n:03d}.png': n / 100 for n in range(count)})
  source = images.Tar(pack(tmp_path / 'many', tmp_path / 'many.tar'))

  def read(source, index):
    return int(source[index][0][0, 0, 0]) == index

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    order = np.random.default_rng(0).integers(0, count, 2000).tolist()
    assert all(pool.map(lambda i: read(source, i), order))
  copy = pickle.loads(pickle.dumps(source))
  del source
  assert all(read(copy, i) for i in range(count))
  own = copy._file
  del copy
  with pytest.raises(OSError):  # Closed with the source.
    os.fstat(own)


def test_bad_places_are_said(folder, tmp_path):
  packed = pack(folder, tmp_path / 'z.tar.gz', 'w:gz')
  (tmp_path / 'text.tar').write_text('hello' * 500)
  (tmp_path / 'empty').mkdir()
  write(folder, {'loose.png': 0})
  mixed = pack(folder, tmp_path / 'mixed.tar')
  for kind, place, said in (
    (images.Tar, packed, 'is no plain tar .*decompress it'),
    (images.Tar, tmp_path / 'text.tar', 'text.tar.* is no plain tar'),
    (images.Tar, tmp_path / 'none.tar', 'there is no file'),
    (images.Tar, mixed, "images beside them, such as 'loose.png'"),
    (images.Folder, folder, "images beside them, such as 'loose.png'"),
    (images.Folder, tmp_path / 'none', 'there is no folder'),
    (images.Folder, tmp_path / 'empty', 'no image in .*class folders'),
  ):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
      kind(str(place))


def test_a_cut_tar_and_a_lost_file_are_corrupt_images(folder, tmp_path):
  path = pathlib.Path(pack(folder, tmp_path / 'cut.tar'))
  source = images.Tar(str(path))
  last = max(range(len(source)), key=lambda i: source._spans[i, 0])
  os.truncate(path, int(source._spans[last, 0]) + 30)
  with pytest.raises(images.CorruptImage, match='cut.tar/'):
    source[last]
  assert source[(last + 2) % len(source)][0].shape == (4, 6, 3)
  source = images.Folder(str(folder))
  (folder / 'dog/2.png').unlink()
  with pytest.raises(images.CorruptImage, match='2.png: No such file'):
    source[4]


def test_cifar10_in_its_tar():
  if not DATA.exists():
    pytest.skip(f'{DATA.name} of CIFAR-10 is not here')
  source = images.Tar(str(DATA))
  assert source.classes[:3] == ('airplane', 'automobile', 'bird')
  np.testing.assert_array_equal(np.bincount(source.labels), [5000] * 10)
  sample = [source[i] for i in range(0, len(source), 50)]
  pixels = np.stack([image for image, _ in sample])
  assert pixels.shape == (1000, 32, 32, 3)
  np.testing.assert_allclose(pixels.mean((0, 1, 2)), [125, 123, 114], atol=3)
