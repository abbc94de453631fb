"""All that needs a GPU, in minutes, on a machine without a network: tests, timings, then tasks at the profile `full`.

python scripts/gpu.py [--seconds 480] [--output DIR]: ends by itself by then. Each part is a process of its own: one that
fails or takes too long is said, and the next goes on. What it finds is in DIR as it comes: log.txt, tests.xml, bench.csv (as
runs/bench.csv), results.csv (as runs/results.csv), seconds.csv; what an earlier visit left in runs/gpu is gone on from.
`--device cpu --profile smoke` goes the same way without a GPU. Wheels of wheels/ (`make gpu-wheels`) are installed beside
the work, in .test/gpu, where an import is missing. This script needs Python's own library alone.
"""

import argparse
import atexit
import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

START = time.monotonic()
ROOT = Path(__file__).resolve().parents[1]
RECOMMENDED = json.loads((ROOT / "runs" / "claims.json").read_text())["recommended"]
METHODS = ["bc-low-noise", "iql", "qgpo", RECOMMENDED]
TASKS = {  # at full those without a star first, then the others; quick to play before slow
    "full": "maze2d-medium local-swimmer-mixed local-pusher-mixed local-pointmaze-medium local-pointmaze-large "
    "local-ant-medium-expert maze2d-umaze local-hopper-medium-expert local-halfcheetah-mixed local-pointmaze-umaze "
    "maze2d-large local-walker2d-medium-expert local-hopper-mixed",
    "smoke": "maze2d-umaze local-swimmer-mixed",
}
SHARES = {"tests": 0.25, "bench": 0.3, "compile": 0.25, "study": 0.85, "table": 1.0}  # of the seconds left, at most
BAR = "%|"  # what a line of a progress bar has
SUMMARY = 4.0  # seconds kept for the end
LEAST = 8.0  # seconds without which no part begins
IMPORTS = "import gymnasium, gymnasium_robotics, mujoco, minari, pydantic, pyarrow, pytest, typer, yaml, aepo.cli"
HERE = """
import os, torch
from aepo import files
print(", ".join(f"{name} {version}" for name, version in files.versions().items()))
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
print(f"GPU: {gpu}, CUDA of torch: {torch.version.cuda}; {os.cpu_count()} cores")
"""


class Visit:
    """One stay on the machine: its deadline, its log, the processes it started, what is left."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.start = options, START
        self.left: list[str] = []
        self.running: set[subprocess.Popen] = set()
        self.ended, self.lock = False, threading.Lock()
        self.output, self.work = options.output.resolve(), options.work.resolve()
        for folder in (self.output, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        self.site = self.work / "site"
        own = {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), str(self.site), os.environ.get("PYTHONPATH")]))}
        own |= {"PYTHONUNBUFFERED": "1", "MPLBACKEND": "agg", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        given = {"OMP_NUM_THREADS": "1", "MINARI_DATASETS_PATH": str(self.work / "minari")}
        self.environment = {**given, **os.environ, **own}

    def rest(self) -> float:
        """Seconds until the deadline, less what the summary takes."""
        return self.options.seconds - SUMMARY - (time.monotonic() - self.start)

    def say(self, text: str) -> None:
        """A line of output and of the log."""
        with self.lock, open(self.output / "log.txt", "a") as log:
            line = f"[{time.monotonic() - self.start:5.0f}] {text}"
            print(line, flush=True)
            log.write(f"{line}\n")

    def run(self, name: str, command: list[str], seconds: float, quiet: bool = False) -> bool:
        """A command's output, line by line; whether it ended well. After so many seconds it is killed with its children."""
        seconds = min(seconds, self.rest())
        if seconds < LEAST:
            self.say(f"{name}: not begun, {max(seconds, 0):.0f} s are left")
            return False
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        with self.lock:
            if self.ended:
                return False
            process = subprocess.Popen(command, cwd=ROOT, env=self.environment, process_group=0, **pipes)
            self.running.add(process)
        killed = threading.Event()
        timer = threading.Timer(seconds, lambda: (killed.set(), self.kill(process)))
        timer.daemon = True
        timer.start()
        lines = []
        for line in process.stdout:
            if BAR in line or not line.strip():
                continue
            lines.append(line.rstrip())
            if not quiet:
                self.say(f"{name} | {lines[-1]}")
            if line.startswith("left: "):
                self.left.append(f"{name}: {line.removeprefix('left: ').strip()}")
        code = process.wait()
        timer.cancel()
        with self.lock:
            self.running.discard(process)
        if code and quiet:
            for line in lines[-8:]:
                self.say(f"{name} | {line}")
        if killed.is_set():
            self.say(f"{name}: stopped after {seconds:.0f} s")
        elif code:
            self.say(f"{name}: ended with code {code}")
        return code == 0

    def kill(self, process: subprocess.Popen) -> None:
        """End a process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def end(self) -> None:
        """End all that still runs, and begin nothing more."""
        with self.lock:
            self.ended = True
            for process in self.running:
                self.kill(process)

    def python(self, *words: object) -> list[str]:
        """A command of this Python."""
        return [sys.executable, *map(str, words)]


def install(visit: Visit) -> bool:
    """The wheels, where an import is missing; what is here."""
    quiet = {"cwd": ROOT, "env": visit.environment, "capture_output": True}
    wheels = sorted(str(path) for path in visit.options.wheels.resolve().glob("*.whl"))
    if wheels and subprocess.run(visit.python("-c", IMPORTS), **quiet).returncode:
        pip = ("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target")
        visit.run("install", visit.python(*pip, visit.site, *wheels), 90)
    return visit.run("imports", visit.python("-c", IMPORTS), 60) and visit.run("here", visit.python("-c", HERE), 60)


def tests(visit: Visit, seconds: float) -> bool:
    """Those marked gpu; without a GPU those that need none."""
    marks = ["-m", "gpu"] if visit.options.device == "cuda" else []
    words = ["-vv", "-ra", "--tb", "short", "-p", "no:cacheprovider", f"--junitxml={visit.output / 'tests.xml'}"]
    words += ["-o", "junit_family=xunit1"]  # which holds what tests report
    return visit.run("tests", visit.python("-m", "pytest", "tests/test_gpu.py", *marks, *words), seconds)


def _bench(visit: Visit, name: str, seconds: float, *words: object) -> bool:
    same = ["--device", visit.options.device, "--output", visit.output / "bench.csv", "--missing"]
    same += ["--seconds", max(seconds - 15, 1)]  # a case takes seconds: it ends by itself
    return visit.run(name, visit.python("-m", "benchmarks.bench", *same, *words), seconds)


def bench(visit: Visit, seconds: float) -> bool:
    """Every stage of 1, 4, 8 and 32 stacked seeds, captured against eager; calls at 1, 256 and 4,096 states."""
    stages = (
        "behavior critic energy-qgpo energy-aepo energy-aepo-net energy-aepo-support policy-gaussian policy-resampled"
    )
    words = ["--stages", *stages.split(), "--networks", "default", "--batches", 256, "--load", 0]
    if visit.options.profile == "smoke":
        words += ["--seeds", 1, 4, "--states", 1, 256, "--rounds", 1, "--patience", 0.1]
    else:
        words += ["--seeds", 1, 8, 32, 4, "--states", 1, 256, 4096, "--rounds", 5, "--patience", 0.6]
    return _bench(visit, "bench", seconds, *words)


def compiled(visit: Visit, seconds: float) -> bool:
    """torch.compile in place of the capture by hand."""
    words = ["--device", visit.options.device, "--output", visit.output / "bench.csv", "--rounds", 7, "--patience", 1]
    return visit.run("compile", visit.python("-m", "benchmarks.compiled", "--seeds", 8, *words), seconds)


def table(visit: Visit, seconds: float) -> bool:
    """A row for each of runs/bench.csv that a CPU has."""
    small = visit.options.profile == "smoke"
    words = ["--networks", "default", "--batches", 64, "--seeds", 1] if small else []
    words += ["--rounds", 5, "--patience", 0.5, "--load", 2_000 if small else 1_000_000]
    return _bench(visit, "table", seconds, *words)


def lacking(visit: Visit, task: str) -> list[str]:
    """The methods that have no episodes of a task at the profile, here or among the tracked ones."""
    done = set()
    for path in (visit.output / "results.csv", ROOT / "runs" / "results.csv"):
        if path.exists():
            with open(path, newline="") as file:
                done |= {(row["profile"], row["task"], row["method"]) for row in csv.DictReader(file)}
    return [method for method in visit.options.methods if (visit.options.profile, task, method) not in done]


def one_task(visit: Visit, name: str, task: str, seconds: float, *words: object, quiet: bool = False) -> bool:
    """scripts/gpu_study.py of a task."""
    same = ["--output", visit.output, "--runs-dir", visit.work / "runs", "--profile", visit.options.profile]
    return visit.run(name, visit.python("scripts/gpu_study.py", task, *same, *words), seconds, quiet)


def collecting(visit: Visit) -> dict[str, Future]:
    """The data of all tasks, made beside the tests and timings on the cores that these do not use."""
    pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 2))

    def make(task: str) -> bool:
        words = ("--collect", "--device", "cpu")
        return one_task(visit, f"collect {task}", task, visit.rest(), *words, quiet=True)

    return {task: pool.submit(make, task) for task in visit.options.tasks if lacking(visit, task)}


def study(visit: Visit, seconds: float, data: dict[str, Future]) -> bool:
    """The methods that tasks lack, in order, while there is time."""
    end, well = time.monotonic() + seconds, True
    for task in visit.options.tasks:
        left = min(end - time.monotonic(), visit.rest())
        if not (methods := lacking(visit, task)) or left < LEAST:
            continue
        try:
            made = data[task].result(timeout=left)
        except TimeoutError:
            visit.say(f"study: the data of {task} are not there yet")
            continue
        left = min(end - time.monotonic(), visit.rest())
        how = [
            "--seeds",
            visit.options.seeds,
            "--episodes",
            visit.options.episodes,
            "--until",
            time.time() + left - LEAST,
        ]
        how += ["--device", visit.options.device]
        well &= made and one_task(visit, "study", task, left, "--methods", *methods, *how)
    return well


def rows(path: Path) -> list[dict[str, str]]:
    """A CSV file with comments; none where there is none."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [*csv.DictReader(line for line in lines if not line.startswith("#"))]


def summary(visit: Visit) -> None:
    """What was measured against the targets, where time went, and what is left to do."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows(visit.output / "bench.csv"):
        if row["networks"] == "default" and (row["batch"] == "256" or row["case"].startswith("act")):
            found.setdefault((row["case"], row["batch"], row["seeds"]), {})[row["metric"]] = float(row["value"])
    for (case, batch, seeds), at in found.items():
        eight = found.get((case, batch, "8"), {}).get("ms")
        text = f"{case}, batch {batch}, {seeds} seeds: {at['ms']:.3f} ms"
        if case.startswith("compiled"):
            text += f", {at['ratio_captured']:.2f} of the captured step's; {at['compile_s']:.0f} s to compile"
        elif at.get("ratio_captured"):
            text += f", {1 / at['ratio_captured']:.1f} times as fast as eager (at least 5)"
        if seeds == "1" and eight:
            text += f"; 8 seeds take {eight / at['ms']:.2f} times as long (at most 1.5)"
        visit.say(text)
    took: dict[str, list[float]] = {}
    for row in rows(visit.output / "seconds.csv"):
        if row["what"].startswith(("behavior", "train", "evaluate")):
            own = [float(row[key]) for key in ("seconds", "environment_s", "checkpoints_s")]
            took[row["task"]] = [a + b for a, b in zip(took.get(row["task"], [0.0] * 3), own, strict=True)]
    for task, (whole, environment, saving) in took.items():
        inside = f"of them {environment:.0f} in environments, {saving:.0f} in checkpoints"
        visit.say(f"{task}: {whole:.0f} s for its methods (four: at most 180), {inside}")
    for task in visit.options.tasks:
        if methods := lacking(visit, task):
            visit.left.append(f"study: {task}: {', '.join(methods)}")
    visit.say("nothing is left to do" if not visit.left else "left to do:")
    for line in visit.left:
        visit.say(f"  {line}")


PARTS = {"tests": tests, "bench": bench, "compile": compiled, "study": study, "table": table}


def visit_machine(visit: Visit) -> bool:
    """All parts in their order; whether each ended well."""
    options, failed = visit.options, []
    install(visit)
    data = collecting(visit) if "study" in options.parts else {}
    for name in options.parts:
        left = visit.rest()
        seconds = left * (SHARES[name] if name != options.parts[-1] else 1.0)
        visit.say(f"== {name}: at most {max(seconds, 0):.0f} of {max(left, 0):.0f} s")
        try:
            well = PARTS[name](visit, seconds, *([data] if name == "study" else []))
        except Exception:
            visit.say(f"{name} failed:\n{traceback.format_exc()}")
            well = False
        if not well:
            failed.append(name)
            if name != "study":
                visit.left.append(f"{name}: not to its end: --parts {name}")
    visit.end()
    summary(visit)
    return not failed


def main() -> int:
    """Read the options, and visit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--profile", default="full", choices=["full", "smoke"])
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT") or ROOT / "runs" / "gpu"))
    parser.add_argument("--earlier", type=Path, default=ROOT / "runs" / "gpu", help="what an earlier visit wrote")
    parser.add_argument("--work", type=Path, default=ROOT / ".test" / "gpu", help="data, networks, installed wheels")
    parser.add_argument("--wheels", type=Path, default=ROOT / "wheels")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="in this order; without a GPU all but compile")
    parser.add_argument("--tasks", nargs="+", help="in this order")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=20, help="of each seed")
    options = parser.parse_args()
    options.tasks = options.tasks or TASKS[options.profile].split()
    options.parts = options.parts or [name for name in PARTS if options.device == "cuda" or name != "compile"]
    seen = subprocess.run([sys.executable, "-c", "import torch; print(torch.cuda.is_available())"], capture_output=True)
    if options.device == "cuda" and seen.stdout.strip() != b"True":
        sys.exit("torch sees no GPU: `--device cpu --profile smoke` goes the same way without one, to try it")
    visit = Visit(options)
    atexit.register(visit.end)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.earlier.resolve() != visit.output and options.earlier.is_dir():
        for path in options.earlier.glob("*.csv"):
            if not (visit.output / path.name).exists():
                shutil.copyfile(path, visit.output / path.name)
    well = visit_machine(visit)
    return 0 if well else 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # threads that wait for data would hold it
