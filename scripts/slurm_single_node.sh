#!/bin/sh
# A Slurm cluster of this one machine, for trying profiles/slurm (Debian or Ubuntu, as root): start, stop, status.
set -eu
cd "$(dirname "$0")/.."
state=${AEPO_SLURM_STATE:-/tmp/aepo-slurm}
say() { printf 'slurm_single_node: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

start() {
  [ "$(id -u)" = 0 ] || fail "run it as root: it installs packages and starts daemons"
  if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
    say "installing slurm-wlm and munge"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
  fi
  mkdir -p "$state/log" "$state/state" "$state/spool" /etc/slurm /run/munge
  for name in slurm.conf gres.conf; do
    if [ -e "/etc/slurm/$name" ] && ! grep -q "made by slurm_single_node.sh" "/etc/slurm/$name"; then
      fail "/etc/slurm/$name is another cluster's: it is left as it is"
    fi
    sed -e "s|@HOST@|$(hostname -s)|g" -e "s|@STATE@|$state|g" -e "s|@CPUS@|$(nproc)|g" \
      -e "s|@MEMORY@|$(awk '/MemTotal/ { print int($2 / 1024 * 0.9) }' /proc/meminfo)|g" \
      "profiles/slurm/single-node/$name" >"/etc/slurm/$name"
  done
  chown munge: /run/munge
  pgrep -x munged >/dev/null || runuser -u munge -- /usr/sbin/munged
  pgrep -x slurmctld >/dev/null || slurmctld
  pgrep -x slurmd >/dev/null || slurmd
  for _ in $(seq 30); do
    if timeout 5 sinfo -h -o %T 2>/dev/null | grep -q -e idle -e mixed -e allocated; then
      timeout 60 srun -t 1 --mem=50 true || fail "a first job did not run: see $state/log"
      say "ready: $(timeout 5 sinfo -h -o '%n: %c cores, %m MB, %G')"
      return
    fi
    timeout 5 scontrol update "NodeName=$(hostname -s)" State=RESUME 2>/dev/null || true
    sleep 1
  done
  fail "the node did not come up: see $state/log"
}

stop() {
  timeout 5 scancel --user root 2>/dev/null || true
  for pid in "$state/slurmctld.pid" "$state/slurmd.pid" /run/munge/munged.pid; do
    [ -s "$pid" ] || continue
    number=$(cat "$pid")
    kill "$number" 2>/dev/null || continue
    for _ in $(seq 100); do
      kill -0 "$number" 2>/dev/null || break
      sleep 0.1
    done
  done
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  status) timeout 5 sinfo && timeout 5 squeue ;;
  *) fail "usage: $0 start | stop | status" ;;
esac
