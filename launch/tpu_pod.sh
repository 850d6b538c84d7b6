#!/usr/bin/env bash
# Runs an experiment on all workers of a TPU pod, and again after each preemption until it ends.
#
#     PROJECT=mine ZONE=us-central2-b BUCKET=my-bucket REPOSITORY=https://... launch/tpu_pod.sh --config=configs/burgers.py:paper
#
# Needs the gcloud command, logged in. Lines to change, or to set from outside: the first eight. The run folder is on a
# bucket that every worker mounts (gcsfuse), since all of them share it. A checkpoint is a folder that gets its name once
# it is whole: --rename-dir-limit lets gcsfuse rename folders, and a bucket with a hierarchical namespace does so by itself.
set -euo pipefail

NAME=${NAME:-namm-jax}                               # of the queued resource and of its node
PROJECT=${PROJECT:?set PROJECT to your project}
ZONE=${ZONE:?set ZONE, such as us-central2-b}
TYPE=${TYPE:-v4-32}                                  # accelerator type: 4 workers of 4 chips
RUNTIME=${RUNTIME:-tpu-ubuntu2204-base}              # image of the workers
BUCKET=${BUCKET:?set BUCKET, the name of the bucket that holds run folders}
WORKDIR=${WORKDIR:-burgers}                          # run folder inside the bucket
REPOSITORY=${REPOSITORY:?set REPOSITORY to the address this code is cloned from}
REVISION=${REVISION:-main}                           # all workers must run the same: it is checked

tpu() { gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"; }
on_all_workers() { tpu tpu-vm ssh "$NAME" --worker=all --command="$1"; }
state() { tpu queued-resources describe "$NAME" --format='value(state.state)' 2>/dev/null || echo NONE; }

acquire() { # waits until the pod is there; one that was preempted is asked for again
  case $(state) in
    SUSPENDED | SUSPENDING | FAILED) tpu queued-resources delete "$NAME" --force --quiet ;;
  esac
  if [ "$(state)" = NONE ]; then
    tpu queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$RUNTIME" --spot
  fi
  until [ "$(state)" = ACTIVE ]; do sleep 60; done
  on_all_workers "
    set -e
    mountpoint -q ~/runs || { mkdir -p ~/runs; gcsfuse --implicit-dirs --rename-dir-limit=1000 '$BUCKET' ~/runs; }
    test -d namm_jax || git clone --quiet '$REPOSITORY' namm_jax
    cd namm_jax && git fetch --quiet && git checkout --quiet '$REVISION'
    pip install --quiet -e '.[tpu]'"
}

arguments=${1+$(printf '%q ' "$@")} # as the workers' shell reads them
# TPU workers know each other: --distributed needs no address. The same command goes on where the last one stopped.
while true; do
  acquire
  if on_all_workers "cd namm_jax && python launch/main.py --distributed --workdir=\$HOME/runs/$WORKDIR $arguments"; then
    break
  elif [ "$(state)" = ACTIVE ]; then
    echo 'The pod is still there, so the run itself failed: see the message above.' >&2
    exit 1
  fi
done
echo "Done. The pod costs until: gcloud compute tpus queued-resources delete $NAME --force --project=$PROJECT --zone=$ZONE"
