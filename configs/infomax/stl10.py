"""AMDIM on STL-10: 105,000 images without their labels, 8,000 to test on.

Data: `tfds build stl10 --file_format=array_record`; reading needs no TensorFlow.

As published (ndf 192, n_rkhs 1536, depth 8; 208M parameters; 300 epochs at
batch 480; not run here). The paper's classifiers reach 93.4 % (linear) and
93.8 % (MLP), and 94.2 % and 94.5 % with --config.data.strong=True.

  python -m launch.train --config configs/infomax/stl10.py --workdir runs/stl10
  python -m launch.probe --workdir runs/stl10 --train tfds:stl10:train \
      --test tfds:stl10:test

The classifiers beside the training see the labels of the 5,000 images that have
one; the numbers above are of the second command.
"""

import ml_collections

from configs import args


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """`stl10.py`, with `data=PLACE`, `eval=PLACE` and `batch_size=N`."""
  parsed = args.parse(
    arg,
    data='tfds:stl10:train+unlabelled',
    eval='tfds:stl10:test',
    batch_size=480,
  )
  epoch = 105_000 // parsed.batch_size
  return ml_collections.ConfigDict(
    dict(
      experiment='infomax_jax.experiment',
      seed=0,
      num_steps=300 * epoch,
      batch_size=parsed.batch_size,
      chunks=1,
      log_every=20,
      save_every=5 * epoch,
      eval_every=10 * epoch,
      eval_batches=-(-8000 // parsed.batch_size),
      keep=2,
      keep_every=0,
      mesh=dict(data=-1, fsdp=1, context=1, tensor=1),
      data=dict(
        train=parsed.data,
        eval=parsed.eval,
        recipe='stl10',
        strong=False,
        workers=8,
      ),
      encoder=dict(
        image_size=64, ndf=192, n_rkhs=1536, n_depth=8, dtype='bfloat16'
      ),
      objective=dict(reg_weight=5e-2, clip=20.0, dtype='bfloat16'),
      heads=dict(num_classes=10),
      optimizer=dict(
        learning_rate=2e-4,
        warmup_steps=500,
        # The rate falls at the end of the epochs 250 and 280.
        milestones=(251 * epoch, 281 * epoch),
      ),
    )
  )
