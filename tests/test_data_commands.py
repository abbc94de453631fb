"""The commands aepo data: exit codes, what they print, and that what is there is kept."""

import re
from dataclasses import replace

import numpy as np
import pytest
import samples
from typer.testing import CliRunner

from aepo import cli, files, settings
from aepo.data import collect, datasets, describe, storage, tasks

pytestmark = pytest.mark.usefixtures("folder")
SMALL = settings.DataSettings(steps=400)


@pytest.fixture
def aepo(monkeypatch, capsys):
    """Call the console script; returns exit code, output and error output. Collected data are small."""
    monkeypatch.setitem(settings.PROFILES, "smoke", replace(settings.SMOKE, data=SMALL))

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["aepo", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0, *capsys.readouterr()

    return call


def test_every_command_has_help():
    runner = CliRunner()
    for name in ("show", "get", "import", "collect"):
        shown = runner.invoke(cli.app, ["data", name, "--help"])
        assert shown.exit_code == 0
        assert "--profile" in shown.output


@pytest.mark.parametrize(
    "arguments",
    [("show",), ("import", "x.hdf5"), ("collect",), ("collect", "maze2d-umaze", "--suite", "local"), ("nothing",)],
)
def test_wrong_calls_end_with_2(aepo, arguments):
    assert aepo("data", *arguments)[0] == 2


def test_collect_keeps_what_is_there_and_show_describes_it(aepo):
    code, out, _ = aepo("data", "collect", "maze2d-umaze", "--profile", "smoke")
    assert code == 0
    assert re.match(r"maze2d-umaze: aepo/maze2d/umaze-smoke-v0, 400 transitions in \d+ episodes, mean return", out)
    stamp = (storage.root() / "aepo/maze2d/umaze-smoke-v0/data/main_data.hdf5").stat().st_mtime_ns
    code, out, _ = aepo("data", "get", "maze2d-umaze", "--profile", "smoke")
    assert code == 0
    assert "is there already and is kept" in out
    assert (storage.root() / "aepo/maze2d/umaze-smoke-v0/data/main_data.hdf5").stat().st_mtime_ns == stamp
    code, out, _ = aepo("data", "show", "maze2d-umaze", "--profile", "smoke")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith(("on disk", "content hash")))
    assert code == 0
    assert rows["transitions"].startswith("400, 0 terminated")
    assert rows["returns"].endswith("(quantiles of 1 windows)")
    assert rows["action"] == "2 numbers, -1 to 1"
    assert "random policy" in rows["scores"]
    assert datasets.load(tasks.get("maze2d-umaze"), "smoke").content_hash in out


def test_a_suite_goes_on_after_a_failure(aepo, monkeypatch):
    def recipe(task, steps, seed):
        if task.name == "maze2d-medium":
            raise files.StudyError("no way through the maze")
        return collect.collect_walk(task, steps, seed)

    monkeypatch.setitem(collect.RECIPES, "waypoint", recipe)
    monkeypatch.setattr(collect, "reference_scores", lambda task, seed: (0.0, 1.0, "of a test"))
    monkeypatch.setattr(
        tasks, "suite", lambda name: [tasks.get(f"maze2d-{n}") for n in ("umaze", "medium", "umaze-dense")]
    )
    code, out, error = aepo("data", "collect", "--suite", "maze2d", "--profile", "smoke")
    assert code == 1
    assert [line.split(":")[0] for line in out.splitlines()] == ["[1/3] maze2d-umaze", "[3/3] maze2d-umaze-dense"]
    assert "aepo: [2/3] maze2d-medium: no way through the maze" in error
    assert "aepo: 1 of 3 tasks failed: maze2d-medium; call it again for these" in error
    assert not (storage.root() / "aepo/maze2d/medium-smoke-v0").exists()


def test_import_and_clip(aepo, folder):
    samples.d4rl(folder / "wide.hdf5", samples.entry("actions", ([3, 9], 1), 1.5))
    call = ("data", "import", folder / "wide.hdf5", "--task", "d4rl-hopper-medium-v2")
    code, _, error = aepo(*call)
    assert code == 1
    assert "2 of 40 actions are outside the action box" in error
    code, out, _ = aepo(*call, "--clip")
    assert code == 0
    assert "d4rl-hopper-medium-v2: aepo/d4rl/hopper-medium-v2, 40 transitions in 4 episodes" in out
    assert "wide.hdf5: 2 of 40 actions are outside the action box, by 0.5 at most, and were moved into it" in out
    code, out, _ = aepo(*call, "--clip")
    assert code == 0
    assert "is there already and is kept" in out
    (folder / "page.hdf5").write_text("<html>404</html>")
    for other, sentence in (
        (call, "is there already, imported with --clip: delete the folder"),
        (("data", "import", folder / "page.hdf5", *call[3:], "--clip"), "page.hdf5 is not an HDF5 file.*a web page"),
        (("data", "import", folder / "none.hdf5", *call[3:], "--clip"), "there is no file"),
        (("data", "import", folder / "wide.hdf5", "--task", "maze2d-umaze"), "run `aepo data collect maze2d-umaze`"),
    ):
        code, out, error = aepo(*other)
        assert (code, out, error.count("\n")) == (1, "", 1)
        assert re.search(sentence, error)


def test_the_advice_to_clip_an_own_task_helps(aepo, folder):
    samples.d4rl(folder / "wide.hdf5", samples.entry("actions", ([3, 9], 1), 1.5))
    (folder / "own.yaml").write_text("dataset: wide.hdf5\nenv_id: Hopper-v4\nhorizon: 100\n")
    code, _, error = aepo("data", "get", folder / "own.yaml")
    assert code == 1
    advice = re.search("`aepo (data get .* --clip)` moves them into it", error)[1]
    assert aepo(*advice.split())[0] == 0
    task = tasks.get(str(folder / "own.yaml"))
    assert any("2 of 40 actions are outside the action box" in line for line in describe.description(task, "quick"))


def test_actions_in_a_fraction_of_the_box_are_pointed_out(aepo, folder):
    samples.d4rl(folder / "f.hdf5", lambda found: found.update(actions=found["actions"] / 3))
    aepo("data", "import", folder / "f.hdf5", "--task", "d4rl-hopper-medium-v2", "--clip")
    out = aepo("data", "show", "d4rl-hopper-medium-v2")[1]
    assert "the actions use 33% of the action box: they may be scaled to another one" in out
    assert "no action is outside the action box: --clip moved none" in out


def test_show_gives_returns_of_the_evaluations_length_and_of_whole_episodes(aepo, folder):
    path = folder / "own.yaml"
    path.write_text("dataset: long.hdf5\nenv_id: Hopper-v4\nhorizon: 10\nreferences: [0, 10]\n")
    change = {"rewards": np.ones(40, np.float32), "terminals": np.arange(40) % 20 == 19}
    samples.d4rl(folder / "long.hdf5", lambda found: found.update(change, timeouts=np.zeros(40, bool)))
    assert "mean return 10" in aepo("data", "get", path)[1]
    out = aepo("data", "show", path)[1]
    assert "of 10 steps as in evaluation: mean 10 (score 100); of whole episodes: mean 20 (score 200)" in out
    assert "2 of 2 episodes are longer than the evaluation's 10 steps" in out


def test_get_with_clip_makes_downloaded_data_readable(aepo):
    task = tasks.get("mujoco-hopper-medium-v0")
    stored_folder = samples.hopper(dataset_id=task.dataset_ids["quick"])
    samples.at("episode_0/actions", (2, 0), -1.25)(stored_folder / "data")
    code, _, error = aepo("data", "show", task.name)
    assert code == 1
    assert f"`aepo data get {task.name} --clip` moves them into it" in error
    code, out, _ = aepo("data", "get", task.name, "--clip")
    assert code == 0
    assert "13 transitions in 3 episodes" in out
    shown = describe.description(task, "quick")
    assert any("1 of 13 actions are outside the action box" in line for line in shown)
    assert np.isclose(float(datasets.load(task, "quick").action[2, 0]), -1)
