"""Mirage on one speaker of the GRID corpus, small enough for two CPU cores.

Data: clips of a talking face, as in GRID (25 fps, 16 kHz; CC BY 4.0).

  for s in train val; do python -m launch.prepare --stage clips --input CLIPS \
      --split split.json --subset $s --out data/grid/clips/$s; done

`:vae`, the autoencoder, 4.0M parameters, 38.4 dB on held-out clips. The shipped
one took 140 minutes on two cores in five runs, each from the last by
--config.init_from: 2,000 steps with AdamW, 12 latent channels and a plain L1 on
wider crops, 1,100 with motion weights on these crops, widened to 24 channels by
rows of zeros the 2,600 with Muon that are configured here, and twice 2,400 of
the decoder alone (--config.freeze_encoder=true --config.num_steps=2400
--config.optimizer.learning_rate=1.5e-3, --config.motion_weight=20, then 30),
which took the mouth curve of reconstructions from r = 0.91 to 0.95. From scratch
these have not been run yet.

  python -m launch.train --config configs/mirage/grid.py:vae --workdir runs/vae
  python -m launch.export --workdir runs/vae --clips data/grid/clips/train \
      --out runs/vae.safetensors
  for s in train val; do python -m launch.prepare --stage latents --out \
      data/grid/latents/$s --input data/grid/clips/$s \
      --vae runs/vae.safetensors --offsets 0,5,10,15,20 \
      --reference_every 12; done

`:dit`, the transformer, 8.5M parameters, and `:cross`, the same with audio by
cross-attention at equal parameters. The shipped one comes of eight runs, each from
the last by --config.init_from, four hours in all. The first four had no
channel_weights and no heard_weight (both 0 and ()), at first no motion_weight either,
and brought the lips' r with the true curve to 0.82 on held-out clips: 1,600 steps on
windows of one second (--config.data.num_chunks=1 --config.data.past=0
--config.data.text_length=1), 4,200 on shards with --offsets 0, 1,000 at 1.2e-3 and,
when the augmentation had learned of telephones, 1,400 at 1e-3, each time the mean of
this and the run before. Then, at 1.2e-3, 1,600 steps with channel_weights (of 2,600)
and 3,000 with heard_weight, 80 minutes; of the latter's steps 1,600 and 3,000, the
former's 800 and what both began with, the mean; 900 at 8e-4 with heard_weight=16, in
whose sounds pauses were silent now and then; and the mean of both.

  python -m launch.train --config configs/mirage/grid.py:dit --workdir runs/dit
  python -m launch.export --workdir runs/dit --vae runs/vae.safetensors \
      --average runs/earlier.safetensors --out mirage_jax/assets/grid.safetensors

Longer runs lower the held-out loss but not what the lips miss: after 800 steps r is
where it is after 3,000.

On Linux GLIBC_TUNABLES=glibc.malloc.hugetlb=1 in the environment takes a fifth
off a step.
"""

import ml_collections

from configs import args

# Of the shipped autoencoder, as launch.export printed them.
CHANNEL_WEIGHTS = (0.36, 0.9, 6.29, 5.86, 0.45, 0.44, 3.67, 0.28)
CHANNEL_WEIGHTS += (0.84, 0.65, 0.73, 2.38, *(0.1,) * 12)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """`grid.py:vae` or `grid.py:dit`, with `data=FOLDER` of prepared shards."""
  parsed = args.parse(arg, ('dit', 'cross', 'vae'), data='data/grid')
  if parsed.variant == 'vae':
    return vae(f'{parsed.data}/clips')
  return dit(f'{parsed.data}/latents', parsed.variant == 'cross')


def vae(folder: str) -> ml_collections.ConfigDict:
  """The autoencoder: 96x96 faces, 1 + 6k frames to 12x12 latents."""
  return ml_collections.ConfigDict(
    dict(
      experiment='mirage_jax.vae_experiment',
      seed=0,
      num_steps=2600,
      batch_size=1,
      log_every=20,
      save_every=200,
      eval_every=300,
      eval_batches=16,
      keep=2,
      keep_every=0,
      mesh=dict(data=-1, fsdp=1, context=1, tensor=1),
      init_from='',
      kl_weight=2e-4,
      motion_weight=8.0,
      square_weight=5.0,
      freeze_encoder=False,
      data=dict(
        train=f'{folder}/train', eval=f'{folder}/val', num_frames=13, size=96
      ),
      vae=dict(
        encoder_channels=16,
        decoder_channels=16,
        multipliers=(1, 2, 4, 6),
        encoder_blocks=(0, 0, 1, 2, 1),
        decoder_blocks=(0, 1, 2, 2, 1),
        encoder_attention=(False, False, False, True, True),
        norm_groups=8,
        fourier_features=False,
        latent_channels=24,
      ),
      optimizer=dict(
        name='muon',
        learning_rate=2e-3,
        warmup_steps=50,
        b2=0.99,
        ema_decay=0.998,
      ),
    )
  )


def dit(folder: str, cross: bool) -> ml_collections.ConfigDict:
  """The transformer on two-second windows: 90 video tokens, 207 in all."""
  return ml_collections.ConfigDict(
    dict(
      experiment='mirage_jax.experiment',
      seed=0,
      num_steps=5000,
      batch_size=8,
      log_every=25,
      save_every=200,
      eval_every=500,
      eval_batches=10,
      keep=2,
      keep_every=0,
      mesh=dict(data=-1, fsdp=1, context=1, tensor=1),
      init_from='',
      latent_size=(12, 12),
      data=dict(
        train=f'{folder}/train',
        eval=f'{folder}/val',
        num_chunks=2,
        text_length=40,
        past=2,
        drop_past=0.3,
        augment=True,
      ),
      model=model(cross),
      flow=dict(
        schedule='linear_quadratic',
        full_weight_from=0.3,
        motion_weight=4.0,
        heard_weight=8.0,
        channel_weights=CHANNEL_WEIGHTS,
        drop_text=0.1,
        drop_audio=0.1,
        drop_reference=0.1,
        drop_all=0.05,
      ),
      optimizer=dict(
        name='muon',
        learning_rate=1.5e-3,
        warmup_steps=100,
        b2=0.99,
        ema_decay=0.998,
      ),
    )
  )


def model(cross: bool) -> dict:
  """The transformer's shape."""
  audio = dict(width=128, mlp_dim=384, in_dim=320)
  if cross:
    # Equal parameters: what the audio stream loses, the cross layers get.
    audio = dict(width=392, mlp_dim=0, in_dim=320)
  return dict(
    depth=8,
    num_heads=3,
    head_dim=64,
    video=dict(width=192, mlp_dim=512),
    text=dict(width=64, mlp_dim=128, in_dim=64),
    audio=audio,
    latent_channels=24,
    text_vocab=256,
    rope_area=9.0,
    patch_size=4,
    prediction='data',
    time_alignment=2.0,
    audio_fusion='cross' if cross else 'joint',
    attention='recompute',
    remat='dots',
  )
