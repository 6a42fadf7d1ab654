"""LoRA: the shipped Mirage, or another, changed a little by other clips.

For those who cannot train all of a model, or want a small file for each speaker: of
the 9.2M parameters 0.55M are trained, changes of rank 8 of the linear layers that
config.lora.targets names (`mirage_jax/lora.py`). The optimizer knows no others.
Latents by launch.prepare as for grid.py:dit, with the VAE of the shipped weights:
--vae mirage_jax/assets/grid.safetensors.

  python -m launch.train --config configs/mirage/grid_lora.py:all,data=data/mine \
      --workdir runs/lora
  python -m launch.export --workdir runs/lora --vae mirage_jax/assets/grid.safetensors \
      --out mine.safetensors

merges what was learned into a bundle for launch.sample; instead of --vae,
--changes_only or --base write the changes alone, and `launch.convert --from mirage`
merges them, too. `:audio` changes what hears: the stream of sound. Another choice:
--config.lora.rank=16 --config.lora.targets="('blocks/video/*','*/mlp/up','out')"; a
pattern that is of no layer is told with the layers that there are. Another model:
`,weights=FILE`, with its model in config.model. A few minutes on two CPU cores;
quality has not been measured.
"""

import ml_collections

from configs import args
from configs.mirage import grid

TARGETS = {
  'all': ('blocks/*', 'last/*'),
  'audio': ('blocks/audio/*', 'last/audio/*', 'audio_in'),
}


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """`grid_lora.py:all`, with `data=FOLDER` and `weights=FILE`."""
  parsed = args.parse(
    arg,
    tuple(TARGETS),
    data='data/grid',
    weights='mirage_jax/assets/grid.safetensors',
  )
  config = grid.dit(f'{parsed.data}/latents', cross=False)
  config.update(dict(num_steps=300, save_every=100, eval_every=100))
  config.init_from = parsed.weights
  del config.flow.heard_weight  # A run of the network a step less.
  config.lora = dict(rank=8, alpha=8.0, targets=TARGETS[parsed.variant])
  # Changes bear a higher rate than weights, and should stay small.
  config.optimizer = dict(
    name='adamw',
    learning_rate=1e-3,
    warmup_steps=20,
    weight_decay=0.0,
    ema_decay=0.98,
  )
  return config
