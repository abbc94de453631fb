"""The trained policies of policies/: their cards, loading, acting, an episode, and as graphs without this package."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from aepo import Policy, files
from aepo.core.models import ClosedForm
from aepo.data import tasks
from aepo.methods import DATASET
from aepo.study import evaluation, runs, tables, verify

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(path.parent for path in ROOT.glob("policies/*/manifest.json"))


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cards, export_graph = script("cards"), script("export_graph")
each_policy = pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)


@pytest.fixture(scope="module")
def rows():
    return tables.main_rows(ROOT / "runs" / "results.csv", "study")


def test_the_cards_are_what_the_script_writes(tmp_path):
    """From the folders and the tables alone; what stands above the table in the page stays."""
    shutil.copytree(ROOT / "policies", tmp_path / "policies")
    for path in tmp_path.glob("policies/*/README.md"):
        path.unlink()
    page = ROOT / "docs" / "policies.md"
    copy = tmp_path / "policies.md"
    copy.write_text(page.read_text().partition(cards.MARK)[0] + cards.MARK + "\n\nolder table\n")
    cards.write(tmp_path / "policies", copy)
    assert copy.read_text() == page.read_text()
    for folder in FOLDERS:
        assert (tmp_path / "policies" / folder.name / "README.md").read_text() == (folder / "README.md").read_text()
    copy.write_text("no line\n")
    with pytest.raises(files.StudyError, match="has no line"):
        cards.write(tmp_path / "policies", copy)


@each_policy
def test_the_numbers_of_a_card_are_those_of_the_episodes(folder, rows):
    text, task = (folder / "README.md").read_text(), tasks.get(folder.name)
    own = rows[rows["task"] == task.name]
    method, seed = re.search(r"^# \S+: (\S+), seed (\d+)$", text, re.MULTILINE).groups()
    assert method == tables.claims()["recommended"]
    played = own[own["method"] == method]
    parts = [own[own["method"] == DATASET], played, played[played["seed"] == int(seed)]]
    shown = re.findall(
        r"^\| [^|]+ \| (-?[\d.]+) \[([^\]]+)\] \| (-?[\d.]+) \[([^\]]+)\] \| \S+ \| (\d+) \|$", text, re.M
    )
    assert len(shown) == len(parts)
    for part, (mean, interval, score, of_score, count) in zip(parts, shown, strict=True):
        assert float(mean) == pytest.approx(part["return"].mean(), abs=0.051)
        assert float(score) == pytest.approx(part["score"].mean(), abs=0.051)
        assert int(count) == len(part)
        for value, ends in ((mean, interval), (score, of_score)):
            low, high = map(float, ends.split(", "))
            assert low < float(value) < high
    ((dataset_id, data),) = runs.read_manifest(folder)["data"].items()
    assert f"`{dataset_id}`, hash `{data['content_hash']}`" in text
    assert task.dataset_ids["study"] == dataset_id


@each_policy
def test_a_policy_loads_and_acts_in_the_box(folder, capsys):
    """As the lines of its card do, and for states far away."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    made = {}
    exec(code, made)
    assert capsys.readouterr().out.startswith("[")
    box, policy = made["env"].action_space, made["policy"]
    states = made["state"] + np.random.default_rng(0).normal(size=(200, len(made["state"]))) * 10
    actions = policy.act(states)
    assert actions.shape == (200, *box.shape)
    assert (actions >= box.low).all()
    assert (actions <= box.high).all()
    assert np.ptp(actions, axis=0).min() > 0


def test_the_policies_are_small_whole_and_of_no_machine(tmp_path, monkeypatch):
    monkeypatch.setenv(files.DATASETS, str(tmp_path))  # data that are here may be others
    assert len(FOLDERS) >= 6
    every = [path for path in (ROOT / "policies").rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in every) < 1_000_000
    assert sum(path.stat().st_size for path in every) < 4_000_000
    for folder in FOLDERS:
        assert not [*verify.problems(folder)], folder
        assert not re.search(rb"/(home|root|work|tmp|Users)/", b"".join(p.read_bytes() for p in folder.iterdir()))


def test_a_policy_plays_the_episodes_of_the_table(rows):
    """Far above what was recorded, and as the run that it was exported from played them."""
    name = "local-pointmaze-umaze"
    task, own = tasks.get(name), rows[rows["task"] == name]
    actor = Policy.load(f"policies/{name}", device="cpu").actor
    returns = evaluation.rollout(actor, evaluation.Copies(task, 2), [0], 2, task.horizon).returns[0]
    known = own[(own["method"] == "aepo-weighted") & (own["seed"] == 0)].sort_values("episode")["return"].to_numpy()
    assert returns.min() > 10 * own[own["method"] == DATASET]["return"].mean()
    assert returns == pytest.approx(known[:2], rel=0.05)


def test_the_example_in_gymnasium_scores(rows):
    done = subprocess.run([sys.executable, "examples/act.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    total, score = map(int, re.fullmatch(r"return (-?\d+), score (-?\d+)\n", done.stdout).groups())
    own = rows[rows["task"] == "local-halfcheetah-mixed"]
    low, high = next(iter(runs.read_manifest(ROOT / "policies" / own["task"].iloc[0])["data"].values()))[
        "reference_scores"
    ]
    assert score == round(100 * (total - low) / (high - low))
    assert score > 1.15 * own[own["method"] == DATASET]["score"].mean()


def test_a_folder_of_one_method_needs_no_name():
    assert isinstance(Policy.load("policies/maze2d-large", device="cpu").actor.guide, ClosedForm)
    with pytest.raises(files.StudyError, match="no evaluation of 'bc'"):
        Policy.load("policies/maze2d-large", "bc")


@pytest.mark.parametrize(("name", "guided"), [("maze2d-medium", True), ("local-hopper-medium-expert", False)])
def test_a_graph_acts_as_its_policy_without_this_package(name, guided, tmp_path):
    """Guided by the cubature shift, and weighted cloning: the same actions to 1e-5, in a process that lacks aepo."""
    policy = Policy.load(f"policies/{name}", device="cpu")
    assert (policy.actor.guide is not None) == guided
    policy.actor.solver_steps = 3  # a graph has a node an operation: quicker to make
    export_graph.export(policy, tmp_path / "policy.pt2")
    n, k, d = export_graph.shapes(policy)
    random = torch.Generator().manual_seed(0)
    behavior = policy.actor.behavior
    state = behavior.state_mean[0] + 2 * behavior.state_std[0] * torch.randn(300, n, generator=random)
    noise = torch.randn(300, k, d, generator=random)
    torch.save([state, noise], tmp_path / "given.pt")
    code = """
import sys, torch
act = torch.export.load("policy.pt2").module()
state, noise = torch.load("given.pt")
torch.save([act(state, noise), act(state[:1], noise[:1])], "made.pt")
assert not [name for name in sys.modules if name.startswith("aepo")]
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    many, one = torch.load(tmp_path / "made.pt")
    expected = policy.actor.act(state[None], noise[None])[0]
    assert (many - expected).abs().max() <= 1e-5
    assert (one - expected[:1]).abs().max() <= 1e-5
    assert many.std(0).min() > 0.01
    assert export_graph.compared(policy, tmp_path / "policy.pt2")[0] <= 1e-5
    assert str(ROOT).encode() not in (tmp_path / "policy.pt2").read_bytes()


def test_a_policy_that_takes_gradients_is_no_graph(tmp_path):
    policy = Policy.load("policies/maze2d-medium", device="cpu")
    policy.actor.guide.kind = "taylor"
    with pytest.raises(files.StudyError, match="takes gradients while it acts"):
        export_graph.export(policy, tmp_path / "policy.pt2")
    assert not list(tmp_path.iterdir())
