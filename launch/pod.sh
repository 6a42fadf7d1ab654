#!/usr/bin/env bash
# Trains a config on Cloud TPUs (v5e, v5p, v6e) through a queued resource.
#
#   NAME=mirage TYPE=v5p-512 BUCKET=my-bucket launch/pod.sh create
#   ... launch/pod.sh install      # once the pod is there: this checkout
#   ... CONFIG=configs/mirage/mirage_10b.py:v5p_256 launch/pod.sh run
#   ... launch/pod.sh logs
#   ... launch/pod.sh resume       # if the pod is gone, waits for a new one
#   ... launch/pod.sh delete
#
# --dry-run prints the commands, --help this. In the environment, beside
# gcloud's defaults:
#   NAME     of the queued resource; TYPE its accelerator, chips as it counts
#            them (v5litepod-256, v5p-512, v6e-256); ZONE if not the default
#   SLICES   more than one makes a multislice of that many pods; SPOT=1
#   BUCKET   of Cloud Storage, mounted as ~/mirage/bucket on every worker
#   CONFIG   --config of launch.train; RUN the folder in the bucket; FLAGS more
# tpu7x is to be had through GKE only: see gke_xpk.sh.
set -euo pipefail

readonly NAME=${NAME:-mirage} TYPE=${TYPE:-v5p-512} SLICES=${SLICES:-1}
readonly BUCKET=${BUCKET:-} CONFIG=${CONFIG:-} RUN=${RUN:-$NAME}
readonly FLAGS=${FLAGS:-}
dry=false command=
zone=(${ZONE:+"--zone=$ZONE"})

fail() {
  echo "error: $*" >&2
  exit 1
}

# What stands at the top of this file.
help() {
  sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$0"
}

# Runs a command, or prints it so that a shell would read the same.
perform() {
  if $dry; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpu() {
  perform gcloud compute tpus queued-resources "$1" "$NAME" "${zone[@]}" \
    "${@:2}"
}

# A command on every worker of every slice.
everywhere() {
  tpu ssh --worker=all --node=all --command="$1"
}

runtime() {
  case $TYPE in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "TYPE=$TYPE: v5litepod-N, v5p-N or v6e-N; tpu7x by gke_xpk.sh" ;;
  esac
}

create() {
  local image nodes=("--node-id=$NAME")
  image=$(runtime)
  if ((SLICES > 1)); then
    nodes=("--node-prefix=$NAME" "--node-count=$SLICES")
  fi
  tpu create "--accelerator-type=$TYPE" "--runtime-version=$image" \
    "${nodes[@]}" ${SPOT:+--spot}
}

state() {
  gcloud compute tpus queued-resources describe "$NAME" "${zone[@]}" \
    --format='value(state.state)'
}

await() {
  if $dry; then
    echo "# until $NAME is ACTIVE"
    return
  fi
  until [[ $(state) == ACTIVE ]]; do
    echo "$(date +%T) $NAME is $(state)"
    sleep 60
  done
}

install() {
  [[ $BUCKET ]] || fail 'BUCKET: where the data and the run are to be'
  local archive=${TMPDIR:-/tmp}/$NAME.tar.gz
  perform git archive --output="$archive" HEAD
  perform gcloud compute tpus queued-resources scp "$archive" \
    "$NAME:mirage.tar.gz" "${zone[@]}" --worker=all --node=all
  everywhere "set -e
mkdir -p mirage && tar xzf mirage.tar.gz -C mirage && cd mirage
python3.11 -m venv .venv || python3 -m venv .venv
.venv/bin/pip install -q -c constraints.txt -e '.[tpu]'
command -v gcsfuse || sudo apt-get install -qy gcsfuse
mkdir -p bucket
mountpoint -q bucket || gcsfuse --implicit-dirs '$BUCKET' bucket"
}

# The same command starts a run and continues it from its last checkpoint.
run() {
  [[ $CONFIG ]] || fail 'CONFIG: what to train, configs/...py:variant'
  everywhere "cd mirage && nohup .venv/bin/python -m launch.train \
--config '$CONFIG' --workdir 'bucket/$RUN' --coordinator=auto $FLAGS \
>> train.log 2>&1 < /dev/null &"
}

logs() {
  tpu ssh --worker=0 --node=0 --command='tail -n 50 -F mirage/train.log'
}

delete() {
  tpu delete --force --quiet
}

resume() {
  local now=SUSPENDED
  $dry || now=$(state) || now=  # gcloud says so of one that is not there.
  if [[ $now != ACTIVE ]]; then
    [[ -z $now ]] || delete
    create
    await
    install
  fi
  run
}

for argument in "$@"; do
  case $argument in
    --dry-run) dry=true ;;
    --help | -h) command=help ;;
    create | install | run | logs | resume | delete) command=$argument ;;
    *) fail "$argument: create, install, run, logs, resume, delete, --help" ;;
  esac
done
[[ $command ]] || fail 'one of create, install, run, logs, resume, delete'
if ! $dry && [[ $command != help ]]; then
  command -v gcloud > /dev/null || fail 'gcloud is not installed'
fi
"$command"
