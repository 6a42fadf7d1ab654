#!/usr/bin/env bash
# Trains a config on a GKE cluster of TPUs with XPK; the way to tpu7x.
#
#   xpk cluster create --cluster=mirage --tpu-type=tpu7x-4x4x8 --num-slices=1 \
#       --reservation=...
#   CLUSTER=mirage IMAGE=REGISTRY/mirage launch/gke_xpk.sh [--dry-run]
#
# IMAGE holds this checkout as its working directory, installed with
# `pip install -c constraints.txt -e '.[tpu]'`. WORKDIR has to be on a file
# system that all pods see: attach a bucket with `xpk storage attach`.
set -euo pipefail

readonly CLUSTER=${CLUSTER:?the name of the cluster}
readonly IMAGE=${IMAGE:?a container image of this checkout}
readonly NAME=${NAME:-mirage} TYPE=${TYPE:-tpu7x-4x4x8} SLICES=${SLICES:-1}
readonly CONFIG=${CONFIG:-configs/mirage/mirage_10b.py:tpu7x_128}
readonly WORKDIR=${WORKDIR:-/bucket/$NAME} FLAGS=${FLAGS:-}

# A pod that fails is started again and goes on from the last checkpoint.
command=(
  xpk workload create "--cluster=$CLUSTER" "--workload=$NAME"
  "--tpu-type=$TYPE" "--num-slices=$SLICES" "--docker-image=$IMAGE"
  --max-restarts=100
  "--command=python -m launch.train --config $CONFIG --workdir $WORKDIR \
--coordinator=auto $FLAGS"
)
if [[ ${1:-} == --dry-run ]]; then
  printf '%q ' "${command[@]}"
  echo
else
  "${command[@]}"
fi
