"""Encoders' checkpoints: their sizes by the shapes of their tensors."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import linen as nn

from launch.convert_kinds import Kind, Shapes
from mirage_jax.encoders import (
  t5,
  t5_names,
  wav2vec2,
  wav2vec2_names,
  whisper,
  whisper_names,
)


def text_encoder(tensors: Mapping[str, Any], config: Mapping[str, Any]) -> Kind:
  """T5 v1.1 or UMT5 of any size."""
  shapes = Shapes(tensors)
  block = 'encoder.block.{}.layer.0.SelfAttention.{}.weight'
  bias = 'relative_attention_bias'
  table = 'shared.weight'
  if table not in shapes:
    table = 'encoder.embed_tokens.weight'
  try:
    heads = shapes(block.format(0, bias), 1)
    cfg = t5.T5Config(
      width=shapes(table, 1),
      depth=shapes.count(r'encoder\.block\.(\d+)\.'),
      num_heads=heads,
      mlp_dim=shapes('encoder.block.0.layer.1.DenseReluDense.wo.weight', 1),
      head_dim=shapes(block.format(0, 'q'), 0) // heads,
      vocab=shapes(table, 0),
      bias_in_every_block=block.format(1, bias) in shapes,
      num_buckets=shapes(block.format(0, bias), 0),
      max_distance=config.get('relative_attention_max_distance', 128),
    )
  except KeyError:
    cfg = t5.SIZES['t5_v1_1_xxl']
  about = {'t5': dataclasses.asdict(cfg)}
  return Kind(about, t5_names.places(cfg), nn.unbox(t5.abstract_params(cfg)))


def speech_encoder(
  tensors: Mapping[str, Any], config: Mapping[str, Any]
) -> Kind:
  """wav2vec 2.0, HuBERT or WavLM of any size."""
  shapes = Shapes(tensors, 'wav2vec2.', 'hubert.', 'wavlm.')
  try:
    cfg = _speech_config(shapes, config)
  except KeyError:
    cfg = wav2vec2.SIZES['wav2vec2_large']
  about = {'wav2vec2': dataclasses.asdict(cfg)}
  ours = nn.unbox(wav2vec2.abstract_params(cfg))
  return Kind(about, wav2vec2_names.places(cfg), ours)


def _speech_config(shapes, config):
  conv = 'feature_extractor.conv_layers.{}.{}'
  gate = 'encoder.layers.0.attention.rel_attn_embed.weight'
  layers = shapes.count(r'feature_extractor\.conv_layers\.(\d+)\.')
  width = shapes('encoder.layer_norm.weight', 0)
  positions = 'encoder.pos_conv_embed.conv.'
  weight = f'{positions}parametrizations.weight.original1'
  if weight not in shapes:
    weight = f'{positions}weight_v'
  wavlm = gate in shapes
  # Heads leave no trace in shapes, but in WavLM's biases.
  if wavlm:
    heads = shapes(gate, 1)
  else:
    published = {c.width: c.num_heads for c in wav2vec2.SIZES.values()}
    heads = config.get('num_attention_heads', published.get(width))
    _need('num_attention_heads', heads)
  stable = conv.format(1, 'layer_norm.weight') in shapes
  strides = config.get('conv_stride', wav2vec2.Wav2Vec2Config.strides)
  return wav2vec2.Wav2Vec2Config(
    width=width,
    depth=shapes.count(r'encoder\.layers\.(\d+)\.'),
    num_heads=heads,
    mlp_dim=shapes(
      'encoder.layers.0.feed_forward.intermediate_dense.weight', 0
    ),
    stable=stable,
    conv_bias=conv.format(0, 'conv.bias') in shapes,
    conv_dim=shapes(conv.format(0, 'conv.weight'), 0),
    kernels=tuple(
      shapes(conv.format(i, 'conv.weight'), 2) for i in range(layers)
    ),
    strides=tuple(strides),
    position_kernel=shapes(weight, 2),
    position_groups=width // shapes(weight, 1),
    num_buckets=shapes(gate, 0) if wavlm else 0,
    max_distance=config.get('max_bucket_distance', 800),
    normalize=config.get('do_normalize', stable or not wavlm),
  )


def _need(key, value):
  if value is None:
    raise ValueError(
      f'heads leave no trace in them: put config.json, with {key}, beside it'
    )


def listener(tensors: Mapping[str, Any], config: Mapping[str, Any]) -> Kind:
  """The encoder of a Whisper of any size."""
  shapes = Shapes(tensors, 'model.')
  try:
    width = shapes('encoder.conv1.weight', 0)
    published = {c.width: c.num_heads for c in whisper.SIZES.values()}
    heads = config.get('encoder_attention_heads', published.get(width))
    _need('encoder_attention_heads', heads)
    cfg = whisper.WhisperConfig(
      width=width,
      depth=shapes.count(r'encoder\.layers\.(\d+)\.'),
      num_heads=heads,
      mels=shapes('encoder.conv1.weight', 1),
      max_features=shapes('encoder.embed_positions.weight', 0),
    )
  except KeyError:
    cfg = whisper.SIZES['whisper_large']
  about = {'whisper': dataclasses.asdict(cfg)}
  ours = nn.unbox(whisper.abstract_params(cfg))
  return Kind(about, whisper_names.places(cfg), ours)
