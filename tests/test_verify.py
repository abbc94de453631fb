"""`aepo verify` finds each thing that was changed."""

import json
import shutil

import pandas as pd
import pytest

from aepo import cli, files
from aepo.study import results, runs, stages, verify


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """A run folder with everything that a finished run holds, of short trainings."""
    from dataclasses import replace

    from aepo import settings

    root = tmp_path_factory.mktemp("finished")
    run = runs.open_run("maze2d-umaze", [0], ["bc", "aepo"], "smoke", "cpu", root / "runs")
    small = {
        "behavior": replace(settings.SMOKE.behavior, width=16, steps=20, variance_samples=64),
        "critic": replace(settings.SMOKE.critic, width=16, steps=20),
        "energy": replace(settings.SMOKE.energy, width=16, steps=20, target_batches=2),
    }
    runs.record_data(run.folder, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(settings.PROFILES, "smoke", replace(settings.SMOKE, **small))
        behavior, critic = stages.train_behavior(run, data), stages.train_critic(run, data)
        stages.train_energy(run, data, behavior, critic, "aepo")
    results.write_returns(run, data)
    results.merge_results(run)
    return run.folder


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished.parents[1], tmp_path / "runs")
    return tmp_path / "runs" / "smoke" / "maze2d-umaze"


def rewrite(path, change):
    """Write an artefact again, whole and with a fitting checksum, after a change of its tensors and metadata."""
    tensors, meta = files.load_tensors(path)
    meta = {key: value for key, value in meta.items() if key not in ("format", "sha256")}
    change(tensors, meta)
    files.save_tensors(path, tensors, meta)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def other_settings(tensors, meta):
    meta["settings"] = meta["settings"] | {"steps": 21}
    meta["settings_hash"] = "0123456789abcdef"


def number(path, column, value):
    frame = pd.read_csv(path)
    frame.loc[frame.index[-1], column] = value
    frame.to_csv(path, index=False)


CHANGES = {
    "a byte of the critic": (lambda f: flip(f / "critic.safetensors"), "critic.safetensors is damaged"),
    "a byte of an evaluation": (lambda f: flip(f / "evaluation/bc.safetensors"), "evaluation/bc.safetensors is damaged"),
    "other behavior networks": (
        lambda f: rewrite(f / "behavior.safetensors", lambda tensors, meta: tensors["low"].add_(1)),
        "evaluation/aepo.safetensors was made of other networks than behavior.safetensors holds",
    ),
    "other settings": (
        lambda f: rewrite(f / "critic.safetensors", other_settings),
        "critic.safetensors: its settings hash is 0123456789abcdef, its settings give ",
    ),
    "another critic": (
        lambda f: rewrite(f / "critic.safetensors", other_settings),
        "energy-aepo-b3.safetensors was made of a critic with settings hash ",
    ),
    "the JSON beside": (lambda f: edit(f / "critic.json", lambda c: c.update(seeds=[1])), "critic.json does not say what"),
    "a lost energy": (lambda f: (f / "energy-aepo-b3.safetensors").unlink(), "energy-aepo-b3.safetensors, which is missing"),
    "a stage in the manifest": (
        lambda f: edit(f / "manifest.json", lambda c: c["stages"]["behavior"].update(seeds=[0, 1])),
        "manifest.json tells other seeds of behavior than behavior.safetensors holds",
    ),
    "a stage less in the manifest": (
        lambda f: edit(f / "manifest.json", lambda c: c["stages"].pop("critic")),
        "manifest.json does not tell where critic.safetensors came from",
    ),
    "an evaluation in the manifest": (
        lambda f: edit(f / "manifest.json", lambda c: c["evaluation"]["bc"].update(episodes=200)),
        "the evaluation of bc does not give its settings hash",
    ),
    "a number for an evaluation": (
        lambda f: edit(f / "manifest.json", lambda c: c["evaluation"].update(bc=3)),
        "cannot be read (",
    ),
    "a torn manifest": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json cannot be read"),
    "other data": (
        lambda f: edit(f / "manifest.json", lambda c: next(iter(c["data"].values())).update(content_hash="0" * 16)),
        "the run was made of 0000000000000000",
    ),
    "a return": (lambda f: number(f / "returns.csv", "return", 299.0), "column return of aepo is not what evaluation/aepo"),
    "a score": (lambda f: number(f / "returns.csv", "score", 99.0), "the column score does not follow from the returns"),
    "a table of the study": (lambda f: number(f.parent / "results.csv", "return", 299.0), "its rows of smoke maze2d-umaze"),
    "a torn table": (lambda f: (f / "returns.csv").write_text("method,ret"), "returns.csv is no table of returns"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_named(copied, name):
    change, said = CHANGES[name]
    change(copied)
    assert any(said in problem for problem in verify.problems(copied)), list(verify.problems(copied))


def test_the_command(finished, copied, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["aepo", "verify", str(finished)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert capsys.readouterr().out == f"{finished}: everything matches\n"
    flip(copied / "critic.safetensors")
    monkeypatch.chdir(copied.parents[2])
    monkeypatch.setattr("sys.argv", ["aepo", "verify"])  # below runs
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert "1 of 1 runs do not match" in capsys.readouterr().err
