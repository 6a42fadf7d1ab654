"""The toy experiment's config, for --config and for tests in this process."""

import json

import ml_collections

from configs import args


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  parsed = args.parse(arg, ('toy',), delay=0.0, batch_size=8)
  return ml_collections.ConfigDict(
    dict(
      experiment='tests.launch.toy_experiment',
      seed=0,
      num_steps=12,
      batch_size=parsed.batch_size,
      log_every=1,
      save_every=3,
      eval_every=0,
      eval_batches=2,
      keep=2,
      keep_every=0,
      mesh=dict(data=-1, fsdp=1, context=1, tensor=1),
      toy=dict(
        learning_rate=1e-2,
        break_at=-1,
        bad_at=-1,
        delay=parsed.delay,
        repeats=ml_collections.config_dict.placeholder(int),
      ),
    )
  )


def plain(**overrides) -> dict:
  """What launch.train makes of the config; `a__b=1` overrides config.a.b."""
  config = json.loads(get_config().to_json())
  for path, value in overrides.items():
    *parents, key = path.split('__')
    node = config
    for parent in parents:
      node = node[parent]
    node[key] = value
  return config
