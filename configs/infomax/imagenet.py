r"""AMDIM on ImageNet at 128 px: the published sizes, for a pod or a few GPUs.

Data: `tfds build imagenet2012 --file_format=array_record`, on a disk that every
process sees, as the workdir; reading needs no TensorFlow. 1,281,167 images, 50,000 to test on.

  python -m launch.train --config configs/infomax/imagenet.py:large \
      --workdir runs/imagenet --coordinator=auto
  python -m launch.probe --workdir runs/imagenet

| variant | ndf, n_rkhs, depth | parameters | epochs | published linear top-1 |
|---|---|---|---|---|
| `:small` | 192, 1536, 8 | 208M | 50 | 62.7 % (63.5 % when trained longer) |
| `:medium` | 256, 2048, 10 | 426M | 100 | 67 % |
| `:large` | 320, 2560, 10 | 666M | 100 | 68.1 % |

None of them was run here. The published runs had batch 480 and 4 to 8 GPUs
(`:small`: two days on four V100); add --config.data.strong=True, which is worth
1 to 2 points. 512 replaces 480 to divide among more devices. For larger batches
(`:large,batch_size=4096` on 256 chips) nothing is published, neither results
nor a learning rate; a milder one is the rate times the root of the batch's
growth.

A batch that does not fit is encoded in parts by --config.chunks=4, and each
part once more in the backward pass: a third more work. Negatives are those of
the whole batch and so are the statistics of norms, so that nothing but rounding
changes: this is no smaller batch. (With norms inside, encoder.use_bn, which no
published run has, those would be of each part.)

--config.objective.nce=pallas, on GPUs pallas_gpu, scores in kernels that keep no
score in memory; `launch.bench_nce` models what that saves on a pod, with
--config.objective.block=2048.

Places205, from the weights of ImageNet (published, `:large`: 55.0 %):

  python -m launch.probe --workdir runs/imagenet --epochs 15 --falls 7,12 \
      --train data/places205/train --test data/places205/val
"""

import ml_collections

from configs import args

SIZES = {  # ndf, n_rkhs, n_depth, epochs, epochs at whose end the rate falls
  'small': (192, 1536, 8, 50, (30, 45)),
  'medium': (256, 2048, 10, 100, (60, 90)),
  'large': (320, 2560, 10, 100, (60, 90)),
}


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """`imagenet.py:small`, `:medium`, `:large`, with `data=`, `batch_size=`."""
  parsed = args.parse(
    arg,
    tuple(SIZES),
    data='tfds:imagenet2012:train',
    eval='tfds:imagenet2012:validation',
    batch_size=512,
  )
  ndf, n_rkhs, n_depth, epochs, falls = SIZES[parsed.variant]
  epoch = 1_281_167 // parsed.batch_size
  return ml_collections.ConfigDict(
    dict(
      experiment='infomax_jax.experiment',
      seed=0,
      num_steps=epochs * epoch,
      batch_size=parsed.batch_size,
      chunks=1,
      log_every=100,
      save_every=epoch // 2,
      eval_every=epoch,
      eval_batches=-(-50_000 // parsed.batch_size),
      keep=2,
      keep_every=10 * epoch,
      mesh=dict(data=-1, fsdp=1, context=1, tensor=1),
      data=dict(
        train=parsed.data,
        eval=parsed.eval,
        recipe='imagenet',
        strong=False,
        workers=32,
      ),
      encoder=dict(
        image_size=128,
        ndf=ndf,
        n_rkhs=n_rkhs,
        n_depth=n_depth,
        dtype='bfloat16',
        remat=True,
      ),
      objective=dict(
        reg_weight=5e-2, clip=20.0, dtype='bfloat16', nce='xla', block=256
      ),
      heads=dict(num_classes=1000),
      optimizer=dict(
        learning_rate=2e-4,
        warmup_steps=500,
        milestones=tuple((fall + 1) * epoch for fall in falls),
      ),
    )
  )
