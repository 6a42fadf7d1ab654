"""A student of GRID's Mirage: 4 evaluations of the network, not 8 x 2 to 64 x 2.

The shipped weights sample under guidance by sound, weight 3: two runs of the
network a step. The student follows their 8-step path in 4 steps of one run each.
Only changes of rank 16 are trained, 1.2M of 9.2M parameters, so that they ship
as a file of 2.4 MB beside the teacher's. Latents as for grid.py:dit, by
launch.prepare; the videos in them are not used, only sound, images and texts.

14 minutes on half of two CPU cores. Then a sample is within 9 % of the motion of the
teacher's from the same noise (sample_error 0.058, teacher_motion 0.66), and lips
follow as closely as the teacher's (README).

  python -m launch.train --config configs/mirage/grid_distil.py \
      --workdir runs/distil
  python -m launch.export --workdir runs/distil \
      --base mirage_jax/assets/grid.safetensors \
      --out mirage_jax/assets/grid_fast.safetensors

Two steps: --config.distil.kept='(6,)'.
"""

import ml_collections

from configs import args
from configs.mirage import grid


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """`data=FOLDER` of prepared shards, as for grid.py."""
  parsed = args.parse(arg, data='data/grid')
  teacher = grid.dit(f'{parsed.data}/latents', cross=False)
  return ml_collections.ConfigDict(
    dict(
      experiment='mirage_jax.distil_experiment',
      seed=0,
      num_steps=300,
      batch_size=2,
      log_every=10,
      save_every=50,
      eval_every=100,
      eval_batches=4,
      keep=2,
      keep_every=0,
      mesh=teacher.mesh,
      init_from='mirage_jax/assets/grid.safetensors',
      latent_size=teacher.latent_size,
      data=teacher.data,
      model=teacher.model,
      flow=dict(
        num_steps=8,
        motion_weight=4.0,
        # Most videos are made without a text.
        drop_text=0.5,
        drop_audio=0.0,
        drop_reference=0.1,
        drop_all=0.0,
      ),
      distil=dict(guidance=dict(audio=3.0), kept=(5, 6, 7)),
      lora=dict(rank=16, targets=('*',)),
      optimizer=dict(
        name='adamw',
        learning_rate=2e-3,
        warmup_steps=20,
        weight_decay=0.0,
        ema_decay=0.98,
      ),
    )
  )
