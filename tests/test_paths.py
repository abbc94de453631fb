"""Paths as people have them: spaces, apostrophes and umlauts everywhere, and data wherever MINARI_DATASETS_PATH says."""

import subprocess
import sys
from pathlib import Path

import pytest
import samples

from aepo import cli
from aepo.data import storage, tasks
from aepo.study import runs

ROOT = Path(__file__).parents[1]
HERE = ("Snakefile", "aepo", "scripts", "notebooks", "profiles", ".venv")


@pytest.fixture
def checkout(tmp_path):
    """A checkout with its environment, by symbolic links, below a folder with all of them."""
    folder = tmp_path / "it's ä place" / "the 'ch ö'"
    folder.mkdir(parents=True)
    for name in HERE:
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.skipif(not (ROOT / ".venv/bin/python").exists(), reason="needs the checkout's own environment")
def test_a_notebook_runs_where_every_path_has_spaces_apostrophes_and_umlauts(checkout, monkeypatch):
    """Checkout, interpreter, task file, its data, runs; and Minari's folder, which is relative: below the checkout."""
    own = checkout.parent / "my ü's tasks"
    own.mkdir()
    samples.write_pendulum(own / "dä'ta 1.hdf5")
    path, results = own / "my 'tä sk.yaml", checkout.parent / "the r'ü ns"
    path.write_text('name: mine\ndataset: "dä\'ta 1.hdf5"\nenv_id: Pendulum-v1\nhorizon: 30\n', "utf-8")
    mark = results / "smoke" / "mine" / ".done" / "03_dataset"
    command = [checkout / ".venv/bin/python", "-m", "snakemake", "--cores", "1", "--nolock"]
    command += ["--directory", checkout.parent / "w 'ö", "--config", f"task={path}", f"runs_dir={results}"]
    command += ["profile=smoke", "methods=bc", "seeds=1", "device=cpu", "--", mark]
    monkeypatch.setenv("MINARI_DATASETS_PATH", "the d'ä ta")
    done = subprocess.run(list(map(str, command)), cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "03_dataset.ipynb" in mark.read_text()
    assert runs.read_manifest(results / "smoke" / "mine")["data"]
    monkeypatch.chdir(checkout)
    assert storage.root() == checkout / "the d'ä ta"
    assert storage.complete(tasks.get(path).dataset_ids["smoke"])


# ---- where data lie


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a checkout's Snakefile, where this process works; a home beside it."""
    for name in ("study", "study/notebooks", "home"):
        (tmp_path / name).mkdir()
    (tmp_path / "study" / "Snakefile").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "study")
    return tmp_path


FOUND = {
    "relative": ("data", "study/data"),
    "below": ("./a/../data", "study/a/../data"),
    "quoted tilde": ("~/my data", "home/my data"),
    "empty": ("", "home/.minari/datasets"),
    "spaces": ("it's ä", "study/it's ä"),
}


@pytest.mark.parametrize(("given", "folder"), FOUND.values(), ids=FOUND)
@pytest.mark.parametrize("below", [".", "notebooks"])
def test_data_lie_in_one_place_wherever_a_process_works(place, monkeypatch, given, folder, below):
    """As the command line in the checkout, or a kernel in its notebooks; what either starts is told the absolute path."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", given)
    monkeypatch.chdir(below)
    assert storage.root() == place / folder
    monkeypatch.chdir("/")
    assert storage.root() == place / folder
    shown = "import os; print(os.environ['MINARI_DATASETS_PATH'])"
    assert subprocess.check_output([sys.executable, "-c", shown], text=True) == f"{place / folder}\n"


def test_without_a_checkout_it_is_below_the_working_folder(place, monkeypatch):
    """The data of a file are imported there, and are there for the next command."""
    monkeypatch.chdir(place)
    samples.write_pendulum(place / "data.hdf5")
    (place / "mine.yaml").write_text("dataset: data.hdf5\nenv_id: Pendulum-v1\nhorizon: 30\n")
    for command in (["get", "mine.yaml"], ["show", "mine.yaml"]):
        monkeypatch.setenv("MINARI_DATASETS_PATH", "my data")
        monkeypatch.setattr("sys.argv", ["aepo", "data", *command, "--profile", "smoke"])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code
    assert {path.name for path in (place / "my data" / "aepo" / "own").iterdir()} == {
        tasks.get("./mine.yaml").dataset_ids["smoke"].split("/")[-1]
    }


REFUSED = {
    "file": ("file", "is 'file', but {place}/study/file is a file: set it to a folder, or unset it"),
    "below a file": ("file/a/b", "is 'file/a/b', but {place}/study/file is a file: set it to a folder, or unset it"),
    "no such home": ("~nobody-here/x", "is '~nobody-here/x', but there is no home folder ~nobody-here: set it to a"),
}
COMMANDS = ("data show maze2d-umaze", "reproduce", "evaluate", "tasks", "results", "verify .", "theory")


@pytest.mark.parametrize(("given", "sentence"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_can_be_no_folder_is_refused_alike_by_every_command(place, monkeypatch, capsys, given, sentence, command):
    (place / "study" / "file").touch()
    monkeypatch.setenv("MINARI_DATASETS_PATH", given)
    monkeypatch.setattr("sys.argv", ["aepo", *command.split()])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("aepo: MINARI_DATASETS_PATH " + sentence.format(place=place))
    assert error.count("\n") == 1
    assert {path.name for path in (place / "study").iterdir()} == {"Snakefile", "notebooks", "file"}
    monkeypatch.delenv("MINARI_DATASETS_PATH")  # as it advises
    assert storage.root() == place / "home" / ".minari" / "datasets"
