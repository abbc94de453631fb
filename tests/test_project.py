"""The project's own files: pins, commands, notebooks, setup."""

import ast
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from aepo import cli, files, settings
from aepo.data import tasks
from aepo.learners import policies
from aepo.methods import CORE, METHODS
from aepo.study import notebooks, runs

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMETERS = {"task", "seeds", "methods", "profile", "device", "runs_dir"}


def pins(text):
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line]


def test_every_requirement_is_pinned_exactly():
    lines = pins((ROOT / "requirements.txt").read_text())
    assert "torch==2.13.0" in lines
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.\-\[\],]+==[^=<>;\s]+(;.*)?", line)] == []
    names = [line.split("==")[0].lower() for line in lines]
    assert len(names) == len(set(names))


def test_conda_and_package_lean_on_the_same_pins():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert {"pip": ["-r requirements.txt", "-e ."]} in conda
    assert all(isinstance(d, dict) or d.split("=")[0] in ("python", "pip", "make", "git") for d in conda)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}
    python = next(d for d in conda if isinstance(d, str) and d.startswith("python="))
    assert project["project"]["requires-python"] == ">=" + python.split("=")[1]


def test_what_is_imported_is_required():
    import importlib.metadata
    import sys

    modules = {"aepo"}
    for path in [*ROOT.glob("aepo/*.py"), *ROOT.glob("tests/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
    required = {
        re.split(r"[\[=]", line)[0].lower().replace("_", "-") for line in pins((ROOT / "requirements.txt").read_text())
    }
    providers = importlib.metadata.packages_distributions()
    own = {"aepo", "benchmarks", *(p.stem for p in ROOT.glob("tests/*.py"))}
    for module in modules - set(sys.stdlib_module_names) - own:
        assert {name.lower().replace("_", "-") for name in providers[module]} & required, module


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_notebook(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    values = {
        target.id: ast.literal_eval(node.value) for node in ast.parse(tagged[0].source).body for target in node.targets
    }
    assert set(values) <= PARAMETERS
    used = {
        node.id
        for cell in code
        if cell not in tagged
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Name)
    }
    assert set(values) == PARAMETERS & used, "a parameter that the notebook ignores, or none that it needs"
    said = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert "At its end you know" in said[0]
    assert notebook.cells[-1].cell_type == "markdown", "what follows"
    assert values["profile"] == "smoke"
    assert all(cell.execution_count for cell in code), "run `make notebooks`"
    shown = [cell for cell in code if cell.outputs]
    assert any(output.get("data", {}).get("image/png") for cell in shown for output in cell.outputs), "no stored figure"
    checked = [c for c in shown if "nbval-ignore-output" not in c.metadata.get("tags", [])]
    assert len(checked) >= 3
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert not [o for cell in code for o in cell.outputs if o.get("name") == "stderr"]
    assert "papermill" not in notebook.metadata
    assert any("assert" in cell.source for cell in code)
    assert max(len(cell.source.splitlines()) for cell in code) <= 25


def test_the_notebooks_are_those_of_the_table():
    assert {path.stem for path in NOTEBOOKS} == set(notebooks.NOTEBOOKS)
    needed = {name for entry in notebooks.NOTEBOOKS.values() for name in entry.needs}
    assert needed <= set(notebooks.NOTEBOOKS)


def test_make_help_lists_the_commands():
    out = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    for command in ("setup", "reproduce", "test", "lab", "bench", "results", "figures"):
        assert f"make {command} " in out
    phony = re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())[1].split()
    assert set(phony) == set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def aepo(capsys, monkeypatch, *arguments):
    """Exit code and standard error of the console script."""
    monkeypatch.setattr("sys.argv", ["aepo", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code or 0, capsys.readouterr()


@pytest.mark.parametrize("seeds", [[-1], [], [0, 0], [1.5], [True]])
def test_notebook_seeds_are_checked(tmp_path, seeds):
    with pytest.raises(files.StudyError, match="seeds must be distinct integers >= 0"):
        runs.open_run("maze2d-umaze", seeds, ["bc"], "smoke", "cpu", tmp_path)


def test_a_missing_gpu_is_said(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(files.StudyError, match="device 'cuda' was asked for but torch sees no GPU"):
        runs.open_run("maze2d-umaze", [0], ["bc"], "smoke", "cuda", tmp_path)


def test_a_notebook_without_the_stage_before_it_stops_with_one_sentence(tmp_path):
    """07 needs the networks of 04: papermill fails, and the executed notebook that is kept says why."""
    import sys

    out = tmp_path / "07.ipynb"
    parameters = {"profile": "smoke", "methods": ["bc"], "runs_dir": str(tmp_path / "runs"), "device": "cpu"}
    command = [
        sys.executable,
        "-m",
        "papermill",
        "notebooks/07_evaluation.ipynb",
        str(out),
        "-y",
        yaml.safe_dump(parameters),
    ]
    environment = os.environ | {"MINARI_DATASETS_PATH": str(tmp_path / "empty")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    errors = [o for c in nbformat.read(out, 4).cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert errors[0].ename == "StudyError"
    assert "run notebook 03_dataset first" in errors[0].evalue


def test_aepo_tasks_prints_one_name_a_line_those_that_can_be_made_here_first(capsys, monkeypatch):
    code, printed = aepo(capsys, monkeypatch, "tasks")
    assert code == 0
    head, *names = [line.split()[0] for line in printed.out.splitlines()]
    assert head == "task"
    assert sorted(names) == sorted(tasks.TASKS)
    made = [bool(tasks.TASKS[name].recipe) for name in names]
    assert made == sorted(made, reverse=True)


def test_an_environment_that_is_none_is_told_before_any_notebook_starts(capsys, monkeypatch, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("dataset: mine/data-v0\nenv_id: Pendulm-v1\nhorizon: 200\n")
    code, printed = aepo(capsys, monkeypatch, "reproduce", "--task", str(path), "--runs-dir", str(tmp_path / "runs"))
    assert code == 1
    assert "Pendulm" in printed.err
    assert not list(tmp_path.rglob("*.ipynb"))


def test_wrong_calls_exit_with_2(capsys, monkeypatch):
    assert aepo(capsys, monkeypatch, "reproduce", "--speed", "9")[0] == 2
    assert aepo(capsys, monkeypatch, "dance")[0] == 2


COMMANDS = ("reproduce", "evaluate", "ablations", "theory", "results", "export", "tasks", "methods")


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help(capsys, monkeypatch, command):
    code, printed = aepo(capsys, monkeypatch, *command, "--help")
    assert code == 0
    assert "Usage" in printed.out


@pytest.fixture
def copy(tmp_path):
    """What setup needs, in an empty folder."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "setup.sh", tmp_path / "scripts")
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def setup(folder, **environment):
    done = subprocess.run(
        ["sh", "scripts/setup.sh"], cwd=folder, capture_output=True, text=True, env=os.environ | environment
    )
    return done.returncode, done.stderr


def test_setup_refuses_an_old_python(copy):
    old = copy / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit 0\nexit 1\n')
    old.chmod(0o755)
    code, said = setup(copy, PYTHON=str(old))
    assert code == 1
    assert said.startswith("aepo setup: Python 3.11 or newer is needed (found: Python 3.9.2)")
    assert said.count("\n") == 1


def test_setup_refuses_a_full_disk(copy):
    code, said = setup(copy, AEPO_SETUP_MB="999999999")
    assert code == 1
    assert "needs about 999999999 MB of disk" in said
    assert not (copy / ".venv").exists()


def test_setup_says_that_the_network_is_missing(copy):
    blocked = {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_RETRIES": "0",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
    }
    code, said = setup(copy, **blocked)
    assert code == 1
    assert "the package index cannot be reached" in said
    assert not list((copy / ".venv").glob(".aepo-*"))


def test_every_method_and_every_switch_is_explained(capsys, monkeypatch):
    page = (ROOT / "docs" / "methods.md").read_text()
    _, printed = aepo(capsys, monkeypatch, "methods")
    assert [line.split()[0] for line in printed.out.splitlines()] == list(METHODS)
    assert all(f"## `{name}`: {method.label}\n" in page for name, method in METHODS.items())
    assert page.count("\n## `") == len(METHODS)
    assert all(
        f"| `{switch}` |" in page for switch in ("energy: form", "energy: gate", "critic: kind", "evaluation: pick")
    )


def test_methods_have_what_they_need():
    assert set(CORE) <= set(METHODS)
    for profile in settings.PROFILES.values():
        own = {name for name in METHODS if METHODS[name].guided}
        assert own == set(profile.evaluation.guidance_scale)
        assert own | {"bc-weighted", "iql", "qipo", "qipo-flow"} == set(profile.evaluation.beta)
    for method in METHODS.values():
        assert not method.policy or method.policy in policies.MODELS


def test_make_lab_serves_the_notebooks_with_a_token():
    """The server answers with the token that it prints, and with nothing to those who lack it."""
    import signal
    import time
    import urllib.error
    import urllib.request

    command = ["make", "-s", "lab", "LAB=--no-browser --port=8931 --ServerApp.port_retries=20"]
    server = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        deadline, found = time.time() + 60, None
        while found is None and time.time() < deadline:
            found = re.search(r"http://127\.0\.0\.1:(\d+)/\S*\?token=(\w+)", server.stdout.readline())
        base = f"http://127.0.0.1:{found[1]}/api/contents/notebooks"
        listing = b""
        while not listing and time.time() < deadline:
            try:
                listing = urllib.request.urlopen(f"{base}?token={found[2]}").read()
            except urllib.error.URLError:
                time.sleep(0.5)
        assert b"03_dataset.ipynb" in listing
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(base)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=20)


def test_the_map_lists_every_room_and_every_module_at_the_top():
    text = (ROOT / "README.md").read_text().split("\n## Map\n")[1].split("\n## ")[0]
    package = ROOT / "aepo"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    assert rooms <= set(re.findall(r"`aepo/(\w+)/`", text))
    assert {path.stem for path in package.glob("*.py")} - {"__init__"} <= set(re.findall(r"`(\w+)`", text))


def test_the_way_from_target_to_action_is_short():
    """README's map: the files to read, in order; at most six and 1,500 lines, and all there."""
    text = (ROOT / "README.md").read_text().split("**From AEPO's target to its action")[1].split("\n\n")[0]
    way = re.findall(r"\((aepo/[\w/]+\.py)\)", text)
    assert 4 <= len(way) <= 6
    assert sum(len((ROOT / path).read_text().splitlines()) for path in way) <= 1_500
