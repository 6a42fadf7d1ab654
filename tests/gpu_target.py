"""GPUs that are not here, to compile for; and how to, in a process apart."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

# What XLA wants to know: as of openxla's own descriptions of these devices.
TARGETS = {
  'sm_80': dict(major=8, cores=108, shared=166912, name='A100-SXM4-80GB'),
  'sm_90': dict(major=9, cores=132, shared=232448, name='H100 80GB HBM3'),
}
SPEC = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 167936
  shared_memory_per_block_optin: {shared} threads_per_core_limit: 2048
  core_count: {cores} fpus_per_core: 64 memory_bandwidth: 2039040000000
  l2_cache_size: 41943040 clock_rate_ghz: 1.41 device_memory_size: 85100068864
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 thread_dim_limit_x: 1024 thread_dim_limit_y: 1024
  thread_dim_limit_z: 64 registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} feature_extension: {feature} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "NVIDIA {name}"
"""
# `compile` fails if a register would have to lie in memory.
PRELUDE = """
import json, sys
import jax
from jax import numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np

device = topologies.get_topology_desc(
  platform='cuda',
  topology_name='gpu',
  target_config=sys.argv[1],
  topology='1x1x1',
).devices[0]
mesh = Mesh(np.array([device]), ('x',))
abstract = lambda shape, dtype: jax.ShapeDtypeStruct(
  shape, dtype, sharding=NamedSharding(mesh, P())
)

def compile(fn, *args):
  with jax.set_mesh(mesh):
    return jax.jit(fn).lower(*args).compile()

"""


def run(target: str, program: str, *args: object) -> dict:
  """What a program, which has `compile` and `abstract`, prints as JSON."""
  if not importlib.util.find_spec('jax_cuda13_plugin'):
    pytest.skip("needs pip install 'jax-cuda13-plugin' 'jax-cuda13-pjrt'")
  facts = TARGETS[target]
  feature = 'ACCELERATED_FEATURES' if facts['major'] == 9 else 'NONE'
  done = subprocess.run(
    [
      *(sys.executable, '-c', PRELUDE + program),
      *(SPEC.format(feature=feature, **facts), *map(str, args)),
    ],
    env=os.environ
    | {
      'JAX_PLATFORMS': 'cpu',
      'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1',
      'JAX_ENABLE_COMPILATION_CACHE': '0',
      'XLA_FLAGS': '--xla_gpu_fail_ptx_compilation_on_register_spilling=true',
    },
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])
