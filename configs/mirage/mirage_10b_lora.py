"""LoRA of Mochi 1 or of Mirage 10B, for those who cannot train 10B parameters.

  python -m launch.convert --from mochi --input genmo/mochi-1-preview \
      --out weights/mochi
  python -m launch.fits --config configs/mirage/mirage_10b_lora.py:mochi
  python -m launch.train --config configs/mirage/mirage_10b_lora.py:mochi \
      --workdir runs/mochi_lora
  python -m launch.convert --from mirage --to diffusers --input runs/mochi_lora \
      --out weights/mochi_changed

`:mochi` changes the silent model; the last command merges what was learned into a
transformer that diffusers loads. `:mirage,weights=WORKDIR` changes one that hears.
Data as for `mirage_10b_stitch.py`. On eight devices of 96 GB: the base is a fourth
of 40 GB on each, optimizer and gradients are of the changes alone. Rank 16 on the
projections and MLPs of all blocks, lora.targets chooses others. The learning rate
is that of Genmo's own trainer of LoRA for Mochi; the rest are guesses. Nobody has
trained this, nor compiled it for a device.
"""

import ml_collections

from configs import args
from configs.mirage import mirage_10b

WEIGHTS = {'mochi': 'weights/mochi', 'mirage': 'runs/mirage_10b'}


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """`mirage_10b_lora.py:mochi`, with `weights=` and `data=FOLDER`."""
  parsed = args.parse(
    arg, tuple(WEIGHTS), weights='', data='data/mirage_10b/features'
  )
  config = mirage_10b.get_config(f'v5p_256,data={parsed.data}')
  config.update(
    dict(batch_size=2, num_steps=2000, save_every=200, eval_every=200)
  )
  config.mesh = dict(data=1, fsdp=4, context=2, tensor=1)
  config.init_from = parsed.weights or WEIGHTS[parsed.variant]
  if parsed.variant == 'mochi':
    del config.model.audio
  config.lora = dict(rank=16, alpha=16.0)
  config.optimizer.update(
    dict(learning_rate=2e-4, warmup_steps=200, ema_decay=0.99)
  )
  return config
