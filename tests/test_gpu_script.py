"""scripts/gpu.py goes on after what fails, stops in time, and says what is left."""

import argparse
import importlib.util
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gpu, work, wheels = script("gpu"), script("gpu_study"), script("gpu_wheels")


@pytest.fixture
def visit(tmp_path, monkeypatch):
    """A visit of a minute whose parts are named in the test and whose installation is none."""
    options = argparse.Namespace(
        device="cpu", profile="smoke", seconds=60.0, output=tmp_path / "out", work=tmp_path / "work", wheels=tmp_path,
        parts=[], tasks=["maze2d-umaze"], methods=["iql", "qgpo"], seeds=2, episodes=2,
    )  # fmt: skip
    monkeypatch.setattr(gpu, "install", lambda visit: True)
    monkeypatch.setattr(gpu, "SHARES", {})
    monkeypatch.setattr(gpu, "START", time.monotonic())
    made = gpu.Visit(options)
    yield made
    made.end()


def python(code):
    return [sys.executable, "-c", code]


def part(visit, name, code, monkeypatch):
    """A part that runs a line of Python."""
    monkeypatch.setitem(gpu.PARTS, name, lambda visit, seconds: visit.run(name, python(code), seconds))
    monkeypatch.setitem(gpu.SHARES, name, 0.5)
    visit.options.parts.append(name)


def raising(visit, seconds):
    raise RuntimeError("planned")


def test_after_a_part_that_fails_the_next_goes_on(visit, monkeypatch, capsys):
    part(visit, "first", "raise ValueError('of the first')", monkeypatch)
    part(visit, "second", "", monkeypatch)
    part(visit, "third", "print('left: two cases'); print('  5%|# | of a bar')", monkeypatch)
    monkeypatch.setitem(gpu.PARTS, "second", raising)
    assert not gpu.visit_machine(visit)
    said = capsys.readouterr().out
    assert "first | ValueError: of the first" in said
    assert "RuntimeError: planned" in said
    assert "third | left: two cases" in said
    assert "of a bar" not in said
    assert visit.left == [
        "first: not to its end: --parts first",
        "second: not to its end: --parts second",
        "third: two cases",
        "study: maze2d-umaze: iql, qgpo",
    ]
    assert (visit.output / "log.txt").read_text() == said


def test_what_takes_too_long_is_ended_with_its_children(visit, monkeypatch, capsys, tmp_path):
    mark = tmp_path / "mark"
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(mark)!r}).touch()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    monkeypatch.setattr(gpu, "LEAST", 0.1)
    start = time.monotonic()
    assert not visit.run("long", python(code), 1.0)
    assert time.monotonic() - start < 3.5
    assert "long: stopped after 1 s" in capsys.readouterr().out
    time.sleep(4)
    assert not mark.exists()


def test_nothing_begins_after_the_deadline(visit, monkeypatch, capsys):
    part(visit, "late", "print('begun')", monkeypatch)
    visit.start -= 100
    assert not gpu.visit_machine(visit)
    said = capsys.readouterr().out
    assert "late: not begun" in said
    assert "late | begun" not in said
    assert not visit.run("after the end", python(""), 5)


def test_methods_that_have_episodes_are_not_run_again(visit, monkeypatch):
    assert gpu.lacking(visit, "maze2d-umaze") == ["iql", "qgpo"]
    rows = {"profile": ["smoke", "full"], "task": "maze2d-umaze", "method": ["iql", "qgpo"]}
    pd.DataFrame(rows).to_csv(visit.output / "results.csv", index=False)
    assert gpu.lacking(visit, "maze2d-umaze") == ["qgpo"]
    ran = []
    monkeypatch.setattr(gpu, "one_task", lambda visit, name, task, *words, **more: ran.append((task, words)) or True)
    assert gpu.study(visit, 30, gpu.collecting(visit))
    assert "--collect" in ran[0][1]
    assert ran[1][1][1:3] == ("--methods", "qgpo")


def test_a_task_whose_data_cannot_be_made_does_not_stop_the_next(visit, monkeypatch, capsys):
    visit.options.tasks = ["no-such-task", "maze2d-umaze"]
    ran = []
    real = gpu.one_task

    def one_task(visit, name, task, seconds, *words, **more):
        if task == "no-such-task":
            return real(visit, name, task, seconds, *words, **more)
        ran.append(words)
        return True

    monkeypatch.setattr(gpu, "one_task", one_task)
    assert not gpu.study(visit, 50, gpu.collecting(visit))
    assert len(ran) == 2
    assert "unknown task 'no-such-task'" in capsys.readouterr().out


def test_after_a_method_that_fails_the_next_is_evaluated_and_each_is_written_as_it_comes(
    tmp_path, run, tiny, data, monkeypatch, capsys
):
    whole, seen = work.stages.train_method, []

    def train(run, data, behavior, method):
        seen.append((method, (tmp_path / "results.csv").exists()))
        if method == "iql":
            raise RuntimeError("planned")
        whole(run, data, behavior, method)

    monkeypatch.setattr(work.stages, "train_method", train)
    monkeypatch.setattr(work.evaluation.Copies, "step", work.evaluation.Copies.step)
    monkeypatch.setattr(work.Checkpoints, "save", work.Checkpoints.save)
    clock = work.Clock()
    clock.watch("environment", work.evaluation.Copies, "step")
    clock.watch("checkpoints", work.Checkpoints, "save")
    same = {"task": run.task.name, "profile": "smoke", "device": "here", "torch": "2"}
    seconds = work.Seconds(tmp_path / "seconds.csv", clock, **same)
    run = replace(run, methods=("bc-low-noise", "iql", "aepo-weighted"))
    assert work.study(run, seconds, tmp_path, time.time() + 600) == ["iql"]
    assert seen == [("bc-low-noise", False), ("iql", True), ("aepo-weighted", True)]
    assert {*pd.read_csv(tmp_path / "results.csv")["method"]} == {"dataset", "bc-low-noise", "aepo-weighted"}
    took = pd.read_csv(tmp_path / "seconds.csv").set_index("what")
    assert took.loc["behavior", "steps"] == tiny.behavior.steps
    assert took.loc["train aepo-weighted", "steps"] == tiny.critic.steps + tiny.behavior.steps
    played = took.loc["evaluate bc-low-noise"]
    assert 0 < played["steps"] <= 2 * 2 * run.task.horizon
    assert 0 < played["environment_s"] <= played["seconds"]
    assert "RuntimeError: planned" in capsys.readouterr().out
    assert work.study(run, seconds, tmp_path, time.time() - 1) == []
    assert "stopped before bc-low-noise, iql, aepo-weighted" in capsys.readouterr().out


def test_the_summary_says_what_was_measured_beside_what_was_hoped_for(visit, capsys):
    numbers = {("1", "ms"): 0.2, ("8", "ms"): 0.25, ("1", "ratio_captured"): 0.1}
    lines = [f"behavior,cuda,default,{seeds},256,{metric},{value}" for (seeds, metric), value in numbers.items()]
    header = "# device: cuda: a card\ncase,device,networks,seeds,batch,metric,value"
    (visit.output / "bench.csv").write_text("\n".join([header, *lines, "all,cuda,default,0,0,mb,9\n"]))
    took = {"task": "a", "what": ["load", "behavior", "train iql"], "seconds": [9, 10, 20], "environment_s": 1}
    pd.DataFrame(took).assign(checkpoints_s=2).to_csv(visit.output / "seconds.csv", index=False)
    gpu.summary(visit)
    said = capsys.readouterr().out
    assert "behavior, batch 256, 1 seeds: 0.200 ms, 10.0 times as fast as eager (at least 5); 8 seeds take 1.25" in said
    assert "a: 30 s for its methods (four: at most 180), of them 2 in environments, 4 in checkpoints" in said


def test_without_a_gpu_it_says_how_to_try_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu.subprocess, "run", lambda *args, **more: argparse.Namespace(stdout=b"False\n"))
    with pytest.raises(SystemExit, match="torch sees no GPU: `--device cpu --profile smoke`"):
        gpu.main()


def test_every_wheel_is_a_pin_and_a_slim_one_lacks_its_meshes(tmp_path):
    assert set(wheels.LACKING) <= set(wheels.pins())
    path, mesh = tmp_path / "gymnasium_robotics-1-py3-none-any.whl", "gymnasium_robotics/envs/assets/stls/hand/palm.stl"
    kept = "gymnasium_robotics/envs/assets/point/point.xml"
    info = "gymnasium_robotics-1.dist-info"
    needs = "Requires-Dist: NumPy>=2\nRequires-Dist: mujoco\nRequires-Dist: pytest; extra == 'testing'\n"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in ((mesh, "m"), (kept, "p"), (f"{info}/METADATA", needs)):
            wheel.writestr(name, text)
        wheel.writestr(f"{info}/RECORD", f"{mesh},a,1\n{kept},b,1\n")
    wheels.slim(path)
    with zipfile.ZipFile(path) as wheel:
        assert wheel.namelist() == [kept, f"{info}/METADATA", f"{info}/RECORD"]
        assert wheel.read(f"{info}/RECORD").decode() == f"{kept},b,1\n"
    assert wheels.expected(path) == {"numpy"}
    assert [*tmp_path.iterdir()] == [path]
