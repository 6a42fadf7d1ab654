"""The page of samples: what it shows, and what it refuses."""

import json
import pathlib
import re
import urllib.parse

import numpy as np
import pytest

from launch import media


@pytest.fixture
def folders(tmp_path):
  """Two folders with a video of the same name, one as launch.evaluate has it."""
  for name in ('eval', 'b c'):
    video = tmp_path / name / 'clip 1.mp4'
    media.write_video(video, np.zeros((3, 16, 16, 3), np.uint8), None)
  (tmp_path / 'eval/clips').mkdir()
  rows = {
    'truth': {'mouth_correlation': 1.0},
    'generated': {'mouth_correlation': 0.5, 'mouth': [1], 'bad': float('nan')},
  }
  about = {'id': 'clip1', 'rows': rows}
  (tmp_path / 'eval/clips/clip 1.json').write_text(json.dumps(about))
  beside = {'text': '</script><b>', 'steps': 8, 'ok': True}
  (tmp_path / 'b c/clip 1.json').write_text(json.dumps(beside))
  return tmp_path


def read(page):
  text = page.read_text()
  (data,) = re.findall(r'id="data">(.*?)</script>', text, re.S)
  return json.loads(data)


def test_every_video_is_a_card_with_prompts_and_figures(
  binary, folders, capsys
):
  out = folders / 'pages/sheet.html'
  inputs = f'--input={folders}/eval,{folders}/b c'
  assert binary('sheet')(inputs, f'--out={out}', '--title=T') == 0
  assert capsys.readouterr().out == f'2 samples: open {out}\n'
  data = read(out)
  assert data['title'] == 'T'
  first, second = data['samples']
  assert (first['group'], first['name']) == ('eval', 'clip 1')
  assert first['figures'] == {'mouth_correlation': 0.5}
  assert first['prompts'] == {'id': 'clip1'}
  assert second['figures'] == {'steps': 8}
  assert second['prompts'] == {'text': '</script><b>'}
  for card in (first, second):
    link = pathlib.Path(urllib.parse.unquote(card['video']))
    assert not link.is_absolute() and (out.parent / link).exists()


def test_a_manifest_tells_the_prompts_and_videos_can_be_inside(binary, folders):
  made = folders / 'b c/clip 1.mp4'
  rows = [
    {'audio': 'a.wav', 'out': str(made), 'image': None, 'text': 'x'},
    {'audio': 'b.wav', 'out': f'{folders}/not-made.mp4'},
  ]
  manifest = folders / 'jobs.jsonl'
  manifest.write_text('\n'.join(map(json.dumps, rows)))
  out = folders / 'sheet.html'
  assert binary('sheet')(f'--input={manifest}', f'--out={out}', '--embed') == 0
  (card,) = read(out)['samples']
  assert card['group'] == 'jobs'
  assert card['prompts'] == {'audio': 'a.wav', 'text': '</script><b>'}
  assert card['video'].startswith('data:video/mp4;base64,')


def test_what_is_wrong_is_one_line(binary, folders, one_error):
  (folders / 'empty').mkdir()
  (folders / 'x.jsonl').write_text('{"audio": "a"}')
  (folders / 'eval/clip 1.json').write_text('[1]')
  eval_, out = f'--input={folders}/eval', f'--out={folders}/o.html'
  for flags, said in (
    ([out], '--input is needed'),
    ([out, '--input=/no'], '--input=/no: no such folder or manifest'),
    ([out, f'--input={folders}/empty'], 'has no video; make some first'),
    ([out, f'--input={folders}/x.jsonl'], 'x.jsonl:1: is no job of launch.sam'),
    ([out, eval_], 'eval/clip 1.json: is no JSON object'),
    ([f'--out={folders}/o.txt', f'--input={folders}/b c'], 'the page is an .h'),
  ):
    assert binary('sheet')(*flags) == 1
    assert said in one_error()
  assert not (folders / 'o.html').exists()
