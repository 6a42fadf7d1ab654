"""Mirage 10B from the public weights of Mochi 1: an audio stream joins them.

  python -m launch.convert --from mochi --input genmo/mochi-1-preview \
      --out weights/mochi
  python -m launch.fits --config configs/mirage/mirage_10b_stitch.py:v5p_256
  python -m launch.train --config configs/mirage/mirage_10b_stitch.py:v5p_256 \
      --workdir bucket/mirage_10b

on latents of Mochi's VAE and features of T5-XXL and wav2vec 2.0 Large: convert
those with --from mochi_vae, t5 and wav2vec2, make the VAE a bundle by

  python -m launch.export --workdir weights/mochi_vae --size 256 \
      --out weights/vae.safetensors

and give both to launch.prepare and launch.features. The model, the mesh and the
data are those of `mirage_10b.py`, of which the meshes are alike for v5p-256 and
v6e-256. The recipe is that of `mirage_jax.stitch`: the paper names it and does
not describe it, so these numbers are guesses. For 2,000 steps only the new stream
learns, while its share of attention rises from 0 to 1; then all does, what Mochi
knew at a tenth of the rate. Nobody has trained this. `,weights=FOLDER` is where
Mochi lies, `,data=FOLDER` as in `mirage_10b.py`.
"""

import ml_collections

from configs import args
from configs.mirage import mirage_10b

STEPS = 2000  # Of the warm-up.


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """`mirage_10b_stitch.py:v5p_256`, with `weights=` and `data=FOLDER`."""
  parsed = args.parse(
    arg,
    ('v5p_256',),
    weights='weights/mochi',
    data='data/mirage_10b/features',
    options=False,
  )
  config = mirage_10b.get_config(
    f'{parsed.variant},data={parsed.data},options={parsed.options}'
  )
  config.init_from = parsed.weights
  config.stitch = dict(
    new=('audio',),
    warmup_steps=STEPS,
    ramp_steps=STEPS,
    factors=dict(video=0.1, text=0.1),
  )
  return config
