#!/bin/sh
# How long a suite takes in one plan, and its tasks one after another, each from nothing: sh benchmarks/time_suite.sh [SUITE] [PROFILE]
set -eu
cd "$(dirname "$0")/.."
suite=${1:-maze2d} profile=${2:-smoke}
folder=$(mktemp -d "${TMPDIR:-/tmp}/aepo-time.XXXXXX")
trap 'rm -rf "$folder"' EXIT
export OMP_NUM_THREADS=1
tasks=$(.venv/bin/aepo tasks --suite "$suite" | cut -d' ' -f1)

one_after_another() {
  for task in $tasks; do
    MINARI_DATASETS_PATH="$folder/data-1" .venv/bin/aepo reproduce --task "$task" --profile "$profile" --runs-dir "$folder/1/runs" >/dev/null 2>&1
  done
}
together() {
  MINARI_DATASETS_PATH="$folder/data-2" .venv/bin/aepo reproduce --suite "$suite" --profile "$profile" --runs-dir "$folder/2/runs" >/dev/null 2>&1
}
seconds() {
  begin=$(date +%s)
  "$1"
  echo $(($(date +%s) - begin))
}

echo "load before: $(cut -d' ' -f1 /proc/loadavg 2>/dev/null || echo unknown), cores: $(getconf _NPROCESSORS_ONLN)"
mkdir -p "$folder/data-1" "$folder/data-2"
each=$(seconds one_after_another)
echo "one after another: $each s"
all=$(seconds together)
echo "in one plan: $all s"
awk -v a="$all" -v b="$each" 'BEGIN { printf "ratio: %.2f\n", a / b }'
