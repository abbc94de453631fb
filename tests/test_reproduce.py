"""`aepo reproduce` as a user meets it: killed, called again, its figures deleted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TASK = "smoke/maze2d-umaze"


def command(runs):
    script = Path(sys.executable).parent / "aepo"
    return [
        str(script),
        "reproduce",
        "--profile",
        "smoke",
        "--runs-dir",
        str(runs),
        "--methods",
        "bc,aepo",
        "--seeds",
        "1",
        "--device",
        "cpu",
    ]


def reproduce(runs):
    return subprocess.run(command(runs), cwd=ROOT, capture_output=True, text=True, timeout=300)


def processes(word):
    """Process ids whose command line holds `word`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and word in entry.joinpath("cmdline").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.usefixtures("data")
def test_a_killed_study_is_finished_by_the_next_call(tmp_path):
    broken = tmp_path / "broken" / "runs"
    first = subprocess.Popen(command(broken), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not list((broken / TASK / "checkpoints").glob("critic.*")):
        assert time.time() < deadline
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()
    for pid in processes(str(broken)):
        os.kill(pid, signal.SIGKILL)
    first.wait()
    assert not (broken / TASK / "critic.safetensors").exists()

    finished = reproduce(broken)
    assert finished.returncode == 0, finished.stderr
    assert " aepo " in finished.stdout

    again = reproduce(broken)
    assert again.returncode == 0
    assert "Nothing to do" in again.stdout
    assert "started" not in again.stderr

    (broken.parent / "figures" / TASK / "08_scores.png").unlink()
    redrawn = reproduce(broken)
    assert "08_results: started" in redrawn.stderr
    assert "07_evaluation: started" not in redrawn.stderr
    assert (broken.parent / "figures" / TASK / "08_scores.png").exists()

    stamps = {path: path.stat().st_mtime_ns for path in (broken / TASK).glob("*.safetensors")}
    figures = broken.parent / "figures" / TASK
    drawn = sorted(path.name for path in figures.iterdir())
    for name in drawn:
        if name[:2] in ("07", "08", "09"):
            (figures / name).unlink()
    redrawn = reproduce(broken)
    assert redrawn.returncode == 0
    assert "07_evaluation: started" in redrawn.stderr
    assert "05_critic: started" not in redrawn.stderr
    assert sorted(path.name for path in figures.iterdir()) == drawn
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert not processes(str(tmp_path))


@pytest.mark.usefixtures("data")
def test_a_failed_notebook_is_named_with_its_reason(tmp_path):
    runs = tmp_path / "runs"
    folder = runs / TASK
    folder.mkdir(parents=True)
    (folder / "behavior.safetensors").write_bytes(b"not a safetensors file")
    failed = reproduce(runs)
    assert failed.returncode == 1
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith("aepo: 04_behavior stopped with StudyError: ")
    assert "behavior.safetensors cannot be read" in last
    assert (folder / "04_behavior.ipynb").exists()
    assert (folder / "behavior.safetensors").read_bytes() == b"not a safetensors file"
