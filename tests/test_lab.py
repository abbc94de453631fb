"""Every notebook in a browser, as a reader runs it: JupyterLab, Run All, figures and no error. `make test-browser`."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import browser
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
SCREENSHOTS = ROOT / ".test" / "browser"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # else only cells in sight are drawn
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
OUTER = 'document.querySelector(".jp-NotebookPanel .jp-WindowedPanel-outer")'
STATE = """(() => {
    const all = selector => [...document.querySelectorAll(".jp-NotebookPanel " + selector)];
    return {
        idle: /Python 3.* \\| Idle/.test(document.querySelector("#jp-main-statusbar")?.textContent),
        prompts: all(".jp-CodeCell .jp-InputPrompt").map(prompt => prompt.textContent),
        figures: all(".jp-OutputArea-output img").filter(image => image.naturalWidth > 0).length,
        errors: all('.jp-OutputArea-output[data-mime-type$="jupyter.error"]').map(error => error.innerText),
    };
})()"""


def outputs_of(path):
    """All outputs of a notebook's file."""
    return [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]


def count_figures(path):
    return sum("image/png" in output.get("data", {}) for output in outputs_of(path))


def copy_project(target):
    """The files that git tracks, the notebooks without their outputs."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(lambda name: name and (ROOT / name).is_file(), listed.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
    for path in target.glob("notebooks/*.ipynb"):
        notebook = nbformat.read(path, 4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, path)


class Lab:
    """A JupyterLab server on a copy of the project, in a new folder."""

    def __init__(self, folder):
        self.root, self.token, config = folder / "project", secrets.token_hex(16), folder / "config"
        copy_project(self.root)
        for name, values in SETTINGS.items():
            path = config / "lab" / "user-settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
        command += [f"--port={self.address.rpartition(':')[2]}", "--port-retries=0", f"--notebook-dir={self.root}"]
        own = {"JUPYTER_CONFIG_DIR": config, "JUPYTER_DATA_DIR": folder / "data", "JUPYTER_TOKEN": self.token}
        own |= {"MINARI_DATASETS_PATH": folder / "minari", "PYTHONPATH": self.root}
        env = {name: str(value) for name, value in (os.environ | own).items()}
        env.pop("MPLBACKEND", None)  # that of the unit tests draws nothing in a notebook
        with open(folder / "server.log", "wb") as log:
            self.process = subprocess.Popen(command, cwd=self.root, env=env, stdout=log, stderr=log)

    def ask(self, path, method="GET"):
        """What the server's interface answers."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.address}/api/{path}", headers=headers, method=method)
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read() or "null")

    def answers(self):
        try:
            return self.ask("status")
        except urllib.error.URLError:
            return None

    def close(self):
        """End it, its kernels with it."""
        self.process.terminate()
        self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    opened = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory):
    served = Lab(tmp_path_factory.mktemp("lab"))
    try:
        browser.wait_for(served.answers, 180, f"JupyterLab, see {served.root.parent / 'server.log'}")
        yield served
    finally:
        served.close()


def choose(page, menu, entry):
    """Choose an entry of a menu with the mouse."""
    page.click(".lm-MenuBar-itemLabel", menu)
    page.click(".lm-Menu-itemLabel", entry)


def run_all(page, path):
    """Run all cells and save; the page's last state, the seconds until the first figure and until the end."""
    browser.wait_for(lambda: page.ask(STATE)["idle"], 180, "a kernel")
    started, first = time.monotonic(), []

    def ended():
        state = page.ask(STATE)
        if state["figures"] and not first:
            first.append(time.monotonic() - started)
        ran = all(re.fullmatch(r"\[\d+\]:", prompt) for prompt in state["prompts"])
        return state if state["idle"] and (ran or state["errors"]) else None

    choose(page, "Run", "Run All Cells")
    state = browser.wait_for(ended, 1800, "the notebook's end")
    seconds, opened = time.monotonic() - started, path.stat().st_mtime_ns
    choose(page, "File", "Save Notebook")
    browser.wait_for(lambda: path.stat().st_mtime_ns > opened, 60, "the saved notebook")
    return state, *first, seconds


def keep(page, name):
    """Write the page as a picture that is as high as its notebook."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.resize(1400, page.ask(f"{OUTER}?.scrollHeight ?? 800") + 200)
    page.ask(f"{OUTER}?.scrollTo(0, 0)")
    time.sleep(1)
    page.keep(SCREENSHOTS / f"{name}.png")


@pytest.mark.lab
@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
def test_run_all(source, lab, chromium, capsys):
    for session in lab.ask("sessions"):  # the kernel of the notebook before
        lab.ask(f"sessions/{session['id']}", "DELETE")
    copy = lab.root / "notebooks" / source.name
    with chromium.page(f"{lab.address}/lab/tree/notebooks/{source.name}?reset&token={lab.token}") as page:
        page.resize(1400, 1000)
        try:
            state, *seconds = run_all(page, copy)
        finally:
            keep(page, source.stem)
    assert not state["errors"], "\n".join(state["errors"])
    assert not [output for output in outputs_of(copy) if {"error", "stderr"} & {output.output_type, output.get("name")}]
    assert min(state["figures"], count_figures(copy)) >= count_figures(source) > 0
    found = "{} figures, the first after {:.1f} s, all cells after {:.1f} s".format(state["figures"], *seconds)
    with capsys.disabled():
        print(f"\n{source.stem}: {found}", end=" ", flush=True)
