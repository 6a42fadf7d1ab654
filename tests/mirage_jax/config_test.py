import ml_collections
import pytest

from mirage_jax import config

GOOD = {
  'depth': 2,
  'num_heads': 2,
  'head_dim': 4,
  'video': {'width': 8, 'mlp_dim': 16},
  'audio': {'width': 8, 'mlp_dim': 16, 'in_dim': 3},
}


@pytest.mark.parametrize('wrap', [dict, ml_collections.ConfigDict])
def test_nested_mappings_become_dataclasses(wrap):
  cfg = config.build(config.MirageConfig, wrap(GOOD))
  assert cfg.audio == config.StreamConfig(8, 16, in_dim=3)
  assert cfg.text is None and cfg.dtype == 'float32'
  assert hash(cfg) == hash(config.build(config.MirageConfig, wrap(GOOD)))


@pytest.mark.parametrize(
  'change, message',
  [
    ({'num_head': 3}, "no key 'num_head'; did you mean 'num_heads'"),
    ({'video': {'widht': 3}}, "StreamConfig has no key 'widht'.*'width'"),
    ({'video': {'width': 3}}, "StreamConfig needs the key 'mlp_dim'"),
    ({'head_dim': 3}, 'head_dim must be even'),
    ({'remat': 'some'}, "remat must be one of .*'some'"),
    ({'audio': {'width': 8, 'mlp_dim': 16}}, 'audio.in_dim'),
    ({'audio_fusion': 'cross'}, 'audio.mlp_dim must be 0'),
    ({'text': {'width': 8, 'mlp_dim': 8, 'in_dim': 9}}, 'text_pool_heads'),
    ({'text_vocab': 9}, 'no text stream'),
    ({'depth': 0}, 'depth'),
  ],
)
def test_bad_configs_are_refused_by_name(change, message):
  with pytest.raises(ValueError, match=message):
    config.build(config.MirageConfig, GOOD | change)


def test_flow_config_checks_its_values():
  assert config.build(config.FlowConfig, {'num_steps': 8}).num_steps == 8
  for key, value in {'schedule': 'cosine', 'drop_all': 1.5}.items():
    with pytest.raises(ValueError, match=key):
      config.build(config.FlowConfig, {key: value})
