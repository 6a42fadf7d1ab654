#!/usr/bin/env bash
# Trains a config on a GKE cluster of TPUs or GPUs with XPK; the way to tpu7x.
#
#   xpk cluster create --cluster=mirage --tpu-type=tpu7x-4x4x8 --num-slices=1 \
#       --reservation=...
#   CLUSTER=mirage IMAGE=REGISTRY/mirage launch/gke_xpk.sh [--dry-run]
#
#   ... TYPE=h100-mega-80gb-8 NODES=4 CONFIG=... launch/gke_xpk.sh
#
# IMAGE holds this checkout as its working directory, installed with
# `pip install -c constraints.txt -e '.[tpu]'`, of GPUs '.[cuda]'. WORKDIR has
# to be on a file system that all pods see: attach a bucket with
# `xpk storage attach`.
set -euo pipefail

if [[ ${1:-} == --help ]]; then
  sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$0"
  exit
fi
readonly CLUSTER=${CLUSTER:?the name of the cluster}
readonly IMAGE=${IMAGE:?a container image of this checkout}
readonly NAME=${NAME:-mirage} TYPE=${TYPE:-tpu7x-4x4x8}
readonly SLICES=${SLICES:-1} NODES=${NODES:-1}
readonly CONFIG=${CONFIG:-configs/mirage/mirage_10b.py:tpu7x_128}
readonly WORKDIR=${WORKDIR:-/bucket/$NAME} FLAGS=${FLAGS:-}

if [[ $TYPE == v[0-9]* || $TYPE == tpu* ]]; then
  kind=("--tpu-type=$TYPE" "--num-slices=$SLICES") processes=--coordinator=auto
else
  kind=("--device-type=$TYPE" "--num-nodes=$NODES")
  # A process to a node; its pod knows these, not this shell.
  # shellcheck disable=SC2016
  processes='--coordinator=$JAX_COORDINATOR_ADDRESS:$JAX_COORDINATOR_PORT '
  # shellcheck disable=SC2016
  processes+='--num_processes=$NNODES --process_id=$NODE_RANK'
fi

# A pod that fails is started again and goes on from the last checkpoint.
command=(
  xpk workload create "--cluster=$CLUSTER" "--workload=$NAME"
  "${kind[@]}" "--docker-image=$IMAGE" --max-restarts=100
  "--command=python -m launch.train --config $CONFIG --workdir $WORKDIR \
$processes $FLAGS"
)
if [[ ${1:-} == --dry-run ]]; then
  printf '%q ' "${command[@]}"
  echo
else
  "${command[@]}"
fi
