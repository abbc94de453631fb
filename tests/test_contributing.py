"""The examples of CONTRIBUTING.md: each block is put where it says, in a copy, and each command is run there."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = dict(re.findall(r"^## (?!`)(.+?)\n(.*?)(?=^## (?!`)|\Z)", PAGE, re.MULTILINE | re.DOTALL))
EXAMPLES = ("A task", "An environment", "A closed form of the guidance", "A method")
COPIED = ("aepo", "docs/methods.md", "tests/conftest.py", "pyproject.toml", "runs/claims.json")


def blocks(text):
    """Language and content of each fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text):
    """The lines of a section's shell blocks, without what is said of them."""
    lines = [line for language, block in blocks(text) if language == "sh" for line in block.splitlines()]
    return [line.partition("  #")[0].strip() for line in lines]


def change(folder, block):
    """Do what a diff block says: its lines but for the new ones stand once in the file that it names."""
    head, *lines = block.splitlines()
    path = folder / head.removeprefix("--- ")
    before, after = ("".join(line[1:] + "\n" for line in lines if line[:1] != other) for other in "+-")
    text = path.read_text()
    assert text.count(before) == 1, f"{path.name} does not hold once:\n{before}"
    path.write_text(text.replace(before, after))


def place(folder, block):
    """Write a block into the file that its first line names, at its end where it is there already."""
    name = re.match(r"(?:# |<!-- )(\w[\w./-]*\.(?:py|yaml|md))(?: -->)?\n", block)
    assert name, f"no file is named by the first line of:\n{block}"
    path = folder / name[1]
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(block[name.end() :])


def play(lines):
    """Run commands one after another in this process, which saves each the time to start; the exit code."""
    from aepo import cli

    for line in lines:
        print(f"$ {line}", flush=True)
        words = shlex.split(line)
        if words[0].startswith("PYTHONPATH="):
            sys.path.insert(0, words.pop(0).partition("=")[2])
        program, *arguments = words
        sys.argv = arguments if program == "python" else words
        try:
            if program == "aepo":
                cli.main()
            elif program == "python":
                runpy.run_path(arguments[0], run_name="__main__")
            elif program == "pytest":
                sys.exit(pytest.main(["-p", "no:cacheprovider", *arguments]))
            else:
                sys.exit(f"not known here: {program}")
        except SystemExit as ended:
            if ended.code:
                return ended.code
    return 0


def test_every_example_runs(tmp_path):
    for name in COPIED:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    ran = []
    for title in EXAMPLES:
        for language, block in blocks(SECTIONS[title]):
            if language != "sh":
                (change if language == "diff" else place)(tmp_path, block)
        ran += commands(SECTIONS[title])
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "MINARI_DATASETS_PATH": str(tmp_path / "minari")}
    script = [sys.executable, __file__, json.dumps(ran)]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("\n$ ") + done.stdout.startswith("$ ") == len(ran)
    methods = re.findall(
        r"^(\S+) +(.+?)(?:  |$)", done.stdout.split("$ aepo methods\n")[1].split("\n$ ")[0], re.MULTILINE
    )
    page = (tmp_path / "docs" / "methods.md").read_text()
    assert {"aepo-line", "best-of-weighted"} <= {name for name, _ in methods}
    assert all(f"## `{name}`: " in page for name, _ in methods)
    rows = (tmp_path / "runs" / "smoke" / "results.csv").read_text()
    for task, method in (("pendulum", "aepo-line"), ("pendulum", "best-of-weighted"), ("push", "bc")):
        assert f"\nsmoke,{task},{method}," in rows


def test_every_section_has_blocks_and_every_command_is_there():
    assert all(commands(SECTIONS[title]) for title in EXAMPLES)
    targets = re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())[1].split()
    for line in commands(SECTIONS["Tests"]):
        program, target = line.split()
        assert program == "make"
        assert target in targets
    for path in re.findall(r"`((?:aepo|tests|scripts)/[\w/.-]+)`", PAGE):
        assert (ROOT / path).exists(), path


def test_the_limits_are_those_of_the_house():
    house = (ROOT / "tests" / "test_house.py").read_text()
    limits = re.search(r"over (\d+) lines, `core` ([\d,]+), the package (\d+,\d+)", SECTIONS["Rooms"]).groups()
    for number in limits:
        assert re.search(rf"(>|<=) {number.strip(',').replace(',', '_')}\b", house), number


if __name__ == "__main__":
    sys.exit(play(json.loads(sys.argv[1])))
