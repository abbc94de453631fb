"""`aepo reproduce` as a user meets it: the smoke study of the checkout itself, killed and called again, for nbval later."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_batch import dry_run

ROOT = Path(__file__).parents[1]
RUN = ROOT / "runs/smoke/maze2d-umaze"
FIGURES = ROOT / "figures/smoke/maze2d-umaze"
COMMAND = [str(Path(sys.executable).parent / "aepo"), "reproduce", "--profile", "smoke", "--device", "cpu"]


def reproduce(*options):
    return subprocess.run([*COMMAND, *options], cwd=ROOT, capture_output=True, text=True, timeout=600)


def planned(tmp_path):
    """Notebooks that the next call would run."""
    return set(dry_run(tmp_path, "task=maze2d-umaze", "device=cpu", runs_dir=ROOT / "runs")[0])


@pytest.mark.usefixtures("data")
def test_a_killed_study_is_finished_by_the_next_call(tmp_path):
    for folder in (RUN, FIGURES):
        shutil.rmtree(folder, ignore_errors=True)
    first = subprocess.Popen(COMMAND, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 240
    while not list((RUN / "checkpoints").glob("critic.*")):
        assert time.time() < deadline
        assert first.poll() is None
        time.sleep(0.01)
    below = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    for process in below:
        os.kill(process.pid, signal.SIGKILL)
    first.wait()
    assert not (RUN / "critic.safetensors").exists()

    finished = reproduce()
    assert finished.returncode == 0, finished.stderr
    assert "03_dataset: started" not in finished.stderr
    assert " aepo " in finished.stdout

    again = reproduce()
    assert again.returncode == 0
    assert "Nothing to do" in again.stdout
    assert "started" not in again.stderr
    assert planned(tmp_path) == set()

    shutil.copytree(RUN / ".done", tmp_path / "done")  # with their times
    for pattern, rerun in (("08_*", {"08_results"}), ("0[78]_*", {"07_evaluation", "08_results"})):
        taken = [path.rename(tmp_path / path.name) for path in FIGURES.glob(pattern)]
        assert planned(tmp_path) == rerun
        for path in taken:
            path.rename(FIGURES / path.name)
        shutil.copytree(tmp_path / "done", RUN / ".done", dirs_exist_ok=True)
    assert planned(tmp_path) == set()
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert [line for line in lines if str(RUN.parent) in line] == []
