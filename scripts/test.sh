#!/bin/sh
# Everything that checks the study: ruff, types, unit and stage tests, the smoke chain, every notebook against its outputs.
set -eu
cd "$(dirname "$0")/.."
export MINARI_DATASETS_PATH="$PWD/.test/minari" OMP_NUM_THREADS=1
echo "== ruff" && .venv/bin/ruff check . && .venv/bin/ruff format --check .
echo "== types" && .venv/bin/mypy
echo "== unit and stage tests" && .venv/bin/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder --durations 25
echo "== the study at the smoke profile" && .venv/bin/aepo reproduce --profile smoke
echo "== notebooks against their stored outputs"
.venv/bin/python -m pytest notebooks --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg \
  --nbval-cell-timeout 300 -n 2 --dist loadfile
