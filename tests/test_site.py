"""The site of `make site`: it builds without a warning, no link in it is dead, its search finds."""

import functools
import http.server
import json
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser
import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = ("sphinx", "myst_nb", "furo", "sphinx-mathjax-offline")


class Page(HTMLParser):
    """What a page points to, and the places in it that can be pointed to."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.places, self.tags, self.shown = [], [], {""}, set(), ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.add(tag)
        if tag != "a":
            self.loaded += [found[key] for key in ("href", "src") if found.get(key)]
        self.links += [found[key] for key in ("href", "src") if found.get(key)]
        self.places |= {found[key] for key in ("id", "name") if found.get(key)}

    def handle_data(self, data):
        self.shown += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a site that was built from this checkout, as `make site` does."""
    if absent := [name for name in PACKAGES if find_spec(name) is None]:
        pytest.skip(f"{', '.join(absent)} not installed: `make site` installs them")
    target = tmp_path_factory.mktemp("built")
    places = ["-c", "docs", "-d", str(target / "trees"), "-b", "html", ".", str(target / "site")]
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", *places]
    assert " ".join(command[1:7]) in (ROOT / "Makefile").read_text()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return target / "site"


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_page_and_notebook_is_on_the_site(site, pages):
    sources = [*ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("docs/quick/*.ipynb")]
    sources += [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")]
    built = {site / path.relative_to(ROOT).with_suffix(".html") for path in sources}
    assert built <= set(pages)
    front = {link.partition("#")[0] for link in pages[site / "index.html"].links}
    assert {str(path.relative_to(site)) for path in built} - front <= {"README.html"}, "the index leads to every page"
    assert any(link.endswith(".png") for link in pages[site / "notebooks" / "02_exact_toys.html"].links)


def test_no_link_inside_the_site_is_dead(site, pages):
    dead = []
    for path, page in pages.items():
        for link in page.links:
            target = urlsplit(link)
            if target.scheme or target.netloc:
                continue
            there = (path.parent / unquote(target.path)).resolve() if target.path else path
            if not there.is_relative_to(site) or not there.is_file():
                dead.append(f"{path.relative_to(site)}: {link}")
            elif there in pages and unquote(target.fragment) not in pages[there].places:
                dead.append(f"{path.relative_to(site)}: no such place {link}")
    assert not dead, "\n".join(dead)


def test_no_page_loads_anything_from_elsewhere(pages):
    """But for links that a reader follows: formulas, styles and scripts lie beside the pages."""
    assert not [link for page in pages.values() for link in page.loaded if urlsplit(link).netloc]


def test_the_search_has_an_index_of_every_page(site):
    text = (site / "searchindex.js").read_text()
    index = json.loads(text[text.index("(") + 1 : text.rindex(")")])
    assert {"README", "docs/glossary", "notebooks/01_closed_form_guidance"} <= set(index["docnames"])
    assert any(word.startswith("cubatur") for word in index["terms"])
    assert (site / "search.html").exists()


@pytest.mark.browser
def test_a_browser_shows_the_index_and_searches(site, tmp_path):
    program = browser.find()
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def shown(address):
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
        options += ["--virtual-time-budget=20000", "--dump-dom"]
        address = f"http://127.0.0.1:{server.server_port}/{address}"
        done = subprocess.run([program, *options, address], capture_output=True, text=True, timeout=300)
        path = tmp_path / "page.html"
        path.write_text(done.stdout, "utf-8")
        return Page(path)

    try:
        front = shown("index.html")
        assert "The AEPO study" in front.shown
        assert "mjx-container" in front.tags, "formulas are not set"
        found = shown("search.html?q=cubature")
        assert any("glossary.html" in link for link in found.links), found.shown[-1000:]
    finally:
        server.shutdown()


def test_what_a_commit_is_checked_by_is_what_the_project_uses():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    *_, keys = next(hook["args"] for hook in hooks if hook["id"] == "nbstripout")
    assert (
        f'--keep-output --keep-count --keep-id --extra-keys \\\n  "{keys}"'
        in (ROOT / "scripts/notebooks.sh").read_text()
    )
    assert all(hook["entry"].startswith(".venv/bin/") for hook in hooks)
    steps = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["test"]["steps"]
    assert steps[-1] == {"run": "make test"}
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step)


def test_the_packages_of_the_site_are_pinned_beside_those_of_the_study():
    site, study = (
        dict(line.lower().split("==") for line in (ROOT / name).read_text().splitlines() if "==" in line)
        for name in ("docs/requirements.txt", "requirements.txt")
    )
    assert {name.replace("_", "-") for name in PACKAGES} <= set(site)
    assert not set(site) & set(study)
