#!/usr/bin/env bash
# Runs a training command on a spot TPU slice until it has ended, however often the slice is taken.
#
#   deploy/queued_tpu.sh NAME ZONE TYPE COMMAND
#
#   deploy/queued_tpu.sh voc300 europe-west4-b v5litepod-16 "python train.py \
#     --config=configs/voc300.py --config.data.dir=gs://BUCKET/data --workdir=gs://BUCKET/runs/voc300"
#
# Requests a queued resource, waits for it, copies this folder to all workers, installs the program
# there with Python 3.12, and runs COMMAND on all of them. When the slice is preempted or the program
# exits with 75 or 69, it does so again, and the run resumes from the bucket. Exit status 0 and 1 of
# the program end it. The slice is deleted at the end, also after Ctrl-C.
#
# RUNTIME=v2-alpha-tpuv5-lite names the software of the TPU VMs.
set -euo pipefail

if [ $# != 4 ]; then
  sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "$0"
  exit 1
fi
name=$1 zone=$2 type=$3 command=$4
runtime=${RUNTIME:-v2-alpha-tpuv5-lite}
here=$(cd "$(dirname "$0")/.." && pwd)

delete() {
  gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet || true
}

state() {
  gcloud compute tpus queued-resources describe "$name" --zone="$zone" \
    --format='value(state.state)' 2>/dev/null || echo NONE
}

on_all() { # COMMAND
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

start() {
  delete
  gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
    --accelerator-type="$type" --runtime-version="$runtime" --spot || return 1
  local now
  until now=$(state) && [ "$now" = ACTIVE ]; do
    case $now in
      FAILED | SUSPENDED | SUSPENDING | NONE) return 1 ;;
    esac
    sleep 30
  done
  git -C "$here" archive --format=tar.gz --output=/tmp/"$name".tar.gz HEAD
  gcloud compute tpus tpu-vm scp /tmp/"$name".tar.gz "$name":/tmp/program.tar.gz \
    --zone="$zone" --worker=all || return 1
  on_all "mkdir -p program && tar -xzf /tmp/program.tar.gz -C program && cd program &&
    (curl -LsSf https://astral.sh/uv/install.sh | sh) &&
    ~/.local/bin/uv venv --allow-existing --python 3.12 &&
    ~/.local/bin/uv pip install -r requirements.txt -r requirements-tpu.txt"
}

trap delete EXIT
while true; do
  if [ "$(state)" != ACTIVE ] && ! start; then
    echo "$name: no slice yet; asking again in a minute" >&2
    sleep 60
    continue
  fi
  # The workers' statuses come as text: gcloud's own is 1 for any of them.
  log=$(mktemp)
  on_all "cd program && . .venv/bin/activate && $command; echo exit status \$?" 2>&1 |
    tee "$log" || true
  if grep -q '^exit status 1$' "$log"; then
    echo "$name: the program ended with an error; see above" >&2
    exit 1
  fi
  ended=$(grep -c '^exit status' "$log" || true)
  if [ "$ended" -gt 0 ] && [ "$(grep -c '^exit status 0$' "$log" || true)" = "$ended" ]; then
    exit 0
  fi
  echo "$name: interrupted; resuming" >&2
done
