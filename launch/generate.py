"""Sound to frames with a bundle of weights, window after window.

Every window has as many chunks as in training. The first starts from nothing
but its conditions; each further one also sees the last latents before it, as
clean reference tokens, and goes on from them. The last ends where the sound
does. Chunks that a window shares with the one before are kept as they are, and
keep the noise that they came from; more of that in `settings.Joints`.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses

from absl import logging
import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8
import numpy as np

from launch.bundle import Bundle
from launch.conditions import Conditions
from launch.draw import draw
from launch.errors import UserError
from launch.settings import PLAIN, USUAL, Settings, check_distilled
from launch.windows import Recent, num_frames, window_starts
from mirage_jax import (
  config as config_lib,
  latents as latents_lib,
  quantise,
  rope,
)
from mirage_jax.dit import Mirage
from mirage_jax.vae import CHUNK, Vae, VaeConfig

# A still image stands one second before the window: in training it is a frame
# from outside of it, most often about as far away.
IMAGE_SECONDS = -1.0

Stage = Callable[[str], contextlib.AbstractContextManager]


class Generator:
  """A bundle ready to sample; what it compiles is kept for the next call.

  Args:
    bundle: the weights.
    name: what messages call them, as a path.
    quantised: 'none', or a scheme of `mirage_jax.quantise`.
    run: calls what is compiled; see `ahead.Programs`.

  Raises:
    UserError: the bundle has no transformer, or not one for speech; the
      encoder that it hears through is not there; or its matmuls cannot be
      quantised so.
  """

  def __init__(
    self,
    bundle: Bundle,
    name: str = 'the checkpoint',
    quantised: str = quantise.NONE,
    run: latents_lib.Run = latents_lib.call,
  ):
    if bundle.dit is None:
      raise UserError(
        f'{name}: holds a VAE only; join it to a transformer with launch.export'
      )
    try:
      vae = config_lib.build(VaeConfig, bundle.config['vae'])
      model = config_lib.build(config_lib.MirageConfig, bundle.config['dit'])
      self._conditions = Conditions(model, bundle.config, name)
    except ValueError as error:
      raise UserError(
        f'{name}: its config is of another version ({error}); export it again'
      ) from error
    self._bundle, self._run = bundle, run
    self._one_by_one = False  # Whether all branches at once are too large.
    self._vae, self._model = Vae(vae), Mirage(model)
    # Once: as numpy arrays they would go to the device at every step.
    self._params = jax.tree.map(jnp.asarray, bundle.dit)
    self.quantised = quantised
    if quantised != quantise.NONE:
      try:
        self._model, self._params = quantise.quantise(
          self._model, self._params, quantised
        )
      except (ImportError, ValueError) as error:
        raise UserError(f'--quantise={quantised}: {error}') from error
    # A distilled transformer's noise levels, or None.
    self._sigmas = bundle.config.get('sigmas')

  @property
  def size(self) -> int:
    """Rows and columns of a frame."""
    return self._bundle.config['data']['size']

  @property
  def num_bytes(self) -> int:
    """Memory that the transformer's weights take."""
    return quantise.num_bytes(self._params)

  @property
  def window_frames(self) -> int:
    """Frames of one window."""
    return self._num_chunks * CHUNK

  @property
  def own_steps(self) -> int:
    """Steps a window that a distilled model takes; 0 for any other."""
    return len(self._sigmas) - 1 if self._sigmas else 0

  @property
  def usual(self) -> Settings:
    """How to sample unless told otherwise."""
    return Settings(self.own_steps) if self.own_steps else USUAL

  def num_windows(self, num_samples: int, overlap: int = 0) -> int:
    """Windows it takes for so many samples of sound, see `Joints`."""
    return len(self._starts(num_samples, overlap))

  def _starts(self, num_samples, overlap):
    chunks, size = -(-num_frames(num_samples) // CHUNK), self._num_chunks
    if overlap >= size:
      raise UserError(
        f'--overlap={overlap}: a window of this checkpoint has {size} s, of '
        f'which it can share {size - 1}'
      )
    return window_starts(chunks, size, overlap) if chunks else []

  @property
  def _num_chunks(self):
    return self._bundle.config['data']['num_chunks']

  def __call__(
    self,
    wave: Float[np.ndarray, 'S'],
    image: UInt8[np.ndarray, 'Hp Wp 3'] | None = None,
    text: str = '',
    settings: Settings = PLAIN,
    progress: Callable[[], None] = lambda: None,
  ) -> UInt8[np.ndarray, 'N Hp Wp 3']:
    """All of `windows` at once."""
    parts = self.windows(wave, image, text, settings, progress)
    return np.concatenate(list(parts))

  def windows(
    self,
    wave: Float[np.ndarray, 'S'],
    image: UInt8[np.ndarray, 'Hp Wp 3'] | None = None,
    text: str = '',
    settings: Settings = PLAIN,
    progress: Callable[[], None] = lambda: None,
    stage: Stage = contextlib.nullcontext,
  ) -> Iterator[UInt8[np.ndarray, 'N Hp Wp 3']]:
    """Frames at 25 per second, as long as the wave, a window at a time.

    The same arguments give the same bytes.

    Args:
      wave: the sound, 16 kHz mono; the last frame is the one in which it ends.
      image: the face to animate, of this bundle's size; None leaves the
        appearance to the text and the voice.
      text: a caption, of up to `text_length` bytes, or of the tokens of a text
        encoder; '' for none.
      settings: how to sample.
      progress: called after every step.
      stage: entered with 'encode' around what encoders make of the sound and
        the texts, then with 'sample' and 'decode' around each window's.

    Raises:
      UserError: the wave is empty, the image has another size, the model takes
        no text or not so much, or reads through an encoder that is not there,
        or is distilled and takes other steps, or windows are to share too much.
        At once, before the first window.
    """
    starts = self._starts(len(wave), settings.joints.overlap)
    if not starts:
      raise UserError('the audio has no samples: nothing to speak')
    if image is not None and image.shape != (self.size, self.size, 3):
      raise UserError(
        f'the image is {image.shape[1]} x {image.shape[0]}, the model makes '
        f'{self.size} x {self.size}: crop the face to that'
      )
    self.check(text, settings)
    return self._windows(wave, starts, image, text, settings, progress, stage)

  @property
  def text_length(self) -> int:
    """Bytes of text that the model reads; see `Conditions`."""
    return self._conditions.text_length

  def check(self, text: str, settings: Settings) -> None:
    """UserError, naming the flag, for what this model cannot be asked for."""
    self._starts(1, settings.joints.overlap)
    self._conditions.check_text('--text', text)
    self._conditions.check_text('--negative_text', settings.negative_text)
    if self.own_steps:
      check_distilled(settings, self.own_steps)
    depth = self._model.cfg.depth
    for block in settings.guidance.skip_blocks:
      if not 0 <= block < depth:
        raise UserError(
          f'--skip_blocks: there is no block {block}; this checkpoint has 0 to '
          f'{depth - 1}'
        )

  def encode(
    self, frames: UInt8[np.ndarray, 'N Hp Wp 3']
  ) -> Float[np.ndarray, 'F Y X C']:
    """Latents of whole chunks of frames."""
    b = self._bundle
    return latents_lib.encode_video(
      self._vae, b.vae, b.stats, frames, self._run
    )

  def decode(
    self, latents: Float[np.ndarray, 'F Y X C']
  ) -> UInt8[np.ndarray, 'N Hp Wp 3']:
    """Frames of whole chunks of latents."""
    b = self._bundle
    return latents_lib.decode_video(
      self._vae, b.vae, b.stats, latents, self._run
    )

  def _windows(
    self, wave, starts, image, text, settings, progress, stage
  ) -> Iterator[np.ndarray]:
    left, size = num_frames(len(wave)), self.window_frames
    with stage('encode'):
      tokens = self._conditions.sound(wave, starts[-1] * CHUNK + size)
      self._conditions.learn([text, settings.negative_text])
    joints, anchor, noise = settings.joints, None, None
    chunk, recent = self._chunk, Recent(self._memory)
    for index, start in enumerate(starts):
      audio = tokens[start * CHUNK :][:size]
      with stage('sample'):
        if index and not joints.anchor:
          anchor = None
        elif image is not None and anchor is None:
          anchor = self._encode_image(image)
        past, known = recent.split(start * chunk)
        noise = self._noise(index, start, settings, noise, len(known))
        cond = self._cond(audio, text, anchor, past)
        cond |= self._negative(settings.negative_text)
        window = self._sample(noise, cond, known, settings, progress)
        new = window[len(known) :]
        recent.add(new)
      with stage('decode'):
        frames = self.decode(new)
      image = frames[0] if image is None else image  # Whoever came stays.
      yield frames[:left]
      left -= len(frames)

  @property
  def _memory(self):
    """Latents that a window can ask for: the one before it, and its past."""
    past = self._bundle.config['data']['past']
    return self._num_chunks * self._chunk + past

  @property
  def _chunk(self):
    """Latents of a chunk."""
    return self._vae.cfg.num_latents(CHUNK)

  @property
  def _latent_size(self):
    """Rows, columns and channels."""
    grid = self.size // self._vae.cfg.space_factor
    return grid, grid, self._vae.cfg.latent_channels

  def _noise(self, index, start, settings, before, shared):
    """The noise of a window; what it shares with the last one's is that."""
    root = jax.random.key(settings.seed)
    key = jax.random.fold_in(root, 0 if settings.joints.reuse_noise else index)
    shape = (1, self._num_chunks * self._chunk, *self._latent_size)
    noise = np.array(jax.random.normal(key, shape))
    if settings.joints.reuse_noise:
      return np.roll(noise, -start * self._chunk, axis=1)
    if shared:
      noise[:, :shared] = before[:, -shared:]
    return noise

  def _encode_image(self, image):
    b = self._bundle
    return latents_lib.encode_image(
      self._vae, b.vae, b.stats, image, run=self._run
    )[0]

  def _cond(self, audio, text, anchor, past):
    count = self._bundle.config['data']['past']
    reference = np.zeros((1 + count, *self._latent_size), np.float32)
    mask = np.zeros(1 + count, bool)
    if anchor is not None:
      reference[0], mask[0] = anchor, True
    if past is not None and count and len(past):
      reference[1:], mask[1:] = past[-count:], True
    cond = dict(
      reference=reference,
      reference_time=rope.reference_times(IMAGE_SECONDS, count),
      reference_mask=mask,
      audio=audio,
      audio_mask=np.ones(len(audio), bool),
    )
    if self.text_length:
      cond['text'], cond['text_mask'] = self._conditions.text(text)
    return {k: jnp.asarray(v)[None] for k, v in cond.items()}

  def _negative(self, text):
    if not text:
      return {}
    words, mask = self._conditions.text(text)
    return {
      'negative_text': jnp.asarray(words)[None],
      'negative_text_mask': jnp.asarray(mask)[None],
    }

  def _sample(self, noise, cond, known, settings, progress):
    if self._one_by_one:
      settings = _one_by_one(settings)
    arrays = cond, jnp.asarray(noise), known
    rest = self._sigmas, progress, self._run
    try:
      return draw(self._model, self._params, *arrays, settings, *rest)
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      if settings == _one_by_one(settings):
        raise UserError(
          'a window does not fit into the memory of the device; give '
          '--quantise=int8_weights, or a larger device'
        ) from error
    # Found out once: what is too large is compiled in vain.
    self._one_by_one = True
    logging.warning(
      'the branches of guidance do not fit into memory together: they run one '
      'after the other, as with --sequential_guidance'
    )
    return self._sample(noise, cond, known, settings, progress)


def _one_by_one(settings):
  """The same, but for the memory that guidance takes."""
  guidance = dataclasses.replace(settings.guidance, sequential=True)
  branches = settings.guidance.gains.keys() - {'skip', 'rescale'}
  if not branches:
    return settings
  return dataclasses.replace(settings, guidance=guidance)
