"""Frozen dataclasses of the encoder, the objective and the classifiers.

Where the paper (arXiv 1906.00910) and its authors' code disagree, the choice
is a field and its default is the code, which made the published numbers:
`ObjectiveConfig.reg_weight`, `.targets`, `.clip`, `EncoderConfig.output_norm`
and `.components`. `PUBLISHED` holds the sizes.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import types
import typing
from typing import Any, Literal, TypeVar

from infomax_jax import layout

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """Shape of an encoder; `layout` turns it into layers.

  Attributes:
    image_size: Rows and columns of the input.
    ndf: Channels after the stem; each halving doubles them.
    n_rkhs: C, channels of the outputs r1, r5 and r7. At least the channels of
      the 7x7 map, since skips pad channels and cannot drop any.
    n_depth: Residual layers in a block, the first of which halves or crops.
    stem: 'residual' as for CIFAR, 'plain' as for STL10, 'strided' as for
      ImageNet, or 'auto': by the image's size.
    channels: Of the input: 3 for an image, more for a stack of frames, 1 for a
      spectrogram.
    use_bn: Batch normalisation inside residual layers, in front of the 7x7 tap
      and inside the heads. Off in all published runs: the statistics of a batch
      correlate its images and so help them to cheat.
    output_norm: Batch normalisation of r1, r5 and r7, as in the code; figure 1
      of the paper has none.
    components: k mixture components of r1 (the paper's section on mixtures,
      which the code leaves out); 0 for none.
    mixture_hidden: Hidden size of the network that makes them; 0 for n_rkhs.
    lowering: How convolutions run, see `conv.convolve`.
    remat: Recompute the inside of residual layers in the backward pass.
    unroll: Residual layers of 1x1 that one turn of the loop over depth does.
    tile: Images of which maps larger than 7x7 are made at once, one tile after
      another; 0 for all. CPUs are faster with tiles that fit their caches.
    dtype: Compute dtype; parameters, norms and outputs stay float32.
  """

  image_size: int
  ndf: int
  n_rkhs: int
  n_depth: int
  stem: Literal['auto', 'residual', 'plain', 'strided'] = 'auto'
  channels: int = 3
  use_bn: bool = False
  output_norm: bool = True
  components: int = 0
  mixture_hidden: int = 0
  lowering: Literal['auto', 'native', 'matmul'] = 'auto'
  remat: bool = False
  unroll: int = 1
  tile: int = 0
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    _check_choices(self)
    for name in ('ndf', 'n_rkhs', 'n_depth', 'channels', 'unroll'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} must be at least 1.')
    if self.tile < 0:
      raise ValueError(f'tile must be at least 0, got {self.tile}.')
    if self.tile and self.use_bn:
      raise ValueError(
        f'tile {self.tile} and use_bn exclude each other: norms inside take '
        'statistics of all images at once.'
      )
    features = self.layers[-2].inputs
    if self.n_rkhs < features:
      raise ValueError(
        f'n_rkhs {self.n_rkhs} must be at least the {features} channels of the '
        f'7x7 map; raise n_rkhs or lower ndf {self.ndf}.'
      )

  @property
  def layers(self) -> tuple[layout.Layer, ...]:
    stem = self.stem
    if stem == 'auto':
      stem = layout.usual_stem(self.image_size)
    return layout.layers(
      self.image_size, stem, self.channels, self.ndf, self.n_rkhs
    )


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
  """The contrastive objective, see `objective.infomax`.

  Attributes:
    tasks: Which pairs of maps predict each other: '1t5', '1t7' and '5t5'. The
      ablation "- multiscale" of the paper has '1t7' alone.
    clip: c of c * tanh(score / c). None for no clipping: the paper speaks of it
      for larger models only, the code always clips.
    reg_weight: Of the mean square of the unclipped scores. The paper has 4e-2,
      the code 5e-2.
    targets: 'all' positions of the other view are predicted, as in the code, or
      one 'sampled' per image, as in the paper.
    temperature: tau of the posterior over mixture components (equation 7).
    block: Sources whose scores are in memory at once, and recomputed at once in
      the backward pass.
    dtype: Of the features as they enter the scores; scores are float32.
    nce: What computes the scores against all images: 'xla', 'pallas' for TPUs
      or 'pallas_gpu' for NVIDIA GPUs (interpreted and slow, on any device:
      'pallas_interpret', 'pallas_gpu_interpret'); see `ops.nce.against_all`.
  """

  tasks: tuple[str, ...] = ('1t5', '1t7', '5t5')
  clip: float | None = 20.0
  reg_weight: float = 5e-2
  targets: Literal['all', 'sampled'] = 'all'
  temperature: float = 1.0
  block: int = 256
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  nce: Literal[
    'xla',
    'pallas',
    'pallas_interpret',
    'pallas_gpu',
    'pallas_gpu_interpret',
  ] = 'xla'

  def __post_init__(self):
    _check_choices(self)
    known = ('1t5', '1t7', '5t5')
    if not self.tasks or not set(self.tasks) <= set(known):
      raise ValueError(f'tasks must be some of {known}, got {self.tasks}.')
    for name in ('clip', 'temperature', 'block'):
      if getattr(self, name) is not None and not getattr(self, name) > 0:
        raise ValueError(f'{name} must be positive.')


@dataclasses.dataclass(frozen=True)
class HeadsConfig:
  """The classifiers on r1, see `heads.Heads`.

  Attributes:
    num_classes: Of the labels.
    hidden: Hidden size of the MLP.
    dropout: In front of the MLP's two layers.
    clip: c of c * tanh(logit / c) under the cross-entropy.
    reg_weight: Of the mean square of the logits.
    random_scale: Draw the scale of the MLP's norm from U(0, 1), as for the
      classifiers that are trained after the encoder; else 1.
  """

  num_classes: int
  hidden: int = 1024
  dropout: float = 0.2
  clip: float = 10.0
  reg_weight: float = 1e-3
  random_scale: bool = False


def build(cls: type[T], mapping: Mapping[str, Any]) -> T:
  """Builds one of these dataclasses from a ConfigDict-like mapping, strictly.

  Raises:
    ValueError: A key is unknown (names the nearest valid one), is missing, or
      the values do not fit together.
  """
  fields = {field.name: field for field in dataclasses.fields(cls)}
  values = {}
  for key, value in mapping.items():
    if key not in fields:
      near = difflib.get_close_matches(key, fields, n=1, cutoff=0.0)[0]
      raise ValueError(
        f'{cls.__name__} has no key {key!r}; did you mean {near!r}?'
      )
    values[key] = tuple(value) if isinstance(value, list) else value
  for name, field in fields.items():
    if field.default is dataclasses.MISSING and name not in values:
      raise ValueError(f'{cls.__name__} needs the key {name!r}.')
  return cls(**values)


def _check_choices(cfg):
  for name, hint in typing.get_type_hints(type(cfg)).items():
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is Literal and getattr(cfg, name) not in choices:
      raise ValueError(
        f'{name} must be one of {choices}, got {getattr(cfg, name)!r}.'
      )


# Table 2b of the paper has the 256/2048/10 that its authors confirmed for
# CIFAR; its text says 320/1280/10. For the largest model on ImageNet the paper
# prints n_rkhs 2536, which 8 * 320 channels rule out: their weights had 2560.
PUBLISHED = types.MappingProxyType(
  {
    'cifar_small': EncoderConfig(32, 128, 1024, 10),
    'cifar_large': EncoderConfig(32, 256, 2048, 10),
    'cifar_text': EncoderConfig(32, 320, 1280, 10),
    'stl10': EncoderConfig(64, 192, 1536, 8),
    'imagenet_small': EncoderConfig(128, 192, 1536, 8),
    'imagenet_medium': EncoderConfig(128, 256, 2048, 10),
    'imagenet_large': EncoderConfig(128, 320, 2560, 10),
  }
)
