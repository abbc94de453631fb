#!/bin/sh
# Of a finished quick run: seed 0 as the tracked example policy, and its executed notebooks, with those of `make theory`
# where they are there, in docs/quick, links mended.
# example.sh RUNS TASK
set -eu
cd "$(dirname "$0")/.."
.venv/bin/aepo export "$1/quick/$2" "runs/example/$2" --seed 0
rm -rf docs/quick && mkdir -p docs/quick && cp "$1/quick/$2"/0*.ipynb docs/quick/
[ ! -d "$1/quick/theory" ] || cp "$1/quick/theory"/0*.ipynb docs/quick/
for notebook in docs/quick/*.ipynb; do
  sed -E "s#$1#runs#g; s#$(dirname "$1")/figures#figures#g" "$notebook" |
    sed -E 's#Outputs stored here are those of `smoke`[^"*]*#Outputs stored here are those of `quick`.#' |
    sed -E 's#\]\(([0-9]{2}_[a-z_]+\.ipynb)\)#](../../notebooks/\1)#g; s#\]\(\.\./docs/#](../#g' > "$notebook.new"
  mv "$notebook.new" "$notebook"
done
.venv/bin/nbstripout --keep-output --keep-count --keep-id --extra-keys \
  "metadata.papermill metadata.widgets cell.metadata.papermill cell.metadata.execution metadata.language_info.version" docs/quick/*.ipynb
