"""Many tasks in one DAG: what it holds, what one failure keeps the rest from, and what the summary says of it."""

import collections
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from aepo import batch
from aepo.data import tasks
from aepo.study import notebooks, runs

ROOT = Path(__file__).parents[1]
AEPO = Path(sys.executable).parent / "aepo"


def dry_run(tmp_path, *values, options=()):
    """Snakemake's plan: how many jobs each notebook has, and all that it printed."""
    command = [sys.executable, "-m", "snakemake", "-n", "--cores", "2", "--directory", str(tmp_path), *options]
    command += ["--config", "profile=smoke", f"runs_dir={tmp_path / 'runs'}", *values]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    total = int(re.search(r"^total +(\d+)$", text, re.MULTILINE)[1])
    jobs = collections.Counter(re.findall(r"wildcards: .*notebook=([^-\s]+)", text))
    assert total == sum(jobs.values()) + 1
    return jobs, text


def test_a_suite_is_one_plan_and_stages_are_shared_between_methods(tmp_path):
    jobs, text = dry_run(tmp_path, "suite=maze2d", "methods=bc,aepo,aepo-net,qgpo", "device=cpu")
    once = ("03_dataset", "04_behavior", "05_critic", "07_evaluation", "08_results", "09_guidance_on_real_tasks")
    assert jobs == {"06_energy": 18} | dict.fromkeys(once, 6)
    assert text.count("mem_mb=3000, ") + text.count("mem_mb=1500, ") == sum(jobs.values())


def test_tasks_are_chosen_by_name_or_by_suite(tmp_path):
    assert [t.name for t in tasks.choose("maze2d-large, maze2d-umaze,maze2d-large")] == ["maze2d-large", "maze2d-umaze"]
    assert [t.name for t in tasks.choose("", "maze2d")] == [t.name for t in tasks.suite("maze2d")]
    assert [t.name for t in tasks.choose()] == ["maze2d-umaze"]
    with pytest.raises(ValueError, match="unknown task 'maze2d-moon'"):
        tasks.choose("maze2d-umaze,maze2d-moon")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        own = {"dataset": "mine/pendulum-v0", "env_id": "Pendulum-v1", "horizon": 200}
        (tmp_path / folder / "my.yaml").write_text(yaml.safe_dump(own))
    with pytest.raises(ValueError, match="two of the tasks have the name 'my'"):
        tasks.choose(f"{tmp_path}/one/my.yaml,{tmp_path}/two/my.yaml")


def test_defaults_are_to_go_on_and_to_try_twice():
    profile = yaml.safe_load((ROOT / "profiles/default/config.yaml").read_text())
    assert profile["keep-going"] is True
    assert profile["retries"] == 1


@pytest.mark.usefixtures("data")
def test_a_failed_task_is_one_line_and_the_rest_goes_on(tmp_path):
    """One task has no data; another lacks one energy, and its other method is evaluated all the same."""
    folder = tmp_path / "runs" / "smoke"
    (tmp_path / "mine.hdf5").write_bytes(b"no HDF5")
    own = {"dataset": "mine.hdf5", "env_id": None, "horizon": 200}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(own))
    (folder / "maze2d-umaze").mkdir(parents=True)
    (folder / "maze2d-umaze" / "energy-aepo-b3.safetensors").write_bytes(b"damaged")
    options = {"task": f"maze2d-umaze,{tmp_path / 'mine.yaml'}", "profile": "smoke", "methods": "bc,aepo", "seeds": "1"}
    command = [str(AEPO), "reproduce", *(f"--{key}={value}" for key, value in options.items()), "--device=cpu"]
    done = subprocess.run([*command, f"--runs-dir={tmp_path / 'runs'}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    for name, notebook in (("maze2d-umaze", "06_energy-aepo"), ("mine", "03_dataset")):
        lines = [line for line in done.stderr.splitlines() if line.startswith(f"{name}: ")]
        assert len(lines) == 1
        assert lines[0].startswith(f"{name}: {notebook} stopped with StudyError: ")
        assert lines[0].endswith(f"Executed notebook: {folder / name / notebook}.ipynb")
        assert done.stderr.count(f"{name} {notebook}: failed") == 2  # tried twice
    assert "missing: maze2d-umaze: aepo\nmissing: mine: bc, aepo\n" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("aepo: 2 of 2 tasks failed (maze2d-umaze, mine)")
    assert set(runs.read_manifest(folder / "maze2d-umaze")["evaluation"]) == {"bc"}
    assert (folder / "maze2d-umaze" / ".done" / "08_results").exists()


@pytest.mark.parametrize(
    ("ending", "calls"),
    [
        ("kill -9 $$", 1),
        ("echo 'Will exit after finishing currently running jobs (scheduler).'; exit 1", 1),
        ("echo 'Terminating processes on user request, this might take some time.'; exit 1", 1),
        ("echo 'Error in rule energy:'; exit 1", 2),
    ],
)
def test_only_a_failure_lets_the_rest_be_evaluated_without_it(tmp_path, monkeypatch, ending, calls):
    """Snakemake that was killed in an energy says nothing of that energy: a table without its method would be wrong."""
    run = runs.open_run("maze2d-umaze", [0], ["bc", "aepo"], "smoke", "cpu", tmp_path / "runs")
    (run.folder / ".done").mkdir(parents=True)
    for notebook in ("04_behavior", "05_critic"):
        (run.folder / ".done" / notebook).touch()
    started, start = [], batch.lifeline.start
    monkeypatch.setattr(
        batch.lifeline, "start", lambda command, **more: started.append(command) or start(["sh", "-c", ending], **more)
    )
    part = batch.Part(run.folder, tuple(notebooks.of_methods(notebooks.STUDY, run.methods)))
    before = part.marks()
    assert batch.bring_to_end(batch.Work("study", [run], [part], batch.Place(1, 1000, "cpu")))
    assert part.marks() == before
    assert len(started) == calls
    assert ["partial=1" in command for command in started] == [False, True][:calls]
