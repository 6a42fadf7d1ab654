"""The table of errors against diffusers and transformers.

`make parity` prints it, see `tests/tables.py`. What they give at toy sizes is kept
in `golden.npz` for where they are not installed; WRITE_GOLDEN=1 in the environment
writes it anew.
"""

from collections.abc import Callable, Iterator
import copy
import functools
import os
from typing import Any

import numpy as np
import pytest

from tests.mirage_jax import foreign_modules, foreign_toys as toys

REASON = 'parity with the original needs the `convert` extra'
torch = pytest.importorskip('torch', reason=REASON)
pytest.importorskip('transformers', reason=REASON)
pytest.importorskip('diffusers', reason=REASON)

from tests.mirage_jax import (  # noqa: E402
  mochi_parity_test as mochi,
  mochi_vae_parity_test as vae,
)
from tests.mirage_jax.encoders import (  # noqa: E402
  t5_parity_test as text,
  wav2vec2_parity_test as speech,
  whisper_parity_test as listener,
)

pytestmark = pytest.mark.filterwarnings('ignore')
# Of names that nothing reads at inference, or that are another's.
UNREAD = ('masked_spec_embed', 'encoder.embed_tokens.weight', 'decoder.')
Run = Callable[[torch.dtype], Any]


@functools.cache
def toy(name: str) -> toys.Toy:
  return toys.TOYS[name]()


@functools.cache
def theirs(name: str) -> tuple[torch.nn.Module, Run]:
  """Their model with the toy's weights, and what runs it on the inputs."""
  cfg = toy(name).cfg
  if name == 'mochi':
    model, run = mochi.make_theirs(), run_mochi
  elif name.startswith('mochi_vae'):
    model, _ = vae.make_theirs(cfg, 0)
    run = run_vae_encoder if name.endswith('encoder') else run_vae_decoder
  elif name == 'whisper':
    model, run = listener.make_theirs().model, run_whisper
  elif name in toys.SPEECHES:
    model, run = speech.make_theirs(*toys.SPEECHES[name]), run_speech
  else:
    model, run = text.make_theirs(cfg), run_text
  state = {k: torch.from_numpy(v) for k, v in toys.draw(toy(name)).items()}
  report = model.load_state_dict(state, strict=False)
  assert not report.unexpected_keys
  assert all(key.startswith(UNREAD) for key in report.missing_keys)
  # A copy: what was rounded does not come back.
  typed = lambda dtype: (
    model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
  )
  return model.eval(), lambda dtype: run(typed(dtype), dtype, **inputs(name))


def inputs(name):
  return {k: torch.from_numpy(x) for k, x in toy(name).inputs.items()}


def run_mochi(model, dtype, video, sigma, text, text_mask):
  video = video.permute(0, 4, 1, 2, 3).to(dtype)
  time = 1000 * (1 - sigma)
  (velocity,) = model(video, text.to(dtype), time, text_mask, return_dict=False)
  return velocity.permute(0, 2, 3, 4, 1)


def run_vae_encoder(model, dtype, x):
  x = x.permute(0, 4, 1, 2, 3).to(dtype)
  return model.encoder(x)[0].permute(0, 2, 3, 4, 1)


def run_vae_decoder(model, dtype, x):
  x = x.permute(0, 4, 1, 2, 3).to(dtype)
  return model.decoder(x)[0].permute(0, 2, 3, 4, 1)


def run_text(model, dtype, ids, mask):
  return model(ids.long(), mask.long(), output_hidden_states=True)


def run_speech(model, dtype, wave, mask):
  return model(wave.to(dtype), mask.long(), output_hidden_states=True)


def run_whisper(model, dtype, mel):
  mel = mel.transpose(1, 2).to(dtype)
  return model.encoder(mel, output_hidden_states=True)


def want(name: str, dtype: torch.dtype = torch.float32) -> np.ndarray:
  _, run = theirs(name)
  with torch.no_grad():
    result = run(dtype)
  return getattr(result, 'last_hidden_state', result).float().numpy()


def module_rows() -> Iterator[foreign_modules.Row]:
  """Of each whole: Mochi's module by module, the encoders' by hidden state."""
  for name in toys.TOYS:
    model, run = theirs(name)
    how = toy(name), toys.params(toy(name))
    step = lambda run=run: run(torch.float32)
    with torch.no_grad():
      if name == 'mochi':
        yield from foreign_modules.mochi_rows(*how, model, step)
      elif name.startswith('mochi_vae'):
        half = name.removeprefix('mochi_vae_')
        yield from foreign_modules.vae_rows(*how, model, half, step)
      else:
        states = [x.numpy() for x in step().hidden_states]
        # The last of theirs is the output, where a norm follows the blocks.
        normed = name in ('t5', 'umt5', 'whisper')
        states = states[:-1] if normed else states
        rows = foreign_modules.hidden_rows(*how, states)
        yield from ((f'{name}, {what}', *pair) for what, *pair in rows)


def errors(got, want) -> tuple[float, float]:
  """The largest error, and over the largest value."""
  assert got.shape == want.shape
  error = np.abs(got - want).max()
  return float(error), float(error / np.abs(want).max())


def test_every_module_and_the_whole(record_property):
  lines = ['| module (float32, drawn weights) | max error | relative |']
  lines.append('|---|---|---|')
  wholes = ((f'**{n}**', toys.output(toy(n)), want(n)) for n in toys.TOYS)
  worst = 0.0
  for rows in (wholes, module_rows()):
    for name, got, theirs_gave in rows:
      error, relative = errors(got, theirs_gave)
      worst = max(worst, relative)
      lines.append(f'| {name} | {error:.1e} | {relative:.1e} |')
  record_property('table', '\n'.join(lines))
  assert worst <= 1e-5
  assert len(lines) > 80


def test_the_decoder_with_repeated_frames_dropped_as_genmo_does():
  """Expansion in time, whole: all of diffusers' modules, one choice of Genmo's."""
  other = toys.vae(toys.VAE, 'decode', (1, 3, 2, 3, 4))
  model, _ = vae.make_theirs(toys.VAE, 0)
  state = {k: torch.from_numpy(v) for k, v in toys.draw(other).items()}
  model.load_state_dict(state)
  x = torch.from_numpy(other.inputs['x'])
  got = toys.output(other)
  with torch.no_grad():
    plain = run_vae_decoder(model, torch.float32, x).numpy()
    foreign_modules.drop_repeats(model.decoder)
    dropped = run_vae_decoder(model, torch.float32, x).numpy()
  assert errors(got, dropped)[1] <= 1e-5
  # Where diffusers itself differs: the convolutions that saw those frames.
  assert errors(got, plain[:, 5:])[1] > 1e-3


@pytest.mark.parametrize('name', toys.TOYS)
def test_bfloat16_errs_no_more_than_torch_does(name, record_property):
  exact = want(name)
  noise = np.sqrt(np.mean((want(name, torch.bfloat16) - exact) ** 2))
  got = toys.output(toy(name), dtype='bfloat16')
  error = np.sqrt(np.mean((got - exact) ** 2))
  said = f'{name}, bfloat16: RMS error {error:.1e}, torch has {noise:.1e}'
  record_property('table', f'{said}, {error / noise:.2f} times that')
  assert 0 < error <= 1.25 * noise


def test_the_golden_file_is_what_they_give():
  found = {name: want(name) for name in toys.TOYS}
  if os.environ.get('WRITE_GOLDEN'):
    np.savez_compressed(toys.GOLDEN, **found)
  with np.load(toys.GOLDEN) as golden:
    assert set(golden.files) == set(found)
    for name, x in found.items():
      assert errors(golden[name], x)[1] <= 2e-6, name
