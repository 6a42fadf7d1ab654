"""Windows hold what belongs together, and come in the same order again."""

import ast
from concurrent import futures
import gc
import io
import threading
import time

from array_record.python import array_record_module
import jax
import numpy as np
import pytest

from mirage_jax import augment, data, records, text

CFG = data.LatentConfig('train', 'eval', text_length=6, augment=0.0)


def planted(num_frames=100, voices=1):
  """Every value tells its place: latents, frames of references and sound."""

  def spread(values, *shape):
    values = np.asarray(values, np.float32)
    return np.broadcast_to(
      values.reshape(*values.shape, *(1,) * len(shape)), values.shape + shape
    ).astype(np.float16)

  kept = np.arange(0, num_frames, 6)
  frames = np.arange(num_frames)
  return {
    'id': np.array('c'),
    'caption': np.array('red wall'),
    'offsets': np.array([0, 12]),
    'latents_0': spread(np.arange(num_frames // 25 * 5), 2, 2, 3),
    'latents_12': spread(100 + np.arange((num_frames - 12) // 25 * 5), 2, 2, 3),
    'reference': spread(500 + kept, 2, 2, 3),
    'reference_frame': kept,
    'audio': spread(np.stack([frames + 1000 * v for v in range(voices)]), 4),
  }


def windows(count=300, cfg=CFG, record=None, others=()):
  record = record or planted()
  for seed in range(count):
    rng = np.random.default_rng(seed)
    yield data.latent_window(record, rng, cfg=cfg, others=others)


def first_frame(window):
  """Start of the window in frames, from its first latent; and the offset."""
  value = int(window['video'][0, 0, 0, 0])
  offset, latent = (12, value - 100) if value >= 100 else (0, value)
  assert latent % 5 == 0
  return offset + latent * 5, offset


def test_the_parts_of_a_window_belong_together():
  starts = set()
  for window in windows():
    start, offset = first_frame(window)
    starts.add((start, offset))
    video = window['video'][:, 0, 0, 0]
    np.testing.assert_array_equal(video, video[0] + np.arange(10))
    np.testing.assert_array_equal(
      window['audio'][:, 0], np.arange(start, start + 50)
    )
    # The image is from outside, and its time says from where.
    frame = int(window['reference'][0, 0, 0, 0]) - 500
    assert not start <= frame < start + 50
    np.testing.assert_allclose(
      window['reference_time'], [(frame - start) / 5, -2, -1], rtol=1e-6
    )
    past, mask = window['reference'][1:, 0, 0, 0], window['reference_mask']
    assert mask[0] and mask[1] == mask[2]
    np.testing.assert_array_equal(past, (video[0] + [-2, -1]) * mask[1])
  # Each place of each alignment is drawn.
  assert starts == {(0, 0), (25, 0), (50, 0), (12, 12), (37, 12)}


def test_frames_on_both_sides_serve_as_image():
  sides = set()
  for window in windows():
    frame = int(window['reference'][0, 0, 0, 0]) - 500
    start, _ = first_frame(window)
    sides.add((start, frame > start))
  assert sides >= {(25, False), (25, True), (0, True), (50, False)}
  assert (0, False) not in sides


def test_the_past_is_dropped_at_its_rate():
  import dataclasses

  def share(rate):
    cfg = dataclasses.replace(CFG, drop_past=rate)
    later = [w for w in windows(600, cfg) if w['video'][0, 0, 0, 0] % 100]
    return np.mean([w['reference_mask'][1] for w in later])

  assert share(0.0) == 1 and share(1.0) == 0
  assert abs(share(0.3) - 0.7) < 0.08
  none = dataclasses.replace(CFG, past=0)
  window = next(windows(1, none))
  assert window['reference'].shape == (1, 2, 2, 3)
  assert (
    window['reference_time'].shape == window['reference_mask'].shape == (1,)
  )


def test_types_caption_and_padding():
  window = next(windows(1))
  ids, mask = text.byte_ids('red wall', 6)
  np.testing.assert_array_equal(window['text'], ids)
  assert bytes(window['text'].astype(np.uint8)) == b'red wa' and mask.all()
  ids, mask = text.byte_ids('né', 6)
  assert mask.tolist() == [True] * 3 + [False] * 3 and ids[3:].sum() == 0
  for name in ('video', 'reference', 'reference_time', 'audio'):
    assert window[name].dtype == np.float32


def test_only_training_changes_the_voice(monkeypatch):
  import dataclasses

  calls = []
  monkeypatch.setattr(
    augment, 'augment_features', lambda x, rng: (calls.append(0), x + 0.5)[1]
  )
  record = planted(voices=3)
  plain = {int(w['audio'][0, 0]) // 1000 for w in windows(50, CFG, record)}
  assert plain == {0} and not calls
  cfg = dataclasses.replace(CFG, augment=1.0)
  changed = list(windows(50, cfg, record))
  assert {int(w['audio'][0, 0]) // 1000 for w in changed} == {0, 1, 2}
  for window in changed:
    start, _ = first_frame(window)
    assert window['audio'][0, 0] % 1000 == start + 0.5  # Still in step.
  some = dataclasses.replace(CFG, augment=0.3)
  first = np.array([w['audio'][0, 0] for w in windows(200, some, record)])
  plain = (first < 1000) & (first % 1 == 0)
  assert 0.6 < plain.mean() < 0.8
  assert (first[~plain] % 1 == 0.5).all()


def test_a_share_of_the_images_is_of_other_clips():
  import dataclasses

  def image(window):
    return int(window['reference'][0, 0, 0, 0]) - 500

  others = [planted()]
  others[0]['reference'] = others[0]['reference'] + np.float16(1000)
  cfg = dataclasses.replace(CFG, other_image=0.3)
  found = list(windows(600, cfg, others=others))
  foreign = np.array([image(w) >= 1000 for w in found])
  assert 0.25 < foreign.mean() < 0.35
  for window, other in zip(found, foreign, strict=True):
    start, _ = first_frame(window)
    frame = image(window) - 1000 * other
    # Past and time are those of the clip itself.
    assert not start <= frame < start + 50
    assert window['reference_time'][0] == np.float32((frame - start) / 5)
    assert (window['reference'][1:] < 500).all()


@pytest.mark.parametrize('name', ['augment', 'other_image'])
def test_a_share_beyond_one_is_refused(name):
  with pytest.raises(ValueError, match=f'data.{name} is a share'):
    data.LatentConfig('train', 'eval', **{name: 2.0})


@pytest.mark.parametrize(
  'value',
  [
    np.arange(24, dtype=np.float16).reshape(2, 3, 4),
    np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    np.arange(3) > 1,
    np.zeros((0, 4), np.uint8),
    np.array("naïve\n'(1, 2)"),
    'words',
    7,
  ],
  ids=lambda v: f'{np.asarray(v).dtype}',
)
def test_records_come_back_as_numpy_reads_them(value):
  packed = records.pack({'a': value, 'b.npy': np.arange(2)})
  found = records.unpack(packed)
  with np.load(io.BytesIO(packed), allow_pickle=False) as expected:
    assert list(found) == ['a', 'b.npy']
    np.testing.assert_array_equal(found['a'], expected['a'])
    assert found['a'].dtype == expected['a'].dtype
    assert found['a'].shape == expected['a'].shape


def test_objects_in_a_record_are_refused():
  buffer = io.BytesIO()
  np.savez(buffer, broken=np.array([{}], object))
  with pytest.raises(ValueError, match='broken.npy of a record is no array'):
    records.unpack(buffer.getvalue())


class Slow:
  """Garbage that lets other threads run, in the midst of a parser's work."""

  def __init__(self):
    self.itself = self

  def __del__(self):
    time.sleep(1e-4)


def test_records_are_read_while_another_thread_parses():
  packed = records.pack({str(k): np.arange(3) for k in range(20)})
  done = threading.Event()

  def parse():
    while not done.is_set():
      Slow()
      ast.parse('x = [(1, 2), {"a": (1, (2, (3, 4)))}]\n' * 20)

  before = gc.get_threshold()
  gc.set_threshold(50)
  with futures.ThreadPoolExecutor(1) as pool:
    parsing = pool.submit(parse)
    try:
      for _ in range(100):
        records.unpack(packed)
    finally:
      done.set()
      gc.set_threshold(*before)
    parsing.result()


def test_clips_that_are_too_short_are_named():
  with pytest.raises(ValueError, match=r'clip c is shorter.*num_chunks=2'):
    next(windows(1, record=planted(49)))
  record = planted(50) | {'offsets': np.array([0])}
  with pytest.raises(ValueError, match='clip c has no frame outside'):
    next(windows(1, record=record))


def test_clip_windows_stay_inside_and_reach_every_edge():
  cfg = data.ClipConfig('train', 'eval', num_frames=7, size=16)
  frames = np.zeros((10, 18, 20, 3), np.uint8)
  frames[..., 0] = np.arange(10)[:, None, None]
  frames[..., 1] = np.arange(18)[:, None]
  frames[..., 2] = np.arange(20)
  starts = []
  for seed in range(200):
    rng = np.random.default_rng(seed)
    made = data.clip_window({'id': 'c', 'frames': frames}, rng, cfg=cfg)
    window = made['frames']
    assert window.shape == (7, 16, 16, 3)
    starts.append(window[0, 0, 0])
    np.testing.assert_array_equal(window[-1, -1, -1] - starts[-1], [6, 15, 15])
  np.testing.assert_array_equal(np.min(starts, 0), [0, 0, 0])
  np.testing.assert_array_equal(np.max(starts, 0), [3, 2, 4])
  with pytest.raises(ValueError, match=r'clip c has \(6, 18, 20\) frames'):
    data.clip_window({'id': 'c', 'frames': frames[:6]}, rng, cfg=cfg)


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
  """Two shards with the numbers 0 to 6."""
  folder = tmp_path_factory.mktemp('shards')
  for part, numbers in enumerate((range(4), range(4, 7))):
    writer = array_record_module.ArrayRecordWriter(
      str(folder / f'{part}.array_record'), 'group_size:1'
    )
    for n in numbers:
      writer.write(records.pack({'n': np.int32(n), 'id': f'c{n}'}))
    writer.close()
  return str(folder)


def draw(record, rng):
  return {'n': record['n'], 'x': rng.random()}


def take(shards, count, seed=0, batch_size=4):
  ds = iter(data.batches(data.open_shards(shards), batch_size, seed, draw))
  return [next(ds) for _ in range(count)]


def test_an_epoch_has_every_clip_once_and_the_next_another_order(shards):
  numbers = np.concatenate([b['n'] for b in take(shards, 7)])
  epochs = numbers.reshape(4, 7)
  assert (np.sort(epochs) == np.arange(7)).all()
  assert len({tuple(e) for e in epochs}) > 1
  values = np.concatenate([b['x'] for b in take(shards, 7)])
  assert len(set(values)) == 28  # The same clip, another window.


def test_the_seed_decides(shards):
  first, again, other = (take(shards, 3, seed) for seed in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert any(
    (a['x'] != b['x']).all() for a, b in zip(first, other, strict=True)
  )


def test_reading_goes_on_at_a_position(shards):
  straight = take(shards, 6)
  ds = iter(data.batches(data.open_shards(shards), 4, 0, draw))
  for _ in range(3):
    next(ds)
  state = ds.get_state()
  resumed = iter(data.batches(data.open_shards(shards), 4, 0, draw))
  resumed.set_state(state)
  for expected in straight[3:]:
    jax.tree.map(np.testing.assert_array_equal, next(resumed), expected)


def test_processes_share_each_batch(shards, monkeypatch):
  whole = take(shards, 3)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  parts = []
  for index in range(2):
    monkeypatch.setattr(jax, 'process_index', lambda index=index: index)
    parts.append(take(shards, 3))
  for batch, *shares in zip(whole, *parts, strict=True):
    joined = jax.tree.map(lambda *x: np.concatenate(x), *shares)
    jax.tree.map(np.testing.assert_array_equal, joined, batch)


def test_no_shards_are_said(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no \*\.array_record in'):
    data.open_shards(str(tmp_path))
