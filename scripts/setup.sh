#!/bin/sh
# Builds .venv with the exact pins of requirements.txt; does nothing when it is already built from the same pins.
set -u
cd "$(dirname "$0")/.." || exit 1
need_mb=${AEPO_SETUP_MB:-4000}
say() { printf 'aepo setup: %s\n' "$*" >&2; }

stamp=.venv/.aepo-$(cat requirements.txt pyproject.toml | cksum | cut -d' ' -f1)
[ -f "$stamp" ] && [ -x .venv/bin/python ] && exit 0

fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
python=${PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
    if fits "$candidate"; then python=$candidate; break; fi
  done
fi
if [ -z "$python" ] || ! fits "$python"; then
  found=$("${python:-python3}" --version 2>&1 | head -n 1)
  say "Python 3.11 or newer is needed (found: $found); install one, or name it: make setup PYTHON=/path/to/python3.11"
  exit 1
fi
free_mb=$(df -Pm . | awk 'NR == 2 { print $4 }')
if [ "${free_mb:-0}" -lt "$need_mb" ]; then
  say "the environment needs about $need_mb MB of disk, only $free_mb MB are free in $(pwd); free some and run the command again"
  exit 1
fi

log=$(mktemp "${TMPDIR:-/tmp}/aepo-setup.XXXXXX") || { say "cannot write to ${TMPDIR:-/tmp}; set TMPDIR to a writable folder"; exit 1; }
trap 'rm -f "$log"' EXIT
if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
  say "creating .venv with $("$python" --version)"
  if ! "$python" -m venv --clear .venv >"$log" 2>&1; then
    say "could not create .venv ($(tail -n 1 "$log")); on Debian and Ubuntu: apt install python3-venv"
    exit 1
  fi
fi
say "installing the pins of requirements.txt (minutes, once)"
install() { .venv/bin/python -m pip install --disable-pip-version-check "$@" 2>>"$log"; }
rm -f .venv/.aepo-*
{ install -r requirements.txt && install --no-deps --no-build-isolation -e . && : >"$stamp"; } |
  grep --line-buffered -E '^(Collecting|Installing|Successfully)' | cut -c1-100
[ -f "$stamp" ] && say "done" && exit 0
if grep -qiE 'no space left|disk quota' "$log"; then
  say "the disk is full; free about $need_mb MB and run the command again"
elif grep -qiE 'connection|resolve|network|timed out|from versions: none|ProxyError|NameResolution|unreachable|SSLError' "$log"; then
  say "the package index cannot be reached; check the network (or pip's settings) and run the command again, it goes on where it stopped"
else
  say "pip failed: $(grep -v '^WARNING' "$log" | tail -n 1)"
fi
exit 1
