"""How much arithmetic a step has to do: what MFU is measured against.

Model FLOPs are those of the matrix products and convolutions in one step,
forward and backward, each counted once: nothing that is computed again for want
of memory, no element-wise work, no optimizer. They are read off the step's own
trace, so they hold for any experiment.
"""

from collections.abc import Callable, Mapping
import copy
import math
from typing import Any

import jax

# With these a trace has everything once: blocks keep their activations, and
# attention is plain products, not a kernel that computes its weights again.
PLAIN = {'remat': 'none', 'attention': 'reference'}


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config with the same arithmetic, but none of it twice or in kernels."""
  config = copy.deepcopy(dict(config))
  model = config.get('model', {})
  model.update({k: v for k, v in PLAIN.items() if k in model})
  return config


def count(function: Callable, *args: Any) -> float:
  """FLOPs of all products in one call; `args` may be abstract.

  Returns NaN if there is a Pallas kernel that does not tell its own.
  """
  return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr):
  total = 0.0
  for eqn in jaxpr.eqns:
    name, params = eqn.primitive.name, eqn.params
    if name == 'dot_general':
      total += _dot(eqn)
    elif name == 'conv_general_dilated':
      total += _convolution(eqn)
    elif name == 'pallas_call':
      told = params.get('cost_estimate')
      total += told.flops if told else math.nan
    elif name == 'cond':
      total += max(_count(branch.jaxpr) for branch in params['branches'])
    else:
      inner = sum(_count(x) for x in _inner(params))
      if name == 'scan':
        inner *= params['length']
      elif name == 'shard_map':  # The shapes inside are one device's.
        inner *= math.prod(params['mesh'].shape[a] for a in _axes(params))
      total += inner
  return total


def _axes(params):
  return params.get('manual_axes', params['mesh'].axis_names)


def _inner(params):
  """The jaxprs among the parameters of an equation."""
  for value in params.values():
    for x in value if isinstance(value, tuple | list) else (value,):
      x = getattr(x, 'jaxpr', x)
      if hasattr(x, 'eqns'):
        yield x


def _dot(eqn):
  (contracted, _), _ = eqn.params['dimension_numbers']
  left = eqn.invars[0].aval.shape
  depth = math.prod(left[i] for i in contracted)
  return 2.0 * eqn.outvars[0].aval.size * depth


def _convolution(eqn):
  kernel = eqn.invars[1].aval.shape
  _, features, *space = eqn.params['dimension_numbers'].rhs_spec
  taps = math.prod(kernel[i] for i in (features, *space))
  # Zeros between the inputs, as in a gradient of a stride, are no work.
  taps /= math.prod(eqn.params['lhs_dilation'])
  return 2.0 * eqn.outvars[0].aval.size * taps
