"""`make reproduce`: start Snakemake on one task, show where every notebook stands, end with the table or the failure."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import nbformat

from aepo import lifeline, runs
from aepo.methods import METHODS
from aepo.networks import select_seeds
from aepo.results import format_table, read_returns, score_table
from aepo.runs import Run, StudyError

STAGE_LINE_SECONDS = 20.0


def reproduce(run: Run, cores: int) -> None:
    """Bring a run to its end and print its table: what is finished is not done again."""
    made = runs.products(run.folder, run.figures, run.methods, run.profile, run.task.env_id is not None)
    if not _bring_to_end(run, cores, "study", run.folder, made):
        print(f"Nothing to do: every notebook of {run.task.name} at {run.profile_name} is up to date in {run.folder}.")
    print_table(run.folder)
    _print_figures(run.figures)
    print(
        f"Executed notebooks, networks, manifest: {_short(run.folder)}   all episodes: {_short(run.folder / 'returns.csv')}"
    )


def theory(run: Run, cores: int) -> None:
    """Run the notebooks that need no task: the derivation and the exactly solvable problems."""
    _without_task(run, cores, "theory", runs.THEORY_FIGURES)


def performance(run: Run) -> None:
    """Run notebook 10 anew, with nothing beside it: times are not kept from an earlier run."""
    (run.folder.parent / "theory" / ".done" / "10_performance").unlink(missing_ok=True)
    _without_task(run, 1, "performance", runs.PERFORMANCE_FIGURES)


def _without_task(run: Run, cores: int, goal: str, drawn: Mapping[str, Sequence[str]]) -> None:
    folder, figures = run.folder.parent / "theory", run.figures.parent / "theory"
    if not _bring_to_end(run, cores, goal, folder, runs.theory_products(folder, figures, drawn)):
        print(f"Nothing to do: {', '.join(drawn)} at {run.profile_name} are up to date in {folder}.")
    print("Figures:")
    for notebook, names in drawn.items():
        for name in names:
            print(f"  {_short(figures / f'{notebook[:2]}_{name}.png')}")
    print(f"Executed notebooks: {_short(folder)}")


def _print_figures(folder: Path) -> None:
    print("Figures:")
    for path in sorted(folder.glob("*.png")):
        print(f"  {_short(path)}")


def _bring_to_end(run: Run, cores: int, goal: str, folder: Path, made: dict[str, list[Path]]) -> bool:
    """Let Snakemake reach a goal; whether any notebook ran. StudyError names the notebook that failed."""
    root = runs.project_root()
    if not (root / "Snakefile").exists():
        raise StudyError(f"there is no Snakefile at or above {Path.cwd()}: call this inside a checkout of the study")
    workdir = run.folder.parent
    name = folder.name
    runs.forget_incomplete(folder, made)
    with runs.lock(workdir, f"reproduce-{name}") as descriptor:
        shutil.rmtree(folder / "progress", ignore_errors=True)
        before = _marks(folder, made)
        log = folder / "snakemake.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "snakemake",
            goal,
            "--snakefile",
            str(root / "Snakefile"),
            "--directory",
            str(workdir / ".snakemake-work" / name),
            "--cores",
            str(cores),
            "--nolock",
            "--rerun-incomplete",
            "--keep-going",
            "--scheduler",
            "greedy",
            "--rerun-triggers",
            "mtime",
            "params",
            "input",
            "--latency-wait",
            "0",
            "--config",
            f"task={run.task.argument}",
            f"profile={run.profile_name}",
            f"methods={','.join(run.methods)}",
            f"seeds={len(run.seeds)}",
            f"device={run.device}",
            f"runs_dir={run.folder.parents[1]}",
        ]
        with open(log, "w") as output:
            process = lifeline.start(command, stdout=output, stderr=subprocess.STDOUT, cwd=root, pass_fds=[descriptor])
            try:
                _watch(folder, made, process)
            finally:
                lifeline.stop(process)
    if process.returncode:
        raise StudyError(_failure(folder, made, log))
    return _marks(folder, made) != before


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _marks(folder: Path, notebooks: Iterable[str]) -> dict[str, int]:
    paths = {name: folder / ".done" / name for name in notebooks}
    return {name: path.stat().st_mtime_ns for name, path in paths.items() if path.exists()}


def _watch(folder: Path, notebooks: Iterable[str], process: subprocess.Popen) -> None:
    """Until Snakemake ends: a line when a notebook starts and ends, and where its stages stand."""
    start, known, begun, last_line, width = time.time(), _marks(folder, notebooks), {}, time.monotonic(), 0
    terminal = sys.stderr.isatty()

    def say(text: str) -> None:
        nonlocal width
        print(f"\r{' ' * width}\r" if width else "", text, sep="", file=sys.stderr, flush=True)
        width = 0

    while True:
        ended = process.poll() is not None
        for name in notebooks:
            path = folder / f"{name}.ipynb"
            if name not in begun and path.exists() and path.stat().st_mtime >= start - 0.01:
                begun[name] = time.time()
                say(f"[{_clock(time.time() - start)}] {name}: started")
        for name, stamp in _marks(folder, notebooks).items():
            if known.get(name) != stamp:
                known[name] = stamp
                say(f"[{_clock(time.time() - start)}] {name}: done in {_clock(time.time() - begun.get(name, start))}")
        if ended:
            return
        status = "   ".join(_stage_lines(folder / "progress"))
        if status and terminal:
            columns = shutil.get_terminal_size().columns - 1
            print("\r" + status[:columns].ljust(width), end="", file=sys.stderr, flush=True)
            width = min(len(status), columns)
        elif status and time.monotonic() - last_line > STAGE_LINE_SECONDS:
            last_line = time.monotonic()
            say(f"[{_clock(time.time() - start)}]   {status}")
        time.sleep(0.25)


def _stage_lines(folder: Path) -> list[str]:
    lines = []
    for path in sorted(folder.glob("*.json")) if folder.exists() else []:
        try:
            bar = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        rate = (bar["n"] - bar["initial"]) / bar["elapsed"] if bar["elapsed"] else 0.0
        left = f", {_clock((bar['total'] - bar['n']) / rate)} left" if rate else ""
        lines.append(f"{path.stem} {bar['n']:,}/{bar['total']:,} {bar['unit']}s, {rate:.0f}/s{left}")
    return lines


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _failure(folder: Path, notebooks: Iterable[str], log: Path) -> str:
    """One sentence for the first notebook that stopped with an error, with where to look."""
    for name in notebooks:
        path = folder / f"{name}.ipynb"
        if (folder / ".done" / name).exists() or not path.exists():
            continue
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                if output.output_type == "error":
                    return f"{name} stopped with {output.ename}: {output.evalue}. Executed notebook: {_short(path)}"
    tail = [line for line in log.read_text().splitlines() if line.strip()][-1:]
    return f"Snakemake stopped ({' '.join(tail)}); its log is {_short(log)}"


def print_table(folder: Path) -> None:
    """The table of results of one run: last checkpoint, means over seeds and episodes, 95% bootstrap intervals."""
    table = score_table(read_returns(folder / "returns.csv"))
    print(
        f"\n{folder.name} ({folder.parent.name}): last checkpoint, mean and 95% bootstrap interval over seeds and episodes"
    )
    print(format_table(table).to_string(index=False), end="\n\n")


def export(folder: Path, target: Path, seed: int) -> int:
    """Copy one seed of the networks of a run's manifest to `target`; returns the bytes written."""
    evaluated = runs.read_manifest(folder).get("evaluation", {})
    stages = ["behavior", "critic"] + [
        runs.energy_stage(name, entry["beta"]) for name, entry in evaluated.items() if METHODS[name].energy
    ]
    if not evaluated:
        raise StudyError(f"{folder} is not evaluated yet: run `make reproduce` first")
    for stage in stages:
        tensors, meta = runs.load_tensors(folder / f"{stage}.safetensors")
        if seed not in meta["seeds"]:
            raise StudyError(f"{folder} holds seeds {meta['seeds']}, not {seed}")
        row, count = meta["seeds"].index(seed), len(meta["seeds"])
        chosen = {key: select_seeds(t, [row], count) for key, t in tensors.items() if not key.startswith("q_target.")}
        meta = {key: value for key, value in meta.items() if key not in ("format", "sha256")} | {"seeds": [seed]}
        runs.write_artifact(target / f"{stage}.safetensors", chosen, meta)
    runs.write_json(target / "manifest.json", runs.read_manifest(folder))
    return sum(path.stat().st_size for path in target.iterdir())
