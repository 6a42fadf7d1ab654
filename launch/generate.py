"""Sound to frames with a bundle of weights, window after window.

Every window has as many chunks as in training. The first starts from nothing
but its conditions; each further one also sees the last latents before it, as
clean reference tokens, and goes on from them. The last ends where the sound
does: the chunks that it shares with the one before are kept as they are.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8
import numpy as np

from launch.bundle import Bundle
from launch.errors import UserError
from mirage_jax import (
  cache,
  config as config_lib,
  data,
  flow,
  latents as latents_lib,
  quantise,
  sampler,
  solvers,
  text as text_lib,
)
from mirage_jax.audio import RATE, LogMel
from mirage_jax.dit import Mirage
from mirage_jax.guidance import Guidance
from mirage_jax.vae import CHUNK, Vae, VaeConfig

# A still image stands one second before the window: in training it is a frame
# from outside of it, most often about as far away.
IMAGE_SECONDS = -1.0

# What the binaries sample with unless told otherwise: of 4 steps at weight 2 and
# 8 at weights 2 and 3, these gave the shipped model the best lips and a human
# rate of blinks.
STEPS = 8
AUDIO_CFG = 3.0

Stage = Callable[[str], contextlib.AbstractContextManager]


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to sample.

  Attributes:
    steps: Steps a window, on the linear-quadratic schedule.
    guidance: Weights of the conditions; 1 asks for no guidance.
    seed: Of the noise.
    solver: What takes the steps, see `mirage_jax.solvers`.
    negative_text: Stands where guidance leaves the text out; '' is none.
    caching: What one step takes over from another.
  """

  steps: int = STEPS
  guidance: Guidance = dataclasses.field(default_factory=Guidance)
  seed: int = 0
  solver: str = 'euler'
  negative_text: str = ''
  caching: cache.Caching = cache.OFF

  def __post_init__(self):
    if self.steps < 2:
      raise UserError(f'--steps={self.steps}: at least 2 are needed')
    if self.solver not in solvers.NAMES:
      raise UserError(
        f'--solver={self.solver}: there is no such solver; give one of '
        f'{", ".join(solvers.NAMES)}'
      )
    if self.caching and solvers.get(self.solver).runs > 1:
      raise UserError(
        f'--cache goes with solvers that run the network once a step, and '
        f'{self.solver} does not; leave one of them out'
      )
    weights = [self.guidance.weight(name).value for name in ('text', 'joint')]
    if self.negative_text and weights == [1, 1]:
      raise UserError(
        '--negative_text: has no effect without guidance by text; add '
        '--text_cfg=4'
      )


def num_frames(num_samples: int) -> int:
  """Video frames that so many samples at 16 kHz last, the last one begun."""
  return -(-num_samples * data.FPS // RATE)


def window_starts(num_chunks: int, size: int) -> list[int]:
  """First chunks of windows of `size` that cover so many; no window ends late.

  A model has hardly seen a window of which half is the silence after the end.
  """
  last = max(num_chunks - size, 0)
  return [*range(0, last, size), last]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(model, how, params, cond, noise, known, table, state, *now):
  guidance, solver, caching = how
  step = sampler.make_step(
    cache.Bound(model, params),
    cond,
    noise,
    guidance,
    *known,
    solver=solver,
    sigmas=table,
    caching=caching,
  )
  return step(state, *now)


class Generator:
  """A bundle ready to sample; what it compiles is kept for the next call.

  Args:
    bundle: the weights.
    name: what messages call them, as a path.
    quantised: 'none', or a scheme of `mirage_jax.quantise`.

  Raises:
    UserError: the bundle has no transformer, or not one for speech; or its
      matmuls cannot be quantised so.
  """

  def __init__(
    self,
    bundle: Bundle,
    name: str = 'the checkpoint',
    quantised: str = quantise.NONE,
  ):
    if bundle.dit is None:
      raise UserError(
        f'{name}: holds a VAE only; join it to a transformer with launch.export'
      )
    try:
      vae = config_lib.build(VaeConfig, bundle.config['vae'])
      model = config_lib.build(config_lib.MirageConfig, bundle.config['dit'])
    except ValueError as error:
      raise UserError(
        f'{name}: its config is of another version ({error}); export it again'
      ) from error
    if model.audio is None or model.audio.in_dim != LogMel.dim:
      raise UserError(
        f'{name}: does not take {LogMel.dim} log-mel features of sound; give '
        'a checkpoint that was trained on them'
      )
    self._bundle = bundle
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
    self._features = LogMel()

  @property
  def size(self) -> int:
    """Rows and columns of a frame."""
    return self._bundle.config['data']['size']

  @property
  def window_frames(self) -> int:
    """Frames of one window."""
    return self._bundle.config['data']['num_chunks'] * CHUNK

  def num_windows(self, num_samples: int) -> int:
    """Windows it takes for so many samples of sound."""
    return len(self._starts(num_samples))

  def _starts(self, num_samples):
    chunks = -(-num_frames(num_samples) // CHUNK)
    return window_starts(chunks, self.window_frames // CHUNK) if chunks else []

  def __call__(
    self,
    wave: Float[np.ndarray, 'S'],
    image: UInt8[np.ndarray, 'Hp Wp 3'] | None = None,
    text: str = '',
    settings: Settings = Settings(),
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
    settings: Settings = Settings(),
    progress: Callable[[], None] = lambda: None,
    stage: Stage = contextlib.nullcontext,
  ) -> Iterator[UInt8[np.ndarray, 'N Hp Wp 3']]:
    """Frames at 25 per second, as long as the wave, a window at a time.

    The same arguments give the same bytes.

    Args:
      wave: the sound, 16 kHz mono; the last frame is the one in which it ends.
      image: the face to animate, of this bundle's size; None leaves the
        appearance to the text and the voice.
      text: a caption of up to `text_length` bytes; '' for none.
      settings: how to sample.
      progress: called after every step.
      stage: entered with 'sample' and 'decode' around each.

    Raises:
      UserError: the wave is empty, the image has another size, or the model
        takes no text or not so much. At once, before the first window.
    """
    starts = self._starts(len(wave))
    if not starts:
      raise UserError('the audio has no samples: nothing to speak')
    if image is not None and image.shape != (self.size, self.size, 3):
      raise UserError(
        f'the image is {image.shape[1]} x {image.shape[0]}, the model makes '
        f'{self.size} x {self.size}: crop the face to that'
      )
    self._check_text('--text', text)
    self._check(settings)
    return self._windows(wave, starts, image, text, settings, progress, stage)

  @property
  def text_length(self) -> int:
    """Bytes of text that the model reads; 0 if it takes none."""
    if not self._model.cfg.text_vocab:
      return 0
    return self._bundle.config['data']['text_length']

  def _check_text(self, flag, text):
    if text and not self.text_length:
      raise UserError(f'{flag}: this checkpoint takes no text; leave it out')
    if (length := len(text.encode())) > self.text_length:
      raise UserError(
        f'{flag}: has {length} bytes, this checkpoint reads {self.text_length}; '
        'shorten it'
      )

  def _check(self, settings):
    self._check_text('--negative_text', settings.negative_text)
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
    return latents_lib.encode_video(self._vae, b.vae, b.stats, frames)

  def decode(
    self, latents: Float[np.ndarray, 'F Y X C']
  ) -> UInt8[np.ndarray, 'N Hp Wp 3']:
    """Frames of whole chunks of latents."""
    b = self._bundle
    return latents_lib.decode_video(self._vae, b.vae, b.stats, latents)

  def _windows(
    self, wave, starts, image, text, settings, progress, stage
  ) -> Iterator[np.ndarray]:
    left, size = num_frames(len(wave)), self.window_frames
    tokens = self._features(wave, starts[-1] * CHUNK + size)
    root, anchor = jax.random.key(settings.seed), None
    chunk, recent = self._vae.cfg.num_latents(CHUNK), Recent(self._memory)
    for index, start in enumerate(starts):
      audio = tokens[start * CHUNK :][:size]
      with stage('sample'):
        if image is not None and anchor is None:
          anchor = self._encode_image(image)
        key = jax.random.fold_in(root, index)
        past, known = recent.split(start * chunk)
        cond = self._cond(audio, text, anchor, past)
        cond |= self._negative(settings.negative_text)
        window = self._sample(key, cond, known, settings, progress)
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
    window = self._bundle.config['data']
    chunk = self._vae.cfg.num_latents(CHUNK)
    return window['num_chunks'] * chunk + window['past']

  def _encode_image(self, image):
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
    if past is not None and window['past'] and len(past):
      reference[1:], mask[1:] = past[-window['past'] :], True
    cond = dict(
      reference=reference,
      reference_time=data.reference_times(IMAGE_SECONDS, window['past']),
      reference_mask=mask,
      audio=audio,
      audio_mask=np.ones(len(audio), bool),
    )
    if self._model.cfg.text_vocab:
      length = window['text_length']
      cond['text'], cond['text_mask'] = text_lib.byte_ids(text, length)
    return {k: jnp.asarray(v)[None] for k, v in cond.items()}

  def _negative(self, text):
    if not text:
      return {}
    length = self._bundle.config['data']['text_length']
    ids, mask = text_lib.byte_ids(text, length)
    return {
      'negative_text': jnp.asarray(ids)[None],
      'negative_text_mask': jnp.asarray(mask)[None],
    }

  def _sample(self, key, cond, known, settings, progress):
    frames = self.window_frames // CHUNK * self._vae.cfg.num_latents(CHUNK)
    noise = jax.random.normal(key, (1, frames, *cond['reference'].shape[2:]))
    kept = ()
    if len(known):
      fixed = np.zeros(noise.shape, np.float32)
      fixed[0, : len(known)] = known
      kept = (jnp.asarray(fixed), jnp.arange(frames)[None] < len(known))
    sigmas = flow.linear_quadratic(settings.steps)
    # Not always given: its length, so the number of steps, is compiled in.
    table = sigmas if settings.guidance.counts_steps else None
    how = (settings.guidance, settings.solver, settings.caching)
    bound = cache.Bound(self._model, self._params)
    state = sampler.start(bound, cond, noise, *how)
    steps = [sigmas[:-1], sigmas[1:]]
    if settings.caching:
      plan = cache.plan(settings.caching, sigmas, settings.guidance)
      steps.append([cache.Fresh(*now) for now in zip(*plan, strict=True)])
    for now in zip(*steps, strict=True):
      state = _step(
        self._model,
        how,
        self._params,
        cond,
        noise,
        kept,
        table,
        state,
        *now,
      )
      jax.block_until_ready(state)
      progress()
    return np.asarray(state.x[0])


class Recent:
  """The last latents of a video that grows: its length costs no memory."""

  def __init__(self, size: int):
    self._size, self._end, self._kept = size, 0, None

  def add(self, latents: Float[np.ndarray, 'F Y X C']) -> None:
    """Goes on with these; of all so far, the last `size` are kept."""
    self._end += len(latents)
    parts = [latents] if self._kept is None else [self._kept, latents]
    self._kept = np.concatenate(parts)[-self._size :]

  def split(self, at: int) -> tuple[np.ndarray | None, np.ndarray | tuple]:
    """Those kept from before number `at`, [F Y X C], and those from it on."""
    if self._kept is None:
      return None, ()
    before = at - self._end + len(self._kept)
    return self._kept[:before], self._kept[before:]
