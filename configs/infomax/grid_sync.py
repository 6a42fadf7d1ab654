"""Sound and sight of one speaker of the GRID corpus: a judge of lip sync.

Data: clips of a talking face, as in GRID (25 fps, 16 kHz; CC BY 4.0).

  for s in train val; do python -m launch.prepare --stage clips --input CLIPS \
      --split split.json --subset $s --out data/grid/clips/$s; done

  python -m launch.train --config configs/infomax/grid_sync.py \
      --workdir runs/sync
"""

import ml_collections

from configs import args


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """`grid_sync.py:data=FOLDER` with clips in FOLDER/train and FOLDER/val."""
  folder = args.parse(arg, data='data/grid/clips').data
  return ml_collections.ConfigDict(
    dict(
      experiment='infomax_jax.sync.experiment',
      seed=0,
      num_steps=2500,
      batch_size=8,
      log_every=25,
      save_every=100,
      eval_every=100,
      eval_batches=5,
      keep=2,
      keep_every=0,
      mesh=dict(data=-1, fsdp=1, context=1, tensor=1),
      data=dict(
        train=f'{folder}/train',
        eval=f'{folder}/val',
        num_frames=55,
        augment=True,
      ),
      model=dict(dim=64, stem=48, trunk=96, hidden=128),
      objective=dict(clip=20.0, reg_weight=5e-2, local_weight=0.5),
      optimizer=dict(
        learning_rate=2e-3, warmup_steps=50, b2=0.99, weight_decay=0.02
      ),
    )
  )
