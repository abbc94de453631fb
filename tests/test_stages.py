"""Trainings on tiny data: independence of seeds, a known Gaussian, artefacts that load, append and resume."""

import json
from dataclasses import replace

import pytest
import torch

from aepo import files, methods, settings
from aepo.core import losses, models, networks
from aepo.data import datasets
from aepo.learners import behavior as behavior_stage
from aepo.learners import critics, energies, policies, training
from aepo.learners.actor import Actor
from aepo.learners.support import sample_support
from aepo.methods import METHODS
from aepo.study import runs, stages
from aepo.study.policy import load_networks

STEPS = 50
ENERGIES = methods.energies(METHODS)
POLICIES = list(policies.MODELS)
STAGES = ["behavior", "critic", *ENERGIES, *POLICIES, "critic-softmax"]


def stage_learner(stage, data, tiny, seeds):
    """The learner of a stage for `seeds`, on behavior and critic networks that depend on the seed alone."""
    if stage == "behavior":
        return behavior_stage.behavior_learner(data, seeds, tiny.behavior)
    if stage == "critic":
        return critics.critic_learner(data, seeds, tiny.critic)
    _, behavior = behavior_stage.behavior_learner(data, seeds, tiny.behavior)
    behavior_stage.finish_behavior(behavior, data, seeds, tiny.behavior)
    if stage == "critic-softmax":
        return critics.critic_learner(data, seeds, tiny.critic, behavior)
    _, critic = critics.critic_learner(data, seeds, tiny.critic)
    critics.finish_critic(critic, data)
    drawn = sample_support(behavior, data, seeds, tiny.energy)
    if stage in POLICIES:
        start = behavior if stage == "weighted" else None
        problem = policies.Problem(stage, data, 2.0, tiny.policy, tiny.critic, critic, drawn, start)
        return policies.policy_learner(problem, seeds)
    support = drawn if METHODS[stage].energy in energies.SUPPORTED else None
    problem = energies.Problem(data, behavior, critic, METHODS[stage], 2.0, tiny.energy, support, goals=True)
    return energies.energy_learner(problem, seeds)


@pytest.mark.parametrize("stage", STAGES)
def test_a_seed_in_a_stack_equals_the_seed_alone(data, tiny, stage):
    doubles = replace(data.to("cpu", torch.float64))
    trained = {}
    for seeds in ((7, 2, 0, 5), (0,)):
        learner, module = stage_learner(stage, doubles, tiny, seeds)
        log = training.fit(learner, STEPS, 1e-3, 20)
        trained[seeds] = module.state_dict(), log[log["seed"] == 0]["step"].tolist()
    stacked, single = trained[(7, 2, 0, 5)][0], trained[(0,)][0]
    for key in single:
        row = networks.select_seeds(stacked[key], [2], 4)
        assert torch.allclose(row, single[key], atol=1e-8), key


def gaussian_data(count=20_000):
    """One state; actions from a correlated Gaussian inside the box."""
    g = torch.Generator().manual_seed(0)
    root = torch.tensor([[0.25, 0.0], [0.15, 0.2]])
    action = torch.tensor([0.2, -0.1]) + torch.randn(count, 2, generator=g) @ root.T
    zeros = torch.zeros(count)
    data = datasets.Dataset(
        "gaussian",
        "gaussian",
        torch.zeros(count, 1),
        action,
        zeros,
        torch.zeros(count, 1),
        zeros,
        zeros,
        zeros.long(),
        torch.zeros(1),
        torch.ones(1),
        -torch.ones(2),
        torch.ones(2),
        (0.0, 1.0),
    )
    return data, root @ root.T


def test_behavior_recovers_a_known_gaussian():
    data, covariance = gaussian_data()
    chosen = settings.BehaviorSettings(width=64, depth=2, steps=1500, batch=256, variance_times=9)
    learner, behavior = behavior_stage.behavior_learner(data, (0, 1), chosen)
    training.fit(learner, chosen.steps, chosen.learning_rate, 500)
    behavior_stage.finish_behavior(behavior, data, (0, 1), chosen)
    noise = torch.randn(2, 8000, 1, 2, generator=torch.Generator().manual_seed(3))
    sample = Actor(behavior, None, None, 0.0, 15, 1).act(torch.zeros(2, 8000, 1), noise)
    for row in sample:
        assert torch.allclose(row.mean(0), torch.tensor([0.2, -0.1]), atol=0.03)
        assert torch.allclose(torch.cov(row.T), covariance, atol=0.012)
    times = torch.linspace(1e-3, 1, 9)
    snr = (models.VP.alpha(times) / models.VP.sigma(times)) ** 2
    eigenvalues = torch.linalg.eigvalsh(covariance)
    exact = (eigenvalues / (1 + snr[:, None] * eigenvalues)).mean(1)
    assert torch.allclose(behavior.variance[:, 1:], exact[1:].expand(2, -1), rtol=0.1)


def test_value_reaches_the_expectile_of_q_in_each_state():
    """Two states with known Q distributions; V must be their 0.8-expectiles (numerically: a fixed point iteration)."""
    q = torch.stack([torch.linspace(-1, 1, 201), torch.linspace(0, 4, 201) ** 2 / 4])
    expected = []
    for values in q:
        e = values.mean()
        for _ in range(500):
            w = torch.where(values > e, 0.8, 0.2)
            e = (w * values).sum() / w.sum()
        expected.append(e.item())
    net = networks.ValueNet(1, 2, 32, 2)
    networks.initialize(net, (0,), "value")
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    states = torch.eye(2).repeat_interleave(201, 0)[None]
    for _ in range(1500):
        optimizer.zero_grad()
        losses.value_loss(net, states, q.reshape(1, -1), 0.8)[0].sum().backward()
        optimizer.step()
    assert net(torch.eye(2)[None]).flatten().tolist() == pytest.approx(expected, abs=0.03)


def test_critic_finds_the_value_of_a_chain():
    """Three states in a row, one action; reward at the end, which terminates: Q = discount^distance."""
    state = torch.eye(3).repeat(400, 1)
    terminated = state[:, 2].clone()
    n = len(state)
    data = datasets.Dataset(
        "chain",
        "chain",
        state,
        torch.zeros(n, 1),
        terminated,
        state.roll(1, 1),
        terminated,
        torch.zeros(n),
        torch.zeros(n).long(),
        torch.zeros(3),
        torch.ones(3),
        -torch.ones(1),
        torch.ones(1),
        (0.0, 1.0),
    )
    chosen = settings.CriticSettings(
        width=32, steps=1500, batch=64, discount=0.5, expectile=0.5, reward_scale=1.0, return_floor=False
    )
    learner, critic = critics.critic_learner(data, (0,), chosen)
    training.fit(learner, chosen.steps, 3e-3, 500)
    q = critic.q.minimum(torch.eye(3)[None], torch.zeros(1, 3, 1)).flatten()
    assert q.tolist() == pytest.approx([0.25, 0.5, 1.0], abs=0.05)


def test_a_stage_is_trained_once_and_missing_seeds_are_added(run, data, tiny, capsys):
    first = stages.train_behavior(run, data)
    stamp = run.artifact("behavior").stat().st_mtime_ns
    again = stages.train_behavior(run, data)
    assert run.artifact("behavior").stat().st_mtime_ns == stamp
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    wider = replace(run, seeds=(4, 1))
    both = stages.train_behavior(wider, data)
    assert json.loads(run.artifact("behavior").with_suffix(".json").read_text())["seeds"] == [0, 1, 4]
    weight = "noise_net.net.out.weight"
    assert torch.equal(both.state_dict()[weight][1], first.state_dict()[weight][1])
    manifest = runs.read_manifest(run.folder)
    assert manifest["stages"]["behavior"]["settings"]["data"] == data.content_hash
    assert (
        manifest["versions"]["torch"] == torch.__version__.split("+")[0]
        or manifest["versions"]["torch"] == torch.__version__
    )


def test_changed_settings_train_again_and_keep_the_old(run, data, tiny, capsys):
    stages.train_behavior(run, data)
    stages.train_behavior(replace(run, task=replace(run.task, settings={"behavior": {"width": 8}})), data)
    assert "settings have changed" in capsys.readouterr().out
    assert len(list(run.folder.glob("behavior.*.old"))) == 1
    assert load_networks(run.folder, "behavior", [0], "cpu").noise_net.net.out.weight.shape[1] == 8


def test_energy_without_its_earlier_stages_says_which_file_is_missing(run, data, tiny):
    behavior = stages.train_behavior(run, data)
    with pytest.raises(files.StudyError, match=r"critic\.safetensors is missing: run the notebook"):
        stages.train_energy(run, data, behavior, None, "aepo")


def test_a_loss_that_is_not_finite_stops_and_says_where(run, data, tiny):
    broken = replace(data, action=data.action * float("nan"))
    with pytest.raises(files.StudyError, match="behavior: the loss of seed 0, 1 is not finite between steps 0 and 20"):
        stages.train_behavior(run, broken)
    assert not run.artifact("behavior").exists()
