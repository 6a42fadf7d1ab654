"""Speech features at the video's rate, on the video's clock, without torch."""

from flax import linen as nn
import jax
import numpy as np
import pytest

from mirage_jax.encoders import frames, wav2vec2, whisper

# The published convolutions, so that a feature is 20 ms.
SPEECH = wav2vec2.Wav2Vec2Config(
  8, 2, 2, 12, True, conv_dim=4, position_kernel=4, position_groups=2
)
WHISPER = whisper.WhisperConfig(8, 1, 2, max_features=50)


def draw(abstract):
  """Weights that tell one sound from another: small biases, large kernels."""
  rng = np.random.default_rng(0)

  def make(path, x):
    noise = rng.standard_normal(x.shape, np.float32)
    kind = {'scale': lambda: 1 + 0.3 * noise, 'bias': lambda: 0.1 * noise}
    return kind.get(path[-1].key, lambda: noise)()

  return jax.tree.map_with_path(make, nn.unbox(abstract))


PARAMS = draw(wav2vec2.abstract_params(SPEECH))


@pytest.fixture(scope='module')
def wave():
  rng = np.random.default_rng(1)
  return (0.1 * rng.standard_normal(16000)).astype(np.float32)


@pytest.fixture(scope='module')
def speech():
  return frames.Wav2Vec2Features(SPEECH, PARAMS, layer=1)


def interpolated(wave):
  """Frame n lies at feature 2 n + 0.375 of ten frames and 80 samples."""
  apply = jax.jit(wav2vec2.Wav2Vec2(SPEECH).apply, static_argnames='hidden')
  _, hidden = apply({'params': PARAMS}, wave[None], hidden=True)
  features = np.asarray(hidden)[1, 0]
  assert len(features) == 20
  return 0.625 * features[::2] + 0.375 * features[1::2]


@pytest.mark.parametrize(
  ('stride', 'centre'), [(320, 199.5), (320, 0.0), (160, 80.0)]
)
def test_a_ramp_in_time_stays_on_the_clock(stride, centre):
  """A feature that says its own time gives tokens that say theirs."""
  times = stride * np.arange(200) + centre
  features = np.stack([times, -times], 1)
  got = frames.resample(features, 40, stride, centre)
  middle = 640 * np.arange(40) + 319.5
  np.testing.assert_allclose(got[:, 0], middle, rtol=1e-6)
  np.testing.assert_allclose(got[:, 1], -middle, rtol=1e-6)


def test_the_ends_hold():
  features = np.array([[1.0], [3.0]])
  got = frames.resample(features, 3, 320, 1000.0)
  assert got.tolist() == [[1.0], [1.0], pytest.approx([3.0])]
  assert frames.resample(features[:1], 2, 320, 0).tolist() == [[1.0], [1.0]]


def test_wav2vec_tokens_are_interpolated_features(speech, wave):
  got = speech(wave, 10)
  assert got.shape == (10, speech.dim) and got.dtype == np.float32
  part = wave[:6480]
  want = interpolated((part - part.mean()) / part.std())
  assert np.abs(np.diff(want, axis=0)).max() > 0.1
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_short_waves_are_padded_after_they_are_normalised(speech, wave):
  part = wave[:3001]
  scaled = (part - part.mean()) / part.std()
  want = interpolated(np.pad(scaled, (0, 6480 - 3001)))
  np.testing.assert_allclose(speech(part, 10), want, rtol=1e-4, atol=1e-4)
  assert np.isfinite(speech(part[:0], 10)).all()


def test_bad_waves_are_told(speech, wave):
  with pytest.raises(ValueError, match='mono'):
    speech(wave.reshape(2, -1), 10)
  with pytest.raises(ValueError, match='not finite'):
    speech(np.array([0, np.nan], np.float32), 10)


def test_whisper_hears_a_padded_clip(wave):
  params = draw(whisper.abstract_params(WHISPER))
  listen = frames.WhisperFeatures(WHISPER, params)
  got = listen(wave, 20)
  assert got.shape == (20, listen.dim) and got.dtype == np.float32
  mel = whisper.log_mel(np.pad(wave[:12800], (0, 3200)))
  apply = jax.jit(whisper.WhisperEncoder(WHISPER).apply)
  features, _ = apply({'params': params}, mel[None])
  # The middle of a frame is half a sample before its second feature.
  np.testing.assert_allclose(got, features[0, 1:40:2], atol=0.01)
  with pytest.raises(ValueError, match='at most 25 frames'):
    listen(wave, 26)
