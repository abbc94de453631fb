"""The study on a single-node Slurm, broken three ways, against the same study run here: equal bytes, or exit code 1.

`sh scripts/slurm_single_node.sh start` first; then `.venv/bin/python scripts/slurm_trial.py FOLDER [TASK ...]`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TASKS = ("maze2d-umaze", "maze2d-umaze-dense", "local-pointmaze-umaze", "local-invertedpendulum-mixed")
AEPO = str(Path(sys.executable).parent / "aepo")


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def command(runs: Path, tasks: list[str], *more: str) -> list[str]:
    options = {"task": ",".join(tasks), "profile": "smoke", "methods": "bc,aepo", "seeds": "1", "device": "cpu"}
    return [AEPO, "reproduce", *(f"--{key}={value}" for key, value in options.items()), f"--runs-dir={runs}", *more]


def queue(state: str = "") -> list[tuple[str, str, str]]:
    """Jobs in the queue: number, state and comment, which names rule and wildcards."""
    asked = ["timeout", "20", "squeue", "--noheader", "--format=%A %T %k", *(["--states", state] if state else [])]
    out = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return [tuple(line.split(maxsplit=2)) for line in out.splitlines() if "rule_" in line]


def wait(what: str, found: Callable[[], object], process: subprocess.Popen, seconds: float = 900.0):
    """What `found` returns as soon as it is something; the process must not end before."""
    end = time.time() + seconds
    while not (result := found()):
        if time.time() > end or process.poll() is not None:
            raise SystemExit(f"slurm_trial: {what} did not come (exit code {process.poll()})")
        time.sleep(0.1)
    return result


def training(folder: Path, notebook: str) -> str | None:
    """The number of the job of a notebook that trains, as 05_critic, and has left its first checkpoint."""
    if not list((folder / "checkpoints").glob(f"{notebook[3:]}.0*.safetensors")):
        return None
    wanted = f"rule_notebook_wildcards_{folder.name}_{notebook}"
    running = [number for number, _, comment in queue("RUNNING") if comment == wanted]
    return running[0] if running else None


def kill(job: str) -> None:
    """SIGKILL to every process of a job."""
    out = subprocess.run(["timeout", "20", "scontrol", "listpids", job], capture_output=True, text=True, check=True)
    for line in out.stdout.splitlines()[1:]:
        os.kill(int(line.split()[0]), signal.SIGKILL)


def contents(root: Path) -> dict[str, bytes]:
    """The bytes of all networks, evaluations and tables."""
    found = [*root.rglob("*.safetensors"), *root.rglob("returns.csv")]
    kept = [path for path in found if "checkpoints" not in path.parts]
    return {str(path.relative_to(root)): path.read_bytes() for path in kept}


def main(folder: Path, tasks: list[str]) -> None:
    """Local run, broken Slurm runs, comparison."""
    local, slurm = folder / "local" / "runs", folder / "slurm" / "runs"
    say(f"here: {len(tasks)} tasks")
    subprocess.run(command(local, tasks), check=True)

    say("Slurm, first call: interrupted (Ctrl-C) while its jobs run")
    first = subprocess.Popen(command(slurm, tasks, "--cluster=slurm"))
    wait("a running job", lambda: queue("RUNNING"), first)
    time.sleep(5)
    first.send_signal(signal.SIGINT)
    first.wait(timeout=120)
    time.sleep(3)
    left = [job for job in queue() if job[1] in ("RUNNING", "PENDING")]
    say(f"jobs left in the queue: {len(left)}")

    say("Slurm, second call: one job is killed, one is cancelled")
    second = subprocess.Popen(command(slurm, tasks, "--cluster=slurm"))
    root = slurm / "smoke"
    job = wait("a critic", lambda: training(root / tasks[0], "05_critic"), second)
    kill(job)
    say(f"SIGKILL to every process of job {job}, the critic of {tasks[0]}")
    job = wait("a behavior", lambda: training(root / tasks[1], "04_behavior"), second)
    subprocess.run(["timeout", "20", "scancel", job], check=True)
    say(f"scancel {job}, the behavior of {tasks[1]}")
    code = second.wait(timeout=3600)
    say(f"exit code {code}")

    expected, found = contents(local), contents(slurm)
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    say(f"{len(expected) - len(differing)} of {len(expected)} files have the same bytes as in the run here")
    figures = len(list((slurm.parent / "figures").rglob("*.png")))
    say(f"figures: {figures}, here {len(list((local.parent / 'figures').rglob('*.png')))}")
    if code or left or differing or not figures:
        raise SystemExit(f"slurm_trial: failed; differing: {', '.join(differing) or 'none'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:] or list(TASKS))
