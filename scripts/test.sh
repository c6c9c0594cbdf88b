#!/usr/bin/env bash
# Sets up, builds and runs the tests. Options: --preset release|dev|embedded|asan|tsan (default release), --jobs N.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=release
jobs=$(nproc)
while [ $# -gt 0 ]; do
  case "$1" in
    --preset) preset=$2; shift 2 ;;
    --jobs) jobs=$2; shift 2 ;;
    -h|--help) sed -n '2s/^# //p' "$0"; exit 0 ;;
    *) echo "test.sh: unknown option $1" >&2; exit 2 ;;
  esac
done

scripts/setup.sh
cmake --preset "$preset" -D COHORT_TEST_BOTH_MPIS=ON  # setup.sh has installed both
cmake --build --preset "$preset" --parallel "$jobs"
ctest --preset "$preset" --parallel "$jobs"
