"""Shared fixtures: a temporary Minari folder unless one is given, tiny real data, tiny settings."""

import os
import tempfile
from dataclasses import replace

os.environ.setdefault("MINARI_DATASETS_PATH", tempfile.mkdtemp(prefix="aepo-test-minari-"))
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
import torch

from aepo import settings
from aepo.data import datasets, tasks
from aepo.study import runs

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data():
    """The smoke dataset of maze2d-umaze, made in the real environment."""
    task = tasks.get("maze2d-umaze")
    datasets.prepare(task, "smoke", settings.SMOKE.data)
    return datasets.load(task, "smoke")


@pytest.fixture
def tiny(monkeypatch):
    """Settings of each stage, small enough for a unit test; the smoke profile has them too."""
    made = settings.Profile(
        behavior=replace(settings.SMOKE.behavior, width=16, steps=20, batch=32, variance_times=5, variance_samples=64),
        critic=replace(settings.SMOKE.critic, width=16, steps=20, batch=32, support=3, support_steps=2, discount=0.98),
        energy=replace(settings.SMOKE.energy, width=16, steps=20, batch=32, target_batches=2),
        policy=replace(settings.SMOKE.policy, width=16, steps=20, critic_steps=20, batch=32),
        chunk=10,
    )
    trained = {stage: getattr(made, stage) for stage in ("behavior", "critic", "energy", "policy")}
    monkeypatch.setitem(settings.PROFILES, "smoke", replace(settings.SMOKE, **trained))
    return made


@pytest.fixture
def run(tmp_path):
    """A run folder of the smoke profile with seeds 0 and 1."""
    return runs.open_run("maze2d-umaze", [0, 1], ["bc", "aepo"], "smoke", "cpu", tmp_path / "runs")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A temporary folder, with a Minari folder of this test alone in it."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path


LONGEST = (
    "test_reproduce",
    "test_survival",
    "test_own_task",
    "test_batch",
    "test_paths",
)  # begun first, so that no core waits for one


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
