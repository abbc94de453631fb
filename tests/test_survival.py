"""Nothing is lost: kills at random moments, torn and foreign checkpoints, two processes at once, lifelines, locks."""

import fcntl
import functools
import multiprocessing as mp
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aepo import batch, files, lifeline, settings
from aepo.learners import behavior as behavior_stage
from aepo.learners import checkpoints, training
from aepo.study import evaluation, runs, stages

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_ten_kills_change_nothing():
    """`make test-survival` is the same with sixty."""
    command = [sys.executable, "scripts/survival.py", "--kills", "10", "--parents", "1", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1_500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^10 of 10 the same, in \d+ s$", done.stdout, re.MULTILINE)


def trained(run, data, tiny, **more):
    """The log of a behavior training with checkpoints every 5 of 20 steps."""
    learner, _ = behavior_stage.behavior_learner(data, (0,), tiny.behavior)
    return training.fit(learner, 20, 1e-3, 5, **more)


def rewrite(change, **more):
    """A checkpoint with other tensors, its checksum right."""

    def spoil(path):
        tensors, meta = files.load_tensors(path)
        change(tensors)
        files.save_tensors(path, tensors, {k: v for k, v in meta.items() if k not in ("format", "sha256")} | more)

    return spoil


class Evil:
    """Unpickled, it would end the tests."""

    def __reduce__(self):
        return os._exit, (9,)


def drop(tensors):
    tensors.pop("adam.0.exp_avg")


def spoil_first(value):
    return lambda tensors: next(v for k, v in tensors.items() if k.endswith("out.weight")).view(-1)[:1].fill_(value)


SPOILED = {
    "torn": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cannot be read"),
    "header": (lambda path: path.write_bytes(path.read_bytes()[:50]), "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "a bit": (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x55"), "is damaged"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(Evil())), "cannot be read"),
    "NaN": (rewrite(spoil_first(float("nan"))), "no number in module"),
    "missing": (rewrite(drop), "no tensor, or no number in adam.0.exp_avg"),
    "shape": (rewrite(lambda t: t.update(log=torch.ones(2, 2))), "wrong shape, no tensor, or no number in log"),
    "format": (rewrite(lambda t: None, format=99), "has format 99"),
    "chunks": (rewrite(lambda t: None, chunks=None), "wrong shape"),
}


@pytest.mark.parametrize(("spoil", "said"), SPOILED.values(), ids=SPOILED)
def test_a_bad_checkpoint_is_passed_over_for_the_one_before(run, data, tiny, capsys, spoil, said):
    folder = run.folder / "checkpoints"
    whole = trained(run, data, tiny, checkpoints=folder)
    assert [path.name[9:-12] for path in sorted(folder.iterdir())] == ["000003", "000004"]
    spoil(folder / "behavior.000004.safetensors")
    capsys.readouterr()
    assert trained(run, data, tiny, checkpoints=folder).equals(whole)
    out = capsys.readouterr().out
    assert "behavior: passed over a checkpoint for the one before it" in out
    assert "behavior.000004.safetensors" in out
    assert said in out


def test_checkpoints_that_are_passed_over_do_not_cost_the_new_ones(run, data, tiny):
    """They have higher numbers than those of the training that starts anew."""
    folder = run.folder / "checkpoints"
    folder.mkdir(parents=True)
    for chunks in (39, 40):
        (folder / f"behavior.{chunks:06d}.safetensors").write_bytes(b"torn")
    trained(run, data, tiny, checkpoints=folder)
    assert [path.name[9:-12] for path in sorted(folder.iterdir())] == ["000003", "000004", "000039", "000040"]


def test_a_checkpoint_of_other_settings_is_not_used_and_said(run, data, tiny, capsys):
    folder = run.folder / "checkpoints"
    trained(run, data, tiny, checkpoints=folder, meta={"settings_hash": "a"})
    log = trained(run, data, tiny, checkpoints=folder, meta={"settings_hash": "b"})
    assert (
        "its checkpoint behavior.000004.safetensors has other settings_hash and is not used" in capsys.readouterr().out
    )
    assert log.equals(trained(run, data, tiny))


def test_checkpoints_of_a_longer_name_are_left_alone(tmp_path):
    """beta 1 and beta 1.5."""
    other = tmp_path / "curve-aepo-b1.5.000004.safetensors"
    other.touch()
    own = [tmp_path / name for name in ("curve-aepo-b1.000004.safetensors", ".curve-aepo-b1.000005.safetensors.7.tmp")]
    for path in own:
        path.touch()
    checkpoints.clear_checkpoints(tmp_path, "curve-aepo-b1")
    assert list(tmp_path.iterdir()) == [other]


def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(run, data, tiny):
    folder, steps = run.folder / "checkpoints", 0
    learner, _ = behavior_stage.behavior_learner(data, (0, 1), tiny.behavior)

    def after_step():
        nonlocal steps
        steps += 1
        if steps == 13:
            next(iter(learner.trained)).data[1].fill_(float("nan"))

    with pytest.raises(files.StudyError) as said:
        training.fit(replace(learner, after_step=after_step), 20, 1e-3, 5, checkpoints=folder)
    kept = folder / "behavior.000002.safetensors"
    assert str(said.value).startswith(
        f"behavior: the loss of seed 1 is not finite between steps 10 and 15; the last good checkpoint is kept, {kept}: try"
    )
    assert torch.isfinite(files.load_tensors(kept)[0]["log"]).all()


def test_what_a_kill_between_two_files_left_is_mended(run, data, tiny):
    """An artefact without its entry in the manifest, with checkpoints beside it; a log that already has the new seed."""
    stages.train_behavior(run, data)
    (run.folder / "manifest.json").unlink()
    left = run.folder / "checkpoints" / "behavior.000002.safetensors"
    left.touch()
    stages.train_behavior(run, data)
    assert runs.read_manifest(run.folder)["stages"]["behavior"]["seeds"] == [0, 1]
    assert not left.exists()
    more = replace(run, seeds=(0, 1, 4))
    first = run.artifact("behavior").read_bytes()
    stages.train_behavior(more, data)
    log = runs.read_metrics(run, "behavior")
    run.artifact("behavior").write_bytes(first)
    stages.train_behavior(more, data)
    assert runs.read_metrics(run, "behavior").equals(log)


def test_an_evaluation_without_its_entry_gets_it(run, data, tiny, monkeypatch):
    small = replace(tiny, evaluation=replace(settings.SMOKE.evaluation, episodes=1, solver_steps=2))
    monkeypatch.setitem(settings.PROFILES, "smoke", small)
    short = replace(run, task=replace(run.task, horizon=5), methods=("bc",))
    stages.train_behavior(short, data)
    evaluation.evaluate(short, "bc")
    (run.folder / "manifest.json").unlink()
    evaluation.evaluate(short, "bc")
    assert runs.read_manifest(run.folder)["evaluation"]["bc"]["episodes"] == 1


def test_temporary_files_of_the_dead_are_swept(tmp_path):
    dead, alive, other = (tmp_path / name for name in (".a.json.1.tmp", ".a.json.2.tmp", ".b.json.1.tmp"))
    for path in (dead, alive, other):
        path.write_text("half")
    with open(alive) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        files.write_json(tmp_path / "a.json", 1)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".a.json.2.tmp", ".b.json.1.tmp", "a.json"]
    files.write_json(tmp_path / "a.json", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.json.1.tmp", "a.json"]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_two_processes_on_one_run_both_end_well(run, data, tiny, tmp_path):
    both = [mp.get_context("fork").Process(target=stages.train_behavior, args=(run, data)) for _ in "ab"]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    alone = replace(run, folder=tmp_path / "alone")
    stages.train_behavior(alone, data)
    assert run.artifact("behavior").read_bytes() == alone.artifact("behavior").read_bytes()


def test_a_notebook_that_was_cut_off_did_not_end(tmp_path):
    path = tmp_path / "03_dataset.ipynb"
    path.write_bytes((ROOT / "notebooks" / path.name).read_bytes()[:5_000] + "é".encode()[:1])
    assert batch.Part(tmp_path, ("03_dataset",)).failure().startswith("03_dataset did not end (killed, cancelled")


STARTER = """
import sys, time
from aepo import lifeline
from aepo.learners import behavior as behavior_stage
sleep = "import subprocess, sys; subprocess.run(['sleep', sys.argv[1]])"
process = lifeline.start([sys.executable, "-c", sleep, sys.argv[1]])
print(process.pid, flush=True)
time.sleep(100)
"""


def sleepers(word):
    """Processes that sleep for `word` seconds."""
    found = (path.read_text() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
    return [line for line in found if line == f"sleep\0{word}\0"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("who", ["starter", "holder"])
def test_nothing_outlives_who_started_it(number, who):
    word = f"{1000 + int(number)}.{os.getpid()}{len(who)}"
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    command = [sys.executable, "-c", STARTER, word]
    starter = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, preexec_fn=heed)
    holder = int(starter.stdout.readline())
    until(lambda: sleepers(word))
    if (number, who) == (signal.SIGKILL, "holder"):  # which its starter would see, and stop the rest
        os.killpg(holder, number)
    else:
        os.kill(starter.pid if who == "starter" else holder, number)
    until(lambda: not sleepers(word))
    starter.kill()
    starter.wait()


def until(what):
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_command_that_ends_gives_its_code():
    process = lifeline.start([sys.executable, "-c", "raise SystemExit(7)"])
    assert process.wait(30) == 7
    lifeline.stop(process)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        fail(temporary)
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_damaged_artifacts_are_named(tmp_path):
    path = tmp_path / "critic.safetensors"
    files.save_tensors(path, {"w": torch.ones(1000)}, {})
    good = path.read_bytes()
    for damage, said in ((good[:50], "cannot be read"), (good[:-4] + b"abcd", "is damaged"), (b"", "cannot be read")):
        path.write_bytes(damage)
        with pytest.raises(files.StudyError, match=f"critic.safetensors {said}"):
            files.load_tensors(path)
    path.write_bytes(good)
    assert files.load_tensors(path)[0]["w"].sum() == 1000


def test_equal_content_gives_equal_bytes(tmp_path):
    meta = {"settings": {"b": 1, "a": 2}, "stage": "x"}
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2)}
    files.save_tensors(tmp_path / "one.safetensors", tensors, meta)
    files.save_tensors(tmp_path / "two.safetensors", dict(reversed(tensors.items())), dict(reversed(meta.items())))
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
