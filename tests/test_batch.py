"""Many tasks in one DAG: what it holds, what one failure keeps the rest from, and what the summary says of it."""

import collections
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import samples
import yaml

from aepo import Policy, batch
from aepo.data import tasks
from aepo.study import notebooks, results, runs

ROOT = Path(__file__).parents[1]
AEPO = Path(sys.executable).parent / "aepo"


def dry_run(tmp_path, *values, options=(), runs_dir=None):
    """Snakemake's plan: how many jobs each notebook has, and all that it printed."""
    command = [sys.executable, "-m", "snakemake", "-n", "--cores", "2", "--directory", str(tmp_path), *options]
    command += ["--config", "profile=smoke", f"runs_dir={runs_dir or tmp_path / 'runs'}", *values]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    jobs = collections.Counter(re.findall(r"wildcards: .*notebook=([^-\s]+)", text))
    total = re.search(r"^total +(\d+)$", text, re.MULTILINE)
    assert (int(total[1]) if total else 1) == sum(jobs.values()) + 1
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


def test_a_failed_task_is_one_line_and_the_rest_goes_on(tmp_path):
    """Two own tasks: one lacks an energy, and its other method is evaluated all the same; the other has no data."""
    samples.write_pendulum(tmp_path / "data.hdf5")
    (tmp_path / "none.hdf5").write_bytes(b"no HDF5")
    own = {"dataset": "data.hdf5", "env_id": "Pendulum-v1", "horizon": 30, "references": [-1600, -150]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(own))
    (tmp_path / "none.yaml").write_text(yaml.safe_dump({"dataset": "none.hdf5", "env_id": None, "horizon": 200}))
    folder = tmp_path / "runs" / "smoke"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "energy-aepo-b3.safetensors").write_bytes(b"damaged")
    options = {"task": f"{tmp_path}/mine.yaml,{tmp_path}/none.yaml", "profile": "smoke", "methods": "bc,aepo"}
    options |= {"seeds": "1", "device": "cpu", "runs-dir": str(tmp_path / "runs")}
    command = [str(AEPO), "reproduce", *(f"--{key}={value}" for key, value in options.items())]
    environment = os.environ | {"MINARI_DATASETS_PATH": str(tmp_path / "minari")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    for name, notebook in (("mine", "06_energy-aepo"), ("none", "03_dataset")):
        lines = [line for line in done.stderr.splitlines() if line.startswith(f"{name}: ")]
        assert len(lines) == 1
        assert lines[0].startswith(f"{name}: {notebook} stopped with StudyError: ")
        assert lines[0].endswith(f"Executed notebook: {folder / name / notebook}.ipynb")
        assert "cannot be read" in lines[0] or name == "none"
        assert done.stderr.count(f"{name} {notebook}: failed") == 1  # what cannot change is not tried twice
    assert "missing: mine: aepo\nmissing: none: bc, aepo\n" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("aepo: 2 of 2 tasks failed (mine, none)")
    assert set(runs.read_manifest(folder / "mine")["evaluation"]) == {"bc"}
    assert (folder / "mine" / "energy-aepo-b3.safetensors").read_bytes() == b"damaged"
    returns = results.read_returns(folder / "mine" / "returns.csv")
    assert returns["score"].notna().all()
    assert returns["success"].isna().all()
    assert (tmp_path / "figures" / "smoke" / "mine" / "07_trajectories.png").exists()
    assert Policy.load(folder / "mine", "bc").act(np.zeros(3)).shape == (1,)


def test_a_notebook_is_told_as_its_file_grows(tmp_path):
    """A file that papermill is just writing says nothing; what failed and is tried again has started again."""
    path = tmp_path / "03_dataset.ipynb"
    looked = batch._Changes(batch.Part(tmp_path, ("03_dataset",)))
    error = {"output_type": "error", "ename": "StudyError", "evalue": "no data", "traceback": []}

    def after(text):
        path.write_text(text)
        os.utime(path, ns=(after.clock, after.clock))
        after.clock += 10**9
        return list(looked.look())

    after.clock = time.time_ns()
    notebook = {"cells": [{"outputs": []}], "metadata": {"papermill": {}}}
    begun, failed = json.dumps(notebook), json.dumps(notebook | {"cells": [{"outputs": [error]}]})
    assert after(begun) == ["03_dataset: started"]
    assert after(failed[:50]) == []
    assert after(failed) == ["03_dataset: failed"]
    assert after("") == after(failed[:-1]) == after(failed) == []
    assert after(begun) == ["03_dataset: started"]


def test_of_one_task_the_failure_is_its_notebook_and_its_reason(tmp_path):
    run = runs.open_run("maze2d-umaze", [0], ["bc"], "smoke", "cpu", tmp_path / "runs")
    error = {"output_type": "error", "ename": "StudyError", "evalue": "no data", "traceback": []}
    path = run.folder / "04_behavior.ipynb"
    path.write_text(json.dumps({"cells": [{"outputs": [error]}], "metadata": {}}))
    work = batch.Work(
        "study", [run], [batch.Part(run.folder, ("03_dataset", "04_behavior"))], batch.Place(1, 1000, "cpu")
    )
    work.log.write_text("")
    assert work.failure(0.0) == f"04_behavior stopped with StudyError: no data. Executed notebook: {path}"
    path.unlink()
    work.log.write_text("one\nlast\n")
    assert work.failure(0.0).endswith("snakemake.log ends with: last")


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
