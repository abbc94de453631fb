#!/bin/sh
# Runs the committed notebooks at the smoke profile, in order, and stores their outputs without volatile metadata.
set -eu
cd "$(dirname "$0")/.."
export MINARI_DATASETS_PATH="$PWD/.test/minari" OMP_NUM_THREADS=1
.venv/bin/aepo reproduce --profile smoke
for notebook in notebooks/*.ipynb; do
  .venv/bin/jupyter nbconvert --to notebook --execute --inplace --log-level ERROR "$notebook" 2>/dev/null
done
.venv/bin/nbstripout --keep-output --keep-count --keep-id --extra-keys \
  "metadata.papermill metadata.widgets cell.metadata.papermill cell.metadata.execution metadata.language_info.version" notebooks/*.ipynb
