"""What Snakemake's notebooks are doing, told from their files: a line when one starts, ends or fails, and what failed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from aepo.files import short
from aepo.study import notebooks

STAGE_LINE_SECONDS = 20.0
STALE_SECONDS = 600.0  # a progress file that is older belongs to a process that is gone
DID_NOT_END = "did not end (killed, cancelled, out of memory or of disk?)"


@dataclass(frozen=True)
class Part:
    """A folder that Snakemake fills, a task's or the theory's, and the notebooks that it runs there."""

    folder: Path
    notebooks: tuple[str, ...]

    @property
    def name(self) -> str:
        """The folder's name: the task's."""
        return self.folder.name

    def executed(self, notebook: str) -> Path:
        """Where an executed notebook is."""
        return self.folder / f"{notebook}.ipynb"

    def marks(self) -> dict[str, int]:
        """Notebooks that ran to their end, and when (nanoseconds)."""
        paths = {name: notebooks.mark(self.folder, name) for name in self.notebooks}
        return {name: path.stat().st_mtime_ns for name, path in paths.items() if path.exists()}

    def failure(self, since: float = 0.0) -> str | None:
        """One sentence on the first notebook that began after `since` (unix time) and did not end, or None."""
        done = self.marks()
        for name in self.notebooks:
            path = self.executed(name)
            said = None if name in done or _written(path) < since else _stopped(path)
            if said:
                return f"{name} {said}. Executed notebook: {short(path)}"
        return None


def _stopped(path: Path) -> str | None:
    """How an executed notebook stopped short: with the error of a cell, or DID_NOT_END; None where it did not."""
    try:
        notebook = json.loads(path.read_text())
    except OSError:
        return None
    except ValueError:  # papermill was cut off while it wrote
        return DID_NOT_END
    for cell in notebook.get("cells", []):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                return f"stopped with {output['ename']}: {output['evalue']}"
    return None if notebook.get("metadata", {}).get("papermill", {}).get("end_time") else DID_NOT_END


def _has_error(path: Path) -> bool:
    """Whether a cell of an executed notebook has stopped with an error, as papermill notes it."""
    try:
        return '"exception": true' in path.read_text()
    except (OSError, ValueError):
        return False


def _written(path: Path) -> float:
    """When a file was written (unix time); 0 where it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _clock(seconds: float) -> str:
    """Minutes and seconds as 3:07."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _stages_at_work(folder: Path) -> Iterator[str]:
    """Where each stage of a run folder stands: units done, units a second, time left."""
    for path in sorted((folder / "progress").glob("*.json")):
        if time.time() - _written(path) > STALE_SECONDS:
            continue
        try:
            bar = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        rate = (bar["n"] - bar["initial"]) / bar["elapsed"] if bar["elapsed"] else 0.0
        left = f", {_clock((bar['total'] - bar['n']) / rate)} left" if rate else ""
        yield f"{path.stem} {bar['n']:,}/{bar['total']:,} {bar['unit']}s, {rate:.0f}/s{left}"


class _Lines:
    """Lines on standard error, and under them in a terminal one that is rewritten; elsewhere it comes now and then."""

    def __init__(self, start: float):
        self.start, self.last, self.width = start, time.monotonic(), 0

    def say(self, text: str, **style) -> None:
        if self.width:
            print(f"\r{' ' * self.width}\r", end="", file=sys.stderr)
        typer.secho(f"[{_clock(time.time() - self.start)}] {text}", err=True, **style)
        self.width = 0

    def status(self, text: str) -> None:
        if sys.stderr.isatty():
            columns = shutil.get_terminal_size().columns - 1
            print("\r" + text[:columns].ljust(self.width), end="", file=sys.stderr, flush=True)
            self.width = min(len(text), columns)
        elif time.monotonic() - self.last > STAGE_LINE_SECONDS:
            self.last = time.monotonic()
            self.say(f"  {text}")


def watch(parts: Sequence[Part], process: subprocess.Popen, started: float) -> None:
    """Until Snakemake ends: a line when a notebook starts, ends or fails, and where the stages stand.

    Times count from `started` (unix time).
    """
    lines, many = _Lines(started), len(parts) > 1
    known, begun, looked, failed, ended = {part.name: part.marks() for part in parts}, {}, {}, {}, set()
    total, since = sum(len(part.notebooks) for part in parts), time.time()
    while True:
        over, done, stages = process.poll() is not None, 0, []
        for part in parts:
            label = f"{part.name} " if many else ""
            marks = part.marks()
            for name in part.notebooks:
                key, written = (part.name, name), _written(part.executed(name))
                if key not in begun and written >= since - 0.01:
                    begun[key] = time.time()
                    lines.say(f"{label}{name}: started")
                if name in marks and known[part.name].get(name) != marks[name] and key not in ended:
                    ended.add(key)  # Snakemake sets the time of a mark once more
                    lines.say(f"{label}{name}: done in {_clock(time.time() - begun.get(key, lines.start))}")
                elif key in begun and name not in marks and written != looked.get(key):
                    stopped = _has_error(part.executed(name))
                    if stopped and not failed.get(key):
                        lines.say(f"{label}{name}: failed", fg="red")
                    looked[key], failed[key] = written, stopped
            done += len(marks)
            stages += [label + stage for stage in _stages_at_work(part.folder)]
        if over:
            return
        if many:
            stages.insert(0, f"{done}/{total} notebooks")
        if stages:
            lines.status("   ".join(stages))
        time.sleep(0.25)
