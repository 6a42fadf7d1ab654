"""Sound to frames with a bundle of weights, window after window.

Every window has as many chunks as in training. The first starts from nothing
but its conditions; each further one also sees the last latents before it, as
clean reference tokens, and goes on from them.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8
import numpy as np

from launch.bundle import Bundle
from launch.errors import UserError
from mirage_jax import config as config_lib
from mirage_jax import data
from mirage_jax import flow
from mirage_jax import latents as latents_lib
from mirage_jax import sampler
from mirage_jax import text as text_lib
from mirage_jax.audio import RATE, LogMel
from mirage_jax.dit import Mirage
from mirage_jax.vae import CHUNK, Vae, VaeConfig

# A still image stands one second before the window: in training it is a frame
# from outside of it, most often about as far away.
IMAGE_SECONDS = -1.0


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to sample.

  Attributes:
    steps: Euler steps a window, on the linear-quadratic schedule.
    guidance: Weights of the conditions; 1 asks for no guidance.
    seed: Of the noise.
  """

  steps: int = 32
  guidance: sampler.Guidance = sampler.Guidance()
  seed: int = 0

  def __post_init__(self):
    if self.steps < 2:
      raise UserError(f'--steps={self.steps}: at least 2 are needed')


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(model, guidance, params, cond, noise, x, sigma, next_sigma):
  apply = functools.partial(model.apply, {'params': params})
  step = sampler.make_step(apply, cond, noise, guidance)
  return step(x, sigma, next_sigma)


class Generator:
  """A bundle ready to sample; what it compiles is kept for the next call.

  Raises:
    UserError: the bundle has no transformer.
  """

  def __init__(self, bundle: Bundle):
    if bundle.dit is None:
      raise UserError('the checkpoint has a VAE only: export it with a DiT')
    self._bundle = bundle
    self._vae = Vae(config_lib.build(VaeConfig, bundle.config['vae']))
    self._model = Mirage(
      config_lib.build(config_lib.MirageConfig, bundle.config['dit'])
    )
    self._features = LogMel()

  @property
  def size(self) -> int:
    """Rows and columns of a frame."""
    return self._bundle.config['data']['size']

  @property
  def window_frames(self) -> int:
    """Frames of one window."""
    return self._bundle.config['data']['num_chunks'] * CHUNK

  def num_windows(self, num_frames: int) -> int:
    """Windows it takes to make so many frames."""
    return -(-num_frames // self.window_frames)

  def __call__(
    self,
    wave: Float[np.ndarray, 'S'],
    image: UInt8[np.ndarray, 'Hp Wp 3'] | None = None,
    text: str = '',
    settings: Settings = Settings(),
    progress: Callable[[], None] = lambda: None,
  ) -> UInt8[np.ndarray, 'N Hp Wp 3']:
    """Frames at 25 per second, as long as the wave (16 kHz, mono).

    Args:
      wave: the sound; the last frame is the one in which it ends.
      image: the face to animate, of this bundle's size; None leaves the
        appearance to the text and the voice.
      text: a caption; '' for none.
      settings: how to sample.
      progress: called after every Euler step.

    Raises:
      UserError: the wave is empty, or the image has another size.
    """
    num_frames = -(-len(wave) * data.FPS // RATE)
    if not num_frames:
      raise UserError('the audio has no samples: nothing to speak')
    windows = list(self._windows(wave, num_frames, image, text, settings, progress))
    return self.decode(np.concatenate(windows))[:num_frames]

  def decode(
    self, latents: Float[np.ndarray, 'F Y X C']
  ) -> UInt8[np.ndarray, 'N Hp Wp 3']:
    """Frames of whole chunks of latents."""
    b = self._bundle
    return latents_lib.decode_video(self._vae, b.vae, b.stats, latents)

  def encode(
    self, frames: UInt8[np.ndarray, 'N Hp Wp 3']
  ) -> Float[np.ndarray, 'F Y X C']:
    """Latents of whole chunks of frames."""
    b = self._bundle
    return latents_lib.encode_video(self._vae, b.vae, b.stats, frames)

  def _windows(
    self, wave, num_frames, image, text, settings, progress
  ) -> Iterator[np.ndarray]:
    count = self.num_windows(num_frames)
    tokens = self._features(wave, count * self.window_frames)
    keys = jax.random.split(jax.random.key(settings.seed), count)
    anchor, past = self._anchor(image), None
    for key, audio in zip(keys, np.split(tokens, count), strict=True):
      cond = self._cond(audio, text, anchor, past)
      latents = self._sample(key, cond, settings, progress)
      past = latents
      if anchor is None:  # Whoever appeared stays for the rest.
        anchor = self._anchor(self.decode(latents)[0])
      yield latents

  def _anchor(self, image):
    if image is None:
      return None
    if image.shape != (self.size, self.size, 3):
      raise UserError(
        f'the image is {image.shape[1]} x {image.shape[0]}, the model makes '
        f'{self.size} x {self.size}: crop the face to that'
      )
    b = self._bundle
    return latents_lib.encode_image(self._vae, b.vae, b.stats, image)[0]

  def _cond(self, audio, text, anchor, past):
    window = self._bundle.config['data']
    grid = self.size // self._vae.cfg.space_factor
    shape = (1 + window['past'], grid, grid, self._vae.cfg.latent_channels)
    reference = np.zeros(shape, np.float32)
    mask = np.zeros(shape[0], bool)
    if anchor is not None:
      reference[0], mask[0] = anchor, True
    if past is not None and window['past']:
      reference[1:], mask[1:] = past[-window['past'] :], True
    ids, text_mask = text_lib.byte_ids(text, window['text_length'])
    cond = dict(
      reference=reference,
      reference_time=data.reference_times(IMAGE_SECONDS, window['past']),
      reference_mask=mask,
      audio=audio,
      audio_mask=np.ones(len(audio), bool),
      text=ids,
      text_mask=text_mask,
    )
    return {k: jnp.asarray(v)[None] for k, v in cond.items()}

  def _sample(self, key, cond, settings, progress):
    frames = self.window_frames // CHUNK * self._vae.cfg.num_latents(CHUNK)
    noise = jax.random.normal(key, (1, frames, *cond['reference'].shape[2:]))
    sigmas = flow.linear_quadratic(settings.steps)
    x = noise
    for sigma, next_sigma in zip(sigmas[:-1], sigmas[1:], strict=True):
      x = _step(
        self._model,
        settings.guidance,
        self._bundle.dit,
        cond,
        noise,
        x,
        sigma,
        next_sigma,
      ).block_until_ready()
      progress()
    return np.asarray(x[0])
