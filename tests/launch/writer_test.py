"""Metrics arrive in JSONL and TensorBoard; progress fits a terminal."""

import io
import json
import re

from rich.console import Console
from tensorboard.backend.event_processing import event_file_loader

from launch import writer as writer_lib
from launch.writer import Progress, Writer


def rows(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_scalars_reach_both_files(tmp_path):
  writer = Writer(tmp_path)
  writer.write(1, {'loss': 0.5})
  writer.write(2, {'loss': float('nan'), 'eval/psnr': 30})
  writer.close()
  first, second = rows(tmp_path)
  assert (first['step'], first['loss']) == (1, 0.5)
  assert (second['loss'], second['eval/psnr']) == (None, 30.0)
  assert 1.7e9 < first['time'] <= second['time']
  (path,) = tmp_path.glob('events.out.tfevents.*')
  events = event_file_loader.LegacyEventFileLoader(str(path)).Load()
  scalars = [
    (event.step, value.tag, value.simple_value)
    for event in events
    for value in event.summary.value
  ]
  assert scalars[0] == (1, 'loss', 0.5)
  assert scalars[2] == (2, 'eval/psnr', 30.0)


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
  writer = Writer(tmp_path)
  for step in (1, 2, 3):
    writer.write(step, {'loss': step})
  writer.close()
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 4, "lo')  # Killed here.
  writer = Writer(tmp_path, first_step=2)
  writer.write(3, {'loss': 30})
  writer.close()
  assert [(r['step'], r['loss']) for r in rows(tmp_path)] == [
    (1, 1),
    (2, 2),
    (3, 30),
  ]


def test_a_bar_fits_in_80_columns(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(writer_lib.time, 'monotonic', lambda: now[0])
  monkeypatch.setattr(writer_lib, 'peak_memory', lambda: 12_345_678_901)
  file = io.StringIO()
  console = Console(file=file, force_terminal=True, width=80, color_system=None)
  progress = Progress(0, 1_000_000, tokens_per_step=4096, console=console)
  for step in (123_455, 123_456):
    now[0] += 0.3123
    progress.step(step, 0.012345678)
    progress.line(step)
  progress.close()
  shown = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '\n', file.getvalue())
  lines = [line for line in re.split(r'[\r\n]+', shown) if line.strip()]
  assert max(map(len, lines)) <= 80
  last = lines[-1]
  for part in ('123456/1000000', 'loss 0.01235', '3.2 steps/s', '12.3GB'):
    assert part in last
  assert '13.1k tokens/s' in last
  assert '76:02:25' in last  # 876,544 steps of 0.3123 s.


def test_plain_lines_without_a_terminal(capsys):
  console = Console(file=io.StringIO(), force_terminal=False)
  progress = Progress(0, 10, console=console)
  assert progress.step(1, 2.0) == {}
  assert progress.step(2, 1.5)['steps_per_sec'] > 0
  progress.line(2)
  progress.close()
  out = capsys.readouterr().out
  assert re.fullmatch(
    r'step 2/10 loss 1.5 \S+ steps/s \S+B 0:00:00 left\n', out
  )


def test_a_pause_does_not_slow_the_steps(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(writer_lib.time, 'monotonic', lambda: now[0])
  progress = Progress(0, 10, console=Console(file=io.StringIO()))
  progress.step(1, 0.0)
  now[0] += 1
  with progress.pause():
    now[0] += 50
  assert progress.step(2, 0.0) == {'steps_per_sec': 1.0}


def test_memory_is_that_of_this_process():
  # Python with JAX takes between 50 MB and 50 GB.
  assert 5e7 < writer_lib.peak_memory() < 5e10
