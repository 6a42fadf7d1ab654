"""Mirage 10B ("Seeing Voices", arXiv 2506.08279), for pods of 256 TPU devices.

Mochi 1's shape (48 blocks, 24 heads of 128, widths 3072 and 1536, SwiGLU) with
an audio stream, 10.7B parameters: the paper gives neither the audio stream's
width nor a learning rate; these are guesses. A sample is 4 s of 720p portrait:
100 frames, latents 20 x 160 x 90 x 12, so 72,000 video tokens, 3,600 of a
reference image, 256 of T5-XXL and 100 of wav2vec 2.0. Batches of 64. Nobody has
trained this; `launch.aot` compiles its step without a TPU:

  python -m launch.aot --config configs/mirage/mirage_10b.py:v5p_256 \
      --topology v5p:8x8x4
  python -m launch.aot --config configs/mirage/mirage_10b.py:v6e_256 \
      --topology v6e:16x16
  python -m launch.aot --config configs/mirage/mirage_10b.py:tpu7x_128 \
      --topology tpu7x:4x4x8

and on such a pod `launch/pod.sh` starts

  python -m launch.train --config configs/mirage/mirage_10b.py:v5p_256,data=DATA \
      --workdir bucket/mirage_10b --coordinator=auto

`:v5p_512` is for two slices of such pods (SLICES=2), 128 samples a step; a batch
is cut into parts, whose gradients are summed, by --config.accumulate.
`,options=True` adds XLA's flags of the generation.

Modelled by launch.aot with options=True: on v5p-256 9.9 s a step, 69.8 % MFU, 27.3
of 95.7 GiB (with splash attention, all recomputed, 17.3 s and 39.9 %); on v6e-256
8.6 s, 40.2 %, 28.0 of 31.25 GiB; on tpu7x-128 6.2 s, 44.6 %, 79.7 of 94.75 GiB.
Collectives that nothing hides take 1.4, 2.9 and 3.6 % of a step.
"""

import ml_collections

from configs import args

# Parameters, moments and average are split over fsdp; a sample's tokens over
# context, since 64 samples do not fill 256 devices: there each device takes 6 of
# the 24 heads (Ulysses), which moves less than a ring would, and kernels see whole
# sequences.
PODS = {
  # 95 GB a chip.
  'v5p_256': dict(mesh=dict(data=1, fsdp=64, context=4, tensor=1)),
  # 32 GB a chip.
  'v6e_256': dict(mesh=dict(data=1, fsdp=64, context=4, tensor=1)),
  # Two slices of 256 chips, each with its own 64 samples: between them, over the
  # data centre's network, goes one sum of gradients a step.
  'v5p_512': dict(
    mesh=dict(data=2, fsdp=64, context=4, tensor=1), batch_size=128
  ),
  # 128 chips of two devices with 96 GB each.
  'tpu7x_128': dict(mesh=dict(data=1, fsdp=64, context=4, tensor=1)),
}

# On all: collectives by the SparseCores, which are idle otherwise. By default
# every gather of weights stops the TensorCores; offloaded, it runs beside them.
_OFFLOAD = {
  'xla_tpu_enable_sparse_core_collective_offload_all_gather': True,
  'xla_tpu_enable_sparse_core_collective_offload_reduce_scatter': True,
  'xla_tpu_enable_sparse_core_collective_offload_all_reduce': True,
  # Gathers over a mesh axis that lies along two or three sides of the torus.
  'xla_tpu_enable_sparse_core_collective_offload_2d_all_gather': True,
  'xla_tpu_enable_sparse_core_collective_offload_3d_all_gather': True,
  # They need the same layout of devices on both kinds of core.
  'xla_tpu_use_tc_device_shape_on_sc': True,
  # The older way to make gathers asynchronous, which would come first.
  'xla_tpu_enable_async_collective_fusion_fuse_all_gather': False,
  # So that a trace shows the offloaded gathers.
  'xla_tpu_enable_all_gather_offload_tracing': True,
}
# Ulysses' exchanges of tokens for heads, beside whatever does not need them. v5e
# refuses it: "not supported on limited ICI".
_EXCHANGE = _OFFLOAD | {'xla_tpu_enable_async_all_to_all': True}
COMPILER_OPTIONS = {
  'v5p_256': _EXCHANGE,
  'v5p_512': _EXCHANGE,
  'v6e_256': _EXCHANGE,
  'tpu7x_128': _EXCHANGE,
}


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """`mirage_10b.py:VARIANT`, a key of PODS, with `data=FOLDER`."""
  parsed = args.parse(
    arg, tuple(PODS), data='data/mirage_10b/latents', options=False
  )
  folder, pod = parsed.data, parsed.variant
  config = dict(
    experiment='mirage_jax.experiment',
    seed=0,
    num_steps=100_000,
    batch_size=64,
    accumulate=1,
    log_every=10,
    save_every=500,
    eval_every=2000,
    eval_batches=8,
    keep=3,
    keep_every=10_000,
    init_from='',
    latent_size=(160, 90),
    data=dict(
      train=f'{folder}/train',
      eval=f'{folder}/val',
      num_chunks=4,
      text_length=256,
      past=0,
      augment=0.0,
    ),
    # Its 96 GB a device hold the products of all matrices, too.
    model=model('dots' if pod == 'tpu7x_128' else 'attention'),
    flow=dict(
      schedule='linear_quadratic',
      drop_text=0.1,
      drop_audio=0.1,
      drop_reference=0.1,
      drop_all=0.1,
    ),
    optimizer=dict(
      name='adamw',
      learning_rate=1e-4,
      warmup_steps=2000,
      b2=0.99,
      weight_decay=0.01,
      ema_decay=0.9999,
    ),
  )
  config |= PODS[pod]
  if parsed.options:
    config['compiler_options'] = COMPILER_OPTIONS[pod]
  return ml_collections.ConfigDict(config)


def model(remat: str = 'attention') -> dict:
  """The transformer's shape, and what is kept for the gradient."""
  return dict(
    depth=48,
    num_heads=24,
    head_dim=128,
    video=dict(width=3072, mlp_dim=8192),
    # As in Mochi, text has no positions.
    text=dict(width=1536, mlp_dim=4096, in_dim=4096, rope=False),
    audio=dict(width=512, mlp_dim=1536, in_dim=1024),
    latent_channels=12,
    patch_size=2,
    attention='tpu',
    context='ulysses',
    # Beside a block's inputs what attention gave, which is as large: its forward
    # pass, most of a block, does not run again for the gradient.
    remat=remat,
    dtype='bfloat16',
  )
