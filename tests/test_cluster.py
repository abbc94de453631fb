"""Clusters: notebooks have partition, GPU, memory and time in one file; jobs of a killed call are cancelled."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from aepo import batch, files
from aepo.study import notebooks

ROOT = Path(__file__).parents[1]


def test_the_profile_has_a_place_for_every_notebook(tmp_path):
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    assert profile["keep-going"] is True
    assert profile["retries"] >= 1
    assert (
        profile["rerun-triggers"]
        == yaml.safe_load((ROOT / "profiles/default/config.yaml").read_text())["rerun-triggers"]
    )
    assert set(profile["set-resources"]) == {"notebook"}
    command = [sys.executable, "-m", "snakemake", "-n", "--directory", str(tmp_path), "--workflow-profile"]
    command += ["profiles/slurm", "--config", "suite=maze2d", "profile=smoke", "methods=bc,aepo,iql"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, f"runs_dir={tmp_path / 'runs'}"], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = done.stdout + done.stderr
    planned = re.findall(r"^rule notebook:.*?notebook=(\S+)\n +resources: (.*?)$", text, re.MULTILINE | re.DOTALL)
    assert {name for name, _ in planned} == set(notebooks.of_methods(notebooks.STUDY, ["bc", "aepo", "iql"]))
    for name, resources in planned:
        small = name == "08_results"
        assert f"mem_mb={2000 if small else 4000}," in resources
        assert f"gpu={int(not small and name != '03_dataset')}" in resources
        assert "slurm_partition=main" in resources
        assert f"runtime={30 if small else 480}" in resources


def test_a_cluster_is_a_folder_of_profiles():
    assert batch.profile_folder("") is None
    assert batch.profile_folder("slurm") == ROOT / "profiles" / "slurm"
    assert batch.profile_folder(str(ROOT / "profiles" / "slurm")) == ROOT / "profiles" / "slurm"
    with pytest.raises(files.StudyError, match="no cluster profile 'moon'"):
        batch.profile_folder("moon")


def test_jobs_of_a_killed_call_are_cancelled_and_no_others(tmp_path, monkeypatch):
    place = batch.Place(2, 8000, "auto", ROOT / "profiles" / "slurm")
    prefix = place.slurm_prefix(tmp_path, ["a", "b"])
    assert prefix != place.slurm_prefix(tmp_path, ["a"])
    assert batch.Place(2, 8000, "auto").slurm_prefix(tmp_path, ["a"]) == ""
    for name, body in {
        "squeue": f"echo 7 {prefix}_x; echo 8 a name of four words; echo; echo 9 {prefix}_y",
        "scancel": "echo $* >called",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    batch.cancel("")
    assert not (tmp_path / "called").exists()
    batch.cancel(prefix)
    assert (tmp_path / "called").read_text() == "7 9\n"
    (tmp_path / "squeue").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(files.StudyError, match="Slurm does not answer"):
        batch.cancel(prefix)


@pytest.mark.slurm
def test_a_broken_study_on_slurm_ends_as_the_one_here(tmp_path):
    """`sh scripts/slurm_single_node.sh start` first; four tasks, about a quarter of an hour on two cores."""
    done = subprocess.run(
        [sys.executable, "scripts/slurm_trial.py", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
