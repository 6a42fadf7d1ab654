"""Frozen dataclasses for the model and its objective, built at the border."""

from collections.abc import Mapping
import dataclasses
import difflib
import types
import typing
from typing import Any, Literal, TypeVar

T = TypeVar('T')
DROPS = ('drop_text', 'drop_audio', 'drop_reference', 'drop_extra', 'drop_all')


@dataclasses.dataclass(frozen=True)
class StreamConfig:
  """One modality's token stream.

  Attributes:
    width: Size of its residual stream.
    mlp_dim: Hidden size of its SwiGLU MLP. 0 for audio under
      `audio_fusion='cross'`, where audio has no MLP.
    in_dim: Features of one input token: text channels (or the size of the id
      embedding), audio channels. Unused (0) for video.
    rope: Whether the stream's queries and keys are rotated.
    stem: Frames on either side of its own that two convolutions over time bring
      into a token of audio or of a further stream, for features without any
      context, as of log-mels. 0 is none, as in the paper: its wav2vec has it.
    name: Of a further stream, see `MirageConfig.extra`; '' else.
  """

  width: int
  mlp_dim: int
  in_dim: int = 0
  rope: bool = True
  stem: int = 0
  name: str = ''


@dataclasses.dataclass(frozen=True)
class MirageConfig:
  """Shape and switches of the transformer.

  Attributes:
    depth: Number of blocks; the last updates only the video stream.
    num_heads: Attention heads, shared by all streams.
    head_dim: Size of a head; even, since RoPE turns pairs.
    video: The stream of target and reference-image tokens.
    text: The text stream, or None for a model without text.
    audio: The audio stream, or None for a silent model.
    extra: Further streams of one token per video frame, each with a name: a
      pose, a gaze. In all else they are as audio in joint attention.
    latent_channels: C of the video latents.
    patch_size: Rows and columns of latents in one token.
    text_vocab: 0 for float text features; else text is integer ids below it.
    text_pool_heads: Heads of the pooling of text into the condition vector.
    audio_fusion: 'joint' self-attention with all streams, or 'cross'
      attention from video tokens to audio tokens.
    audio_condition: What modulates audio: the 'timestep' alone, or the 'joint'
      text-and-timestep vector.
    prediction: What the last layer gives: the 'velocity', as in Mochi, or the
      clean 'data', from which the velocity follows ("Back to Basics", arXiv
      2511.13720): noise need not pass through the network, so that a patch may
      have more numbers than a token.
    time_alignment: Strength at the start of a learned bias by which video
      tokens attend to audio tokens of the same time; 0 is none, as in Mochi.
    reference_sigma_zero: Modulate reference tokens as clean (sigma = 0); False
      gives them the modulation of the noisy tokens.
    rope_area: Rows x columns that spatial positions are rescaled to. Mochi has
      192 * 192; from scratch, the number of patches in a frame makes
      neighbours one unit apart, which the frequencies' init expects.
    remat: What the backward pass recomputes in each block: 'none' keeps all,
      'dots' keeps the outputs of linear maps and of attention, 'attention' only
      the latter, 'full' only block inputs. Attention tells what its gradient
      needs, the output and a number per query, if it is 'recompute', 'tpu' or
      'gpu'; kept, its forward pass does not run again.
    attention: Implementation, see `ops.attention`.
    context: How tokens on different devices meet: 'xla' leaves it to XLA, which
      cannot split kernels; 'ulysses' trades tokens for heads by an all-to-all,
      'ring' passes keys and values round, 'both' does so among groups of
      'ulysses'. See `ops.attention.parallel`.
    ring: Devices in a ring, for 'both'; the mesh's context axis over it is how
      many trade heads.
    dtype: Compute dtype; parameters, norms, softmax and modulation stay
      float32.
  """

  depth: int
  num_heads: int
  head_dim: int
  video: StreamConfig
  text: StreamConfig | None = None
  audio: StreamConfig | None = None
  extra: tuple[StreamConfig, ...] = ()
  latent_channels: int = 12
  patch_size: int = 2
  text_vocab: int = 0
  text_pool_heads: int = 8
  audio_fusion: Literal['joint', 'cross'] = 'joint'
  audio_condition: Literal['timestep', 'joint'] = 'timestep'
  prediction: Literal['velocity', 'data'] = 'velocity'
  time_alignment: float = 0.0
  reference_sigma_zero: bool = True
  rope_area: float = 192.0 * 192.0
  remat: Literal['none', 'dots', 'attention', 'full'] = 'none'
  attention: Literal[
    'reference',
    'recompute',
    'dot_product',
    'tpu',
    'tpu_interpret',
    'gpu',
    'gpu_interpret',
    'cudnn',
    'splash',
  ] = 'reference'
  context: Literal['xla', 'ulysses', 'ring', 'both'] = 'xla'
  ring: int = 2
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    _check_choices(self)
    if self.depth < 1:
      raise ValueError(f'depth must be at least 1, got {self.depth}.')
    if self.head_dim % 2:
      raise ValueError(f'head_dim must be even for RoPE, got {self.head_dim}.')
    self._check_extra()
    for name, stream in self.streams().items():
      if name != 'video' and stream.in_dim < 1:
        raise ValueError(
          f'{name}.in_dim must be the features of one {name} token.'
        )
      if stream.stem < 0 or stream.stem % 2:
        raise ValueError(
          f'{name}.stem must be even, half for each convolution, got '
          f'{stream.stem}.'
        )
      if stream.stem and name not in self.frame_streams():
        raise ValueError(f'{name}.stem must be 0: its tokens are no frames.')
    if self.text is None and self.text_vocab:
      raise ValueError('text_vocab is set, but the model has no text stream.')
    if self.text is not None and self.text.in_dim % self.text_pool_heads:
      raise ValueError(
        f'text.in_dim {self.text.in_dim} must be a multiple of '
        f'text_pool_heads {self.text_pool_heads}.'
      )
    cross = self.audio is not None and self.audio_fusion == 'cross'
    if cross and self.audio.mlp_dim:
      raise ValueError(
        "audio.mlp_dim must be 0 with audio_fusion='cross': audio tokens are "
        'only attended to there. Spend the parameters on widths.'
      )

  def _check_extra(self):
    names = [stream.name for stream in self.extra]
    known = ('', 'video', 'text', 'audio', 'reference')
    if len({*names, *known}) < len(names) + len(known):
      raise ValueError(
        f'streams of extra need names of their own, got {names}.'
      )
    if wrong := [n for n in names if not n.isidentifier() or '_' in n]:
      raise ValueError(f'extra: {wrong} must be plain words.')

  def streams(self) -> dict[str, StreamConfig]:
    """All streams that the model has, by name."""
    named = {name: getattr(self, name) for name in ('video', 'text', 'audio')}
    named |= {stream.name: stream for stream in self.extra}
    return {name: cfg for name, cfg in named.items() if cfg is not None}

  def frame_streams(self) -> dict[str, StreamConfig]:
    """Those of one token per video frame: audio and further ones."""
    others = ('video', 'text')
    return {n: cfg for n, cfg in self.streams().items() if n not in others}


@dataclasses.dataclass(frozen=True)
class FlowConfig:
  """The rectified-flow objective.

  Attributes:
    schedule: How a training noise level is drawn, see `flow.sample_sigma`.
    num_steps: Steps of the linear-quadratic table.
    threshold_noise: Noise removed by its linear half.
    jitter: Draw uniformly inside the table's step instead of at its start.
    logit_mean: Mean of the logit-normal draw.
    logit_std: Standard deviation of the logit-normal draw.
    full_weight_from: Below this noise level a sample counts less, by the square
      of its share: its error in the data counts as if at this level. Else a
      model that predicts data learns little but details of low noise (compare
      min-SNR, arXiv 2303.09556). 0 counts all alike.
    motion_weight: How much more a place counts that moves: its weight is
      1 + motion_weight * (its deviation over the window's time / the mean), to
      a mean of 1. Lips are a few per cent of what a latent holds, and heads
      turn as no sound tells. Held-out losses are never weighted.
    heard_weight: The same by how much the sound changes what is predicted there,
      squared; one more run of the network a step, without gradients. Lips are a
      third of what moves but most of what can be heard.
    drop_text: Probability that a sample loses its text.
    drop_audio: Probability that a sample loses its audio.
    drop_reference: Probability that a sample loses its reference tokens.
    drop_extra: Probability that a sample loses a further stream, each on its
      own.
    drop_all: Probability that a sample loses all of them together.
  """

  schedule: Literal['linear_quadratic', 'uniform', 'logit_normal'] = (
    'linear_quadratic'
  )
  num_steps: int = 64
  threshold_noise: float = 0.025
  jitter: bool = True
  logit_mean: float = 0.0
  logit_std: float = 1.0
  full_weight_from: float = 0.0
  motion_weight: float = 0.0
  heard_weight: float = 0.0
  drop_text: float = 0.1
  drop_audio: float = 0.1
  drop_reference: float = 0.1
  drop_extra: float = 0.1
  drop_all: float = 0.1

  def __post_init__(self):
    _check_choices(self)
    if self.num_steps < 2:
      raise ValueError(f'num_steps must be at least 2, got {self.num_steps}.')
    for name in DROPS:
      if not 0.0 <= getattr(self, name) <= 1.0:
        raise ValueError(f'{name} must be a probability.')


def build(cls: type[T], mapping: Mapping[str, Any]) -> T:
  """Builds a frozen dataclass from a ConfigDict-like mapping, strictly.

  Nested mappings become nested dataclasses; an absent key keeps its default.

  Raises:
    ValueError: A key is unknown (names the nearest valid one), is missing, or
      the values do not fit together.
  """
  hints = typing.get_type_hints(cls)
  names = [field.name for field in dataclasses.fields(cls)]
  values = {}
  for key, value in mapping.items():
    if key not in names:
      near = difflib.get_close_matches(key, names, n=1, cutoff=0.0)[0]
      raise ValueError(
        f'{cls.__name__} has no key {key!r}; did you mean {near!r}?'
      )
    values[key] = _nested(hints[key], value)
  for field in dataclasses.fields(cls):
    defaults = field.default, field.default_factory
    needed = all(x is dataclasses.MISSING for x in defaults)
    if needed and field.name not in values:
      raise ValueError(f'{cls.__name__} needs the key {field.name!r}.')
  return cls(**values)


def _nested(hint: Any, value: Any) -> Any:
  options = typing.get_args(hint) if isinstance(hint, types.UnionType) else ()
  for option in options or (hint,):
    if dataclasses.is_dataclass(option) and hasattr(value, 'items'):
      return build(option, value)
    if typing.get_origin(option) is tuple:
      inner = typing.get_args(option)[0]
      return tuple(_nested(inner, item) for item in value)  # JSON has lists.
  return value


def _check_choices(cfg: Any):
  """Raises ValueError if a field's value is not one of its Literal's."""
  for name, hint in typing.get_type_hints(type(cfg)).items():
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is Literal and getattr(cfg, name) not in choices:
      raise ValueError(
        f'{name} must be one of {choices}, got {getattr(cfg, name)!r}.'
      )
