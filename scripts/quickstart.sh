#!/usr/bin/env bash
# Sets up, builds, and trains a small convolutional network on two worker processes.
# The data is MNIST-format: --data DIR, or digits that cohort renders itself. Results land in build/quickstart.
# usage: scripts/quickstart.sh [--data DIR] [--workers N] [--epochs N]
set -euo pipefail
cd "$(dirname "$0")/.."

data=
workers=2
epochs=3
while [ $# -gt 0 ]; do
  case "$1" in
    --data) data=$2; shift 2 ;;
    --workers) workers=$2; shift 2 ;;
    --epochs) epochs=$2; shift 2 ;;
    -h|--help) sed -n '2,4s/^# //p' "$0"; exit 0 ;;
    *) echo "quickstart.sh: unknown option $1" >&2; exit 2 ;;
  esac
done

scripts/setup.sh
cmake --preset release >/dev/null
cmake --build --preset release --target cohort_program image_classifier fit

out=build/quickstart
rm -rf "$out/checkpoints" "$out/logs"  # a run of its own each time
mkdir -p "$out"
if [ -z "$data" ]; then
  data=$out/digits
  [ -d "$data" ] || build/bin/cohort data digits --out "$data"
fi
echo "quickstart: training on $workers worker processes, data in $data"
build/bin/cohort launch -n "$workers" -- build/bin/image_classifier --data "$data" \
  --strategy multi_worker_mirrored --model cnn --global-batch 64 --epochs "$epochs" --seed 1 \
  --checkpoint-dir "$out/checkpoints" --log-dir "$out/logs" --metrics-json "$out/metrics.json"
