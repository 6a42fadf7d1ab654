"""Forms say what flags say: the same words give the same settings."""

import pytest

from launch import serve_inputs
from launch.errors import UserError
from launch.serve_jobs import Limits

# One of the machine's, that of the memory, and what is decided at the start.
OPERATOR = {'sequential_guidance', 'quantise'}
GIVEN = {
  'steps': '9',
  'solver': 'dpmpp_2m',
  'audio_cfg': '2.5',
  'text_cfg': '4',
  'reference_cfg': '1.5',
  'joint_cfg': '2',
  'skip_cfg': '1',
  'guidance_rescale': '0.7',
  'skip_blocks': '3',
  'guidance_schedule': 'audio=cosine,text=window:0.9:0.2',
  'negative_text': 'dark',
  'cache': 'guidance:4',
  'overlap': '1',
  'reuse_noise': 'true',
  'anchor': 'false',
}


def test_a_form_has_every_flag_and_reads_it_likewise(binary):
  flags = [f'--{name}={value}' for name, value in GIVEN.items()]
  with binary('sample').loaded(*flags) as sample:
    want = sample._SAMPLING.settings(7)
    assert set(sample._SAMPLING.changed()) == set(GIVEN)
    names = {holder.name for holder in sample._SAMPLING._holders}
    assert names == {*GIVEN, *OPERATOR}
  got = serve_inputs.read_settings(GIVEN | {'seed': '7'}, Limits())
  assert got == want
  assert set(GIVEN) < set(serve_inputs.FIELDS)


@pytest.mark.parametrize(
  ('field', 'said'),
  [
    ({'cache': 'all'}, "--cache=all: 'all' is no caching"),
    ({'cache': 'fast', 'solver': 'heun'}, '--cache goes with solvers'),
    ({'overlap': 'a'}, 'overlap=a: must be a whole number'),
    ({'overlap': '-1'}, '--overlap=-1: must not be negative'),
    ({'anchor': 'x'}, 'anchor=x: give one of true, false'),
  ],
)
def test_what_is_wrong_is_named(field, said):
  with pytest.raises(UserError, match=said):
    serve_inputs.read_settings(field, Limits())
