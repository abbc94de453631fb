"""scripts/visited.py measures a shift network against its closed form."""

import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from aepo.core.models import Behavior, ClosedShift, Critic
from aepo.learners.actor import Actor

_spec = importlib.util.spec_from_file_location("visited", Path(__file__).parents[1] / "scripts" / "visited.py")
visited = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(visited)


@pytest.mark.parametrize("factor", [0.0, 0.9, 1.0])
def test_a_network_of_k_shifts_is_wrong_by_one_less_k_squared(factor, monkeypatch, tmp_path):
    torch.manual_seed(0)
    behavior, critic = Behavior(2, 3, 2, 16, 1, 5), Critic(2, 3, 2, 16, 1)
    behavior.state_std.fill_(1.0)
    for weight in [*behavior.parameters(), *critic.parameters()]:
        weight.data.normal_(std=0.3)
    exact = ClosedShift("cubature", behavior, critic, 3.0)
    net = SimpleNamespace(shift=lambda *at: factor * exact.shift(*at))
    actor = Actor(behavior, None, net, 0.0, 3, 1)
    monkeypatch.setattr(visited, "load_actor", lambda *_: actor)
    monkeypatch.setattr(visited, "load_networks", lambda *_: critic)
    entry = {"seeds": [0, 1], "beta": 3.0, "guidance_scale": 1.0, "solver_steps": 3}
    monkeypatch.setattr(visited.runs, "read_manifest", lambda _: {"evaluation": {"aepo-net": entry}})
    wrong, size = visited.squares(tmp_path, torch.randn(2, 50, 3))
    assert (size > 0).all()
    assert math.isclose(wrong.sum() / size.sum(), (1 - factor) ** 2, abs_tol=1e-6)


def test_visited_states_leave_out_what_was_not_played(tmp_path):
    states = torch.full((6, 2, 2, 3), float("nan"))
    states[:4, 0], states[:2, 1] = 1.0, 2.0
    visited.files.save_tensors(tmp_path / "evaluation" / "aepo-net.safetensors", {"states": states}, {})
    assert visited.visited(tmp_path, 5).tolist() == [[[1.0] * 3] * 5, [[2.0] * 3] * 5]


def test_a_run_without_the_ablation_is_refused_in_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(visited.datasets, "load", lambda *_: range(10))
    with pytest.raises(visited.files.StudyError, match="no aepo-net: run `aepo ablations --questions beyond`"):
        visited.compare(tmp_path / "quick" / "maze2d-umaze", tmp_path)
