"""What warm-up and stitching buy: a silent model learns to hear, on GRID.

Windows of one second, as in the first stage of configs/mirage/grid.py, whose
data and model these are; its docstring prepares the shards. Four runs of 600
steps of 8 windows, but `:scratch`, which has the budget of two. On two CPU cores
one to two steps a second: 25 to 40 minutes in all.

  python -m launch.train --config configs/mirage/grid_stitch.py:silent \
      --workdir runs/stitch/silent
  python -m launch.train --config configs/mirage/grid_stitch.py:attach \
      --workdir runs/stitch/attach
  python -m launch.train --config configs/mirage/grid_stitch.py:naive \
      --workdir runs/stitch/naive
  python -m launch.train --config configs/mirage/grid_stitch.py:scratch \
      --workdir runs/stitch/scratch
  python -m launch.curves --out runs/stitch/curves.png runs/stitch/silent \
      runs/stitch/attach runs/stitch/naive runs/stitch/scratch

`:silent` is a video model with text and reference images. `:attach` gives it an
audio stream by the recipe of `mirage_jax.stitch`: for 100 steps only that
learns, while its share of attention rises from 0 to 1; then all does. `:naive`
starts from the same weights and trains all at once, with sound in full from the
first step. `:scratch` trains all streams together, `:single`, which is not in the
figure, likewise, but for its first 300 steps each sample sees one of its conditions
only: the recipe for a start without weights. What of all this the paper says and
what is inferred stands in `mirage_jax/stitch.py`, whose `StitchConfig` has every
choice as a key of config.stitch. Another place for the runs is
`:attach,runs=FOLDER`, another seed --config.seed=1. The autoencoder need not be
trained: mirage_jax/assets/grid.safetensors is a --vae, too. Then, for the lips,

  for r in {attach,naive}/{200,400,600} scratch/{200,400,600,800,1000,1200}; do
    python -m launch.export --workdir runs/stitch/${r%/*} --step ${r#*/} \
        --vae runs/vae.safetensors --out runs/stitch/now.safetensors
    python -m launch.evaluate --checkpoint runs/stitch/now.safetensors --limit 10 \
        --data CLIPS --split split.json --subset val --out runs/stitch/scores/$r
  done

and launch.curves again with --scores scores. Stitched runs count their steps anew:
their 200, 400 and 600 are 800, 1,000 and 1,200 in all. Runs of other seeds, in
folders of their own, are given to launch.curves with these: it draws their means.
README's figure is of three, on shards with --offsets 0,10.
"""

import ml_collections

from configs import args
from configs.mirage import grid

VARIANTS = ('silent', 'attach', 'scratch', 'naive', 'single')
STEPS = 600


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """`grid_stitch.py:attach`, with `data=FOLDER` and `runs=FOLDER`."""
  parsed = args.parse(arg, VARIANTS, data='data/grid', runs='runs/stitch')
  variant = parsed.variant
  config = grid.dit(f'{parsed.data}/latents', cross=False)
  config.update(
    dict(
      num_steps=2 * STEPS if variant in ('scratch', 'single') else STEPS,
      save_every=200,
      keep_every=200,
      eval_every=50,
    )
  )
  config.data.update(dict(num_chunks=1, past=0, text_length=1))
  config.optimizer.warmup_steps = 50
  # A silent model hears nothing: all runs count errors in the same way.
  del config.flow.heard_weight
  if variant == 'silent':
    del config.model.audio
  if variant in ('attach', 'naive'):
    config.init_from = f'{parsed.runs}/silent'
    config.stitch = stitch(100 if variant == 'attach' else 0)
  if variant == 'single':
    config.stitch = dict(single_steps=STEPS // 2)
  return config


def stitch(steps: int) -> ml_collections.ConfigDict:
  """An audio stream that is new, with a warm-up of `steps`."""
  return ml_collections.ConfigDict(
    dict(
      new=('audio',),
      warmup_steps=steps,
      ramp_steps=steps,
      factors=dict(video=1.0),
    )
  )
