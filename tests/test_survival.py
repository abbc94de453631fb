"""A stage that is killed goes on where it was and ends with the same bytes as an unbroken one."""

import os
import signal
import subprocess
import sys
import time

import pytest

from aepo import runs, training

WORK = """
import sys
from dataclasses import replace
import torch
torch.set_num_threads(1)
from aepo import datasets, results, runs, settings, stages, tasks
small = replace(
    settings.SMOKE,
    behavior=replace(settings.SMOKE.behavior, width=32, steps=400, variance_samples=64),
    critic=replace(settings.SMOKE.critic, width=32, steps=400),
    energy=replace(settings.SMOKE.energy, width=32, steps=400),
    evaluation=replace(settings.SMOKE.evaluation, episodes=1, solver_steps=2),
    chunk=20,
)
settings.PROFILES["smoke"] = small
run = runs.open_run("maze2d-umaze", [0, 1], ["bc", "aepo"], "smoke", "cpu", sys.argv[1])
datasets.prepare(run.task, "smoke", settings.SMOKE.data, progress=False)
data = datasets.load(run.task, "smoke")
print("ready", flush=True)
behavior = stages.train_behavior(run, data)
critic = stages.train_critic(run, data)
stages.train_energy(run, data, behavior, critic, "aepo")
results.write_returns(run, data)
"""


def start(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout.readline().strip() == b"ready"
    return process


def contents(folder):
    kept = [*folder.rglob("*.safetensors"), *folder.rglob("returns.csv")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


@pytest.mark.usefixtures("data")
def test_killed_stages_resume_to_the_same_bytes(tmp_path):
    unbroken = start(tmp_path / "unbroken")
    assert unbroken.wait(timeout=120) == 0
    expected = contents(tmp_path / "unbroken")
    assert {path.rsplit("/", 1)[1] for path in expected} == {
        "behavior.safetensors",
        "critic.safetensors",
        "energy-aepo-b3.safetensors",
        "bc.safetensors",
        "aepo.safetensors",
        "returns.csv",
    }
    broken, went_on = tmp_path / "broken", 0
    for stage in ("behavior", "critic", "energy-aepo-b3"):
        process = start(broken)
        deadline = time.time() + 60
        while not list(broken.rglob(f"{stage}.0*.safetensors")):
            assert time.time() < deadline
            assert process.poll() is None, f"{stage} ended before it could be killed"
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not list(broken.rglob(f"*/{stage}.safetensors"))
        went_on += len(list(broken.rglob(f"{stage}.0*.safetensors"))) > 0
    assert went_on == 3
    assert start(broken).wait(timeout=120) == 0
    assert contents(broken) == expected


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(run, data, tiny, capsys):
    from aepo import stages

    learner, _ = stages.behavior_learner(data, (0,), tiny.behavior)
    whole = training.fit(learner, 20, 1e-3, 5)
    folder = run.checkpoints()
    learner, _ = stages.behavior_learner(data, (0,), tiny.behavior)
    training.fit(learner, 20, 1e-3, 5, checkpoints=folder)
    assert [path.name for path in sorted(folder.iterdir())] == [
        "behavior.000003.safetensors",
        "behavior.000004.safetensors",
    ]
    last = folder / "behavior.000004.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    learner, _ = stages.behavior_learner(data, (0,), tiny.behavior)
    resumed = training.fit(learner, 20, 1e-3, 5, checkpoints=folder)
    assert "passed over a checkpoint" in capsys.readouterr().out
    assert resumed.equals(whole)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    runs.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        runs.write_json(path, {"a": object()})

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError), runs.atomic_path(path) as temporary:
        fail(temporary)
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_damaged_artifacts_are_named(tmp_path):
    import torch

    path = tmp_path / "critic.safetensors"
    runs.save_tensors(path, {"w": torch.ones(1000)}, {})
    good = path.read_bytes()
    for damage, said in ((good[:50], "cannot be read"), (good[:-4] + b"abcd", "is damaged"), (b"", "cannot be read")):
        path.write_bytes(damage)
        with pytest.raises(runs.StudyError, match=f"critic.safetensors {said}"):
            runs.load_tensors(path)
    path.write_bytes(good)
    assert runs.load_tensors(path)[0]["w"].sum() == 1000


def test_equal_content_gives_equal_bytes(tmp_path):
    import torch

    meta = {"settings": {"b": 1, "a": 2}, "stage": "x"}
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2)}
    runs.save_tensors(tmp_path / "one.safetensors", tensors, meta)
    runs.save_tensors(tmp_path / "two.safetensors", dict(reversed(tensors.items())), dict(reversed(meta.items())))
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
