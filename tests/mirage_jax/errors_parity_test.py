"""The table of errors against diffusers and transformers; `make parity` prints it.

The models, inputs and tolerance are those of the parity tests beside it.
"""

from flax import linen as nn
import jax
import numpy as np
import pytest

from mirage_jax.encoders import (
  names,
  t5,
  t5_names,
  wav2vec2,
  wav2vec2_names,
  whisper,
  whisper_names,
)
from mirage_jax.vae import Vae

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


def load(module, layout, cfg, theirs):
  tensors = {k: v.detach().numpy() for k, v in theirs.state_dict().items()}
  return names.load(layout, nn.unbox(module.abstract_params(cfg)), tensors)


def outputs(name, got, want, inner, inner_want):
  """(row, ours, theirs) of the output and of every hidden state."""
  yield name, got, want
  for i, (ours, theirs) in enumerate(zip(inner, inner_want, strict=False)):
    yield f'{name}: hidden state {i}', ours, theirs.detach().numpy()


def text_rows():
  ids = np.random.default_rng(0).integers(0, 50, (3, 37)).astype(np.int32)
  mask = np.arange(37)[None] < np.array([37, 20, 1])[:, None]
  for name, cfg in text.CONFIGS.items():
    model = text.make_theirs(cfg)
    params = load(t5, t5_names.places(cfg), cfg, model)
    want, inner = text.run_theirs(model, ids, mask)
    apply = jax.jit(t5.T5Encoder(cfg).apply, static_argnames='hidden')
    got, hidden = apply({'params': params}, ids, mask, hidden=True)
    inner = [torch.from_numpy(x) for x in inner]
    yield from outputs(name, got, want, hidden, inner)


def speech_rows():
  rng = np.random.default_rng(0)
  wave = rng.standard_normal((3, speech.LENGTHS[0]), np.float32)
  for name, (kind, cfg) in speech.CASES.items():
    model = speech.make_theirs(kind, cfg)
    params = load(wav2vec2, wav2vec2_names.places(cfg), cfg, model)
    with torch.no_grad():
      want = model(torch.from_numpy(wave), output_hidden_states=True)
    got, hidden = speech.jitted(cfg)({'params': params}, wave, hidden=True)
    last = want.last_hidden_state.numpy()
    yield from outputs(name, got, last, hidden, want.hidden_states)


def listener_rows():
  cfg, model = listener.CFG, listener.make_theirs()
  params = load(whisper, whisper_names.places(cfg), cfg, model)
  shape = (2, 2 * cfg.max_features, cfg.mels)
  mel = np.random.default_rng(0).standard_normal(shape, np.float32)
  with torch.no_grad():
    want = model.model.encoder(
      torch.from_numpy(mel).transpose(1, 2), output_hidden_states=True
    )
  got, hidden = listener.run_ours(params, mel)
  last = want.last_hidden_state.numpy()
  yield from outputs('whisper', got, last, hidden, want.hidden_states[:-1])


def vae_rows():
  cfg = vae.config()
  theirs, params = vae.make_theirs(cfg, 0)
  rng = np.random.default_rng(0)
  x = rng.uniform(-1, 1, (2, 13, 16, 24, 3)).astype(np.float32)
  with torch.no_grad():
    want = theirs.encoder(torch.from_numpy(x).permute(0, 4, 1, 2, 3))[0]
  apply = jax.jit(Vae(cfg).apply, static_argnames='method')
  got = apply({'params': params}, x, method='encode')
  got = np.concatenate([np.asarray(z) for z in got], -1)
  yield 'Mochi VAE, encoder', got, want.permute(0, 2, 3, 4, 1).numpy()
  # Without expansion in time, see `mochi_vae_parity_test`.
  cfg = vae.config(time_factors=(1, 1, 1))
  theirs, params = vae.make_theirs(cfg, 1)
  z = rng.standard_normal((2, 4, 2, 3, 4), np.float32)
  with torch.no_grad():
    want = theirs.decoder(torch.from_numpy(z).permute(0, 4, 1, 2, 3))[0]
  apply = jax.jit(Vae(cfg).apply, static_argnames='method')
  got = apply({'params': params}, z, method='decode')
  yield 'Mochi VAE, decoder', got, want.permute(0, 2, 3, 4, 1).numpy()


def transformer_rows():
  rng, model = np.random.default_rng(0), mochi.make_theirs()
  inputs = {
    'video': rng.standard_normal((3, 2, 4, 6, mochi.CHANNELS), np.float32),
    'sigma': np.array([1.0, 0.7, 0.013], np.float32),
    'text': rng.standard_normal((3, 5, mochi.FEATURES), np.float32),
    'mask': np.arange(5)[None] < np.array([5, 2, 0])[:, None],
  }
  with torch.no_grad():
    (want,) = model(
      torch.from_numpy(inputs['video']).permute(0, 4, 1, 2, 3),
      torch.from_numpy(inputs['text']),
      torch.from_numpy(1000 * (1 - inputs['sigma'])),
      torch.from_numpy(inputs['mask']),
      return_dict=False,
    )
  got = mochi.run(mochi.convert(model), inputs)
  yield 'Mochi transformer, velocity', got, want.permute(0, 2, 3, 4, 1).numpy()


def test_print_the_table(capsys):
  lines = ['| module (float32, random weights) | max error | relative |']
  lines.append('|---|---|---|')
  worst = 0.0
  for make in (
    transformer_rows,
    vae_rows,
    text_rows,
    speech_rows,
    listener_rows,
  ):
    for name, got, want in make():
      error = np.abs(np.asarray(got) - want).max()
      relative = error / np.abs(want).max()
      worst = max(worst, relative)
      lines.append(f'| {name} | {error:.1e} | {relative:.1e} |')
  with capsys.disabled():
    print('\n' + '\n'.join(lines))
  assert worst <= 1e-5
