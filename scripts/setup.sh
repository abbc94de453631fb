#!/bin/sh
# Builds .venv with the exact pins of requirements.txt; does nothing when it is already built from the same pins.
# `setup.sh docs/requirements.txt` adds those of the site to it, in the same way.
set -u
cd "$(dirname "$0")/.." || exit 1
need_mb=${AEPO_SETUP_MB:-4000}
say() { printf 'aepo setup: %s\n' "$*" >&2; }

more=${1:-}
kind=aepo
[ -n "$more" ] && kind=site
stamp=.venv/.$kind-$(cat requirements.txt pyproject.toml ${more:+"$more"} | cksum | cut -d' ' -f1)
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
say "installing the pins of ${more:-requirements.txt} (once)"
install() { .venv/bin/python -m pip install --disable-pip-version-check "$@" 2>>"$log"; }
uv_command() { # pip's settings in uv's words, so that the same builds come from the same places
  .venv/bin/python -m pip config list | .venv/bin/python -c '
import ast, shlex, sys
found = dict(line.rstrip().split("=", 1) for line in sys.stdin)
def setting(name):
    values = [ast.literal_eval(found.get(f"{place}.{name}", "None")) for place in (":env:", "install", "global")]
    return next((value for value in values if value), "")
env = {"SSL_CERT_FILE": "cert", "UV_HTTP_TIMEOUT": "default-timeout", "ALL_PROXY": "proxy"}
words = ["env", *(f"{own}={setting(name)}" for own, name in env.items() if setting(name))]
words += [".venv/bin/uv", "pip", "install", "--python", ".venv/bin/python", "--index-strategy", "unsafe-best-match"]
options = {"index-url": "--default-index", "extra-index-url": "--index", "find-links": "--find-links"}
options |= {"constraint": "--constraint", "trusted-host": "--allow-insecure-host"}
words += [f"{option}={value}" for name, option in options.items() for value in setting(name).split()]
print(shlex.join(words + ["--no-index"] * (setting("no-index") in ("1", "true", "yes"))))'
}
by_uv() {
  install "$(grep '^uv==' requirements.txt)" >>"$log" && command=$(uv_command) &&
    eval "$command -r requirements.txt ${more:+-r $more}" 2>&1 && eval "$command --no-deps --no-build-isolation -e ." 2>&1
}
by_pip() { install -r requirements.txt ${more:+-r "$more"} && install --no-deps --no-build-isolation -e .; }
rm -f .venv/."$kind"-*
{ by_uv || { echo "uv could not install them, so pip does (minutes)"; by_pip; } && : >"$stamp"; } | tee -a "$log" |
  grep --line-buffered -E '^(uv could|Resolved|Prepared|Installed|Collecting|Installing|Successfully)' | cut -c1-100
[ -f "$stamp" ] && say "done" && exit 0
if grep -qiE 'no space left|disk quota' "$log"; then
  say "the disk is full; free about $need_mb MB and run the command again"
elif grep -qiE 'connection|resolve|network|timed out|from versions: none|ProxyError|NameResolution|unreachable|SSLError' "$log"; then
  say "the package index cannot be reached; check the network (or pip's settings) and run the command again, it goes on where it stopped"
else
  say "pip failed: $(grep -v '^WARNING' "$log" | tail -n 1)"
fi
exit 1
