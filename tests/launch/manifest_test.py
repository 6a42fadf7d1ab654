"""Many videos in one go: every line of a manifest, right and wrong."""

import json
import re

import pytest
import soundfile

from tests import tiny


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('{"audio": "a", "out": "b.mp4"}\n\n{"audio": ', ':3: is not JSON'),
    ('["a", "b.mp4"]', ':1: must be a JSON object'),
    ('{"audio": "a", "ouT": "b"}', ":1: unknown key 'ouT'; there are audio"),
    ('{"audio": "a"}', ":1: lacks 'out'"),
    ('{"out": "a.mp4", "audio": ""}', ":1: lacks 'audio'"),
    (
      '{"out": "a.mp4", "audio": "a", "text_to_speech": "b"}',
      ":1: has both 'audio' or",
    ),
    ('{"audio": 3, "out": "b"}', ':1: audio must be a string, not 3'),
    (
      '{"audio": "a", "out": "b"}\n{"audio": "c", "out": "b"}',
      ":2: out 'b' is that of line 1",
    ),
    ('\n', ': holds no job'),
    ('{"audio": "a", "out": "b.avi"}', '--out=b.avi: the video is an .mp4'),
  ],
)
def test_mistakes_in_a_manifest_name_the_line(
  sample, tmp_path, one_error, text, said
):
  path = tmp_path / 'jobs.jsonl'
  path.write_text(text)
  assert sample(f'--manifest={path}') == 1
  assert said in one_error()


def test_a_manifest_that_is_not_text(sample, tmp_path, one_error):
  (tmp_path / 'jobs').write_bytes(b'\xff\xfe\x00')
  assert sample(f'--manifest={tmp_path}/jobs') == 1
  assert 'is no text that can be read' in one_error()


def test_a_bad_job_does_not_stop_the_others(
  sample, wav, face, tmp_path, capsys
):
  rows = [
    {'audio': str(wav), 'out': f'{tmp_path}/1.mp4', 'image': str(face)},
    {'audio': f'{tmp_path}/none.wav', 'out': f'{tmp_path}/2.mp4'},
    {'audio': str(wav), 'out': f'{tmp_path}/3.mp4', 'text': 'a\u2028b'},
    {'audio': str(wav), 'out': f'{tmp_path}/4.mp4', 'image': None},
  ]
  path = tmp_path / 'jobs.jsonl'
  lines = [json.dumps(row, ensure_ascii=False) for row in rows]
  path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
  assert sample(f'--manifest={path}') == 1
  said = capsys.readouterr()
  errors = [x for x in said.err.splitlines() if x.startswith('error: ')]
  assert errors == [
    f'error: {tmp_path}/2.mp4: {tmp_path}/none.wav: no such file',
    'error: 1 of 4 videos were not made, see above',
  ]
  made = [tmp_path / f'{n}.mp4' for n in (1, 3, 4)]
  assert sorted(tmp_path.glob('*.mp4')) == made
  # Different faces, different texts.
  assert len({p.read_bytes() for p in made}) == 3


def test_a_manifest_compiles_once_and_tells_it_apart(
  sample, wav, face, tmp_path, capsys, talker
):
  soundfile.write(tmp_path / 'b.wav', tiny.speech(1.3), 16000)
  rows = [
    {'audio': str(wav), 'out': f'{tmp_path}/1.mp4'},
    {'audio': f'{tmp_path}/b.wav', 'out': f'{tmp_path}/2.mp4'},
    {'text_to_speech': 'abc', 'out': f'{tmp_path}/3.mp4'},
  ]
  path = tmp_path / 'jobs.jsonl'
  path.write_text('\n'.join(json.dumps(r | {'image': str(face)}) for r in rows))
  # A number of steps that no other test compiles for.
  way = ['--guidance_schedule=cosine', '--steps=3', f'--speech_engine={talker}']
  assert sample(f'--manifest={path}', *way) == 0
  first, second, third, total = capsys.readouterr().out.splitlines()
  assert ', compile ' in first
  assert ', compile ' not in second + third
  assert re.fullmatch(
    r'3 videos of 1\.9 s in all: compile \d+\.\d s, run \d+\.\d s, '
    r'\d+\.\d\d a second of video',
    total,
  )
