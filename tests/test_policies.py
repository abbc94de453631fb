"""Every method without an energy network on a problem whose optimum is known."""

from dataclasses import replace

import gaussian
import pytest
import torch
from gaussian import MEAN, SEEDS, SLOPE, VARIANCE, LinearCritic

from aepo import files, settings
from aepo.core import losses
from aepo.core.guidance import KINDS
from aepo.core.models import ClosedForm
from aepo.learners import critics, policies, training
from aepo.learners.actor import Acting, Actor, make_actor
from aepo.learners.support import sample_support
from aepo.methods import METHODS
from aepo.study import evaluation, runs, stages
from aepo.study.policy import Policy
from aepo.study.runs import export

BETA = 1.0
TILTED = MEAN + BETA * VARIANCE * SLOPE  # of pi* = N(mean + beta S slope, S)
SMALL = settings.PolicySettings(width=64, depth=2, steps=1_200, batch=256)
CRITIC = settings.CriticSettings(width=32, depth=2, discount=0.9, reward_scale=1.0)


@pytest.fixture(scope="module")
def problem():
    return gaussian.problem()


def states(count):
    return torch.zeros(len(SEEDS), count, 1)


def noise(count, candidates=1):
    return torch.randn(len(SEEDS), count, candidates, 2, generator=torch.Generator().manual_seed(3))


def train(kind, data, steps=SMALL.steps, chosen=SMALL, rate=2e-3, **more):
    learner, module = policies.policy_learner(policies.Problem(kind, data, BETA, chosen, CRITIC, **more), SEEDS)
    log = training.fit(learner, steps, rate, 400)
    return module.requires_grad_(False), log


def sampled(model, count=4_000, steps=15):
    return Actor(model, None, None, 0.0, steps, 1).act(states(count), noise(count))


@pytest.mark.parametrize("kind", KINDS)
def test_closed_forms_at_sampling_are_exact_for_a_linear_q(problem, kind):
    _, behavior = problem
    actor = Actor(behavior, None, ClosedForm(kind, behavior, LinearCritic(), BETA), 1.0, 15, 1)
    for row in actor.act(states(4_000), noise(4_000)):
        assert torch.allclose(row.mean(0), TILTED, atol=0.01), row.mean(0)


@pytest.mark.parametrize("method", ["aepo-shift", "aepo-cubature"])
def test_closed_forms_of_the_shift_tilt_the_behavior(problem, method):
    """First order is exact for a linear Q; five points are to the third degree, and are clipped to the box."""
    _, behavior = problem
    how = Acting(BETA, 1.0, 15, form="taylor-2")  # what a network learns: a shift has none of this kind
    actor = make_actor(METHODS[method], behavior, LinearCritic(), None, how)
    for row in actor.act(states(4_000), noise(4_000)):
        assert torch.allclose(row.mean(0), TILTED, atol=0.01 if method == "aepo-shift" else 0.015), row.mean(0)


@pytest.mark.parametrize("kind", ["weighted", "flow"])
def test_energy_weighted_training_tilts_the_behavior(problem, kind):
    data, behavior = problem
    drawn = sample_support(behavior, data, SEEDS, settings.EnergySettings(support=32, support_states=2_048))
    module, _ = train(kind, data, critic=LinearCritic(), support=drawn)
    for row in sampled(module.average):
        assert torch.allclose(row.mean(0), TILTED, atol=0.025), row.mean(0)
        assert torch.allclose(row.var(0), torch.full((2,), VARIANCE), atol=0.015), row.var(0)


def test_a_later_round_goes_on_from_the_one_before(run, data, tiny, monkeypatch):
    monkeypatch.setitem(settings.PROFILES, "smoke", tiny)
    started = {}

    def learner(problem, seeds, name):
        made = policies.policy_learner(problem, seeds, name)
        net = "velocity" if problem.kind == "flow" else "noise_net"
        started[name] = (problem.start, [p.clone() for p in getattr(made[1].policy, net).parameters()])
        return made

    monkeypatch.setattr(stages, "policy_learner", learner)
    behavior, critic = stages.train_behavior(run, data), stages.train_critic(run, data)
    for method, net in (("qipo", "noise_net"), ("qipo-flow", "velocity")):
        stages.train_policy(run, data, behavior, critic, method)
        rounds = [name for name in started if name.startswith(f"policy-{method}-b")]
        (first, _), (second, begun) = (started[name] for name in rounds)
        assert (first is None) == (method == "qipo-flow")
        assert all(map(torch.equal, getattr(second, net).parameters(), begun))
        steps = [runs.read_metrics(run, name)["step"].max() for name in rounds]
        more = 20 if method == "qipo-flow" else 0  # a behavior's steps, for who starts from nothing
        assert steps == [10 + more, 10]


def test_iql_extracts_the_mean_and_spread_of_the_tilted_gaussian(problem):
    data, _ = problem
    module, _ = train("gaussian", data, critic=LinearCritic())
    for row, log_std in zip(sampled(module.average, 10), module.average.log_std, strict=True):
        assert torch.allclose(row[0], TILTED, atol=0.02), row[0]
        assert torch.allclose(log_std.exp()[0], torch.full((2,), VARIANCE**0.5), atol=0.02)


def bandit(data, reward):
    """One step that ends: Q(s, a) is the reward of the action."""
    count = len(data)
    return replace(data, reward=reward(data.action), terminated=torch.ones(count), episode=torch.arange(count))


def test_td3bc_trades_cloning_against_q(problem):
    """Q = slope.(a - mean) + 1: the optimum mean + x slope/|slope|^2 with x (x + 1) = alpha |slope|^2 (two dimensions)."""
    data = bandit(problem[0], lambda action: (action - MEAN) @ SLOPE + 1)
    chosen = replace(SMALL, alpha=0.1)
    module, log = train("deterministic", data, steps=1_600, chosen=chosen, rate=5e-3)
    size = SLOPE.square().sum()
    x = (-1 + torch.sqrt(1 + 4 * chosen.alpha * size)) / 2
    for row in sampled(module.average, 10):
        assert torch.allclose(row[0], MEAN + x * SLOPE / size, atol=0.05), (row[0], MEAN + x * SLOPE / size)
    assert log["td_loss"].iloc[-1] < 0.1


def test_diffusion_ql_goes_toward_the_best_action_of_the_data(problem):
    """Uniform actions, Q = 1 - (a - 0.5)^2: eta = 0 clones, eta = 1 moves toward the maximum."""
    action = 2 * torch.rand(20_000, 2, generator=torch.Generator().manual_seed(1)) - 1
    data = bandit(replace(problem[0], action=action), lambda a: 1 - (a[:, 0] - 0.5) ** 2)
    spread, middle = {}, {}
    for eta in (0.0, 1.0):
        module, _ = train("diffusion-q", data, steps=600, chosen=replace(SMALL, eta=eta, width=32, ema_rate=0.02))
        first = torch.stack([row[:, 0] for row in sampled(module.average, 2_000, SMALL.chain)])
        spread[eta], middle[eta] = first.std(1), first.median(1).values
    assert middle[0.0].abs().max() < 0.15
    assert ((middle[1.0] > 0.25) & (middle[1.0] < 0.6)).all()
    assert (spread[1.0] < 0.8 * spread[0.0]).all()


def test_best_of_n_is_the_greatest_of_n_and_softmax_the_tilted_mean(problem):
    _, behavior = problem
    best = make_actor(METHODS["best-of-n"], behavior, LinearCritic(), None, Acting(0.0, 0.0, 15, 16))
    advantage = LinearCritic().advantage(None, best.act(states(4_000), noise(4_000, 16)))
    spread = (VARIANCE * SLOPE.square().sum()) ** 0.5
    assert torch.allclose(advantage.mean(1), 1.766 * spread.expand(2), atol=0.03)  # mean of the greatest of 16 normals
    how = Acting(BETA, 0.0, 15, 16, pick="softmax")
    softmax = make_actor(METHODS["best-of-n"], behavior, LinearCritic(), None, how)
    assert softmax.draws == 17
    without = make_actor(METHODS["best-of-n"], behavior, LinearCritic(), None, replace(how, beta=0.0))
    assert without.temperature == pytest.approx(1 / 3)  # a method that has no inverse temperature of its own
    for row in softmax.act(states(4_000), noise(4_000, 17)):
        assert torch.allclose(row.mean(0), TILTED, atol=0.025), row.mean(0)


def test_the_in_support_backup_is_between_mean_and_greatest():
    q = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    weight = torch.sigmoid(torch.tensor(1 / (0.5 * 2.0)))  # spread .5, temperature 2
    assert torch.allclose(losses.in_support_value(q, 2.0), torch.tensor([[0.0, 2.0]]) + weight)
    assert torch.allclose(losses.in_support_value(q, 1e-3), q.amax(-1))
    assert torch.allclose(losses.in_support_value(q, 1e6), q.mean(-1), atol=1e-5)


def test_the_softmax_critic_finds_the_value_of_its_own_backup(problem):
    """One state, reward slope.(a - mean), tau -> 0: V = E[greatest of 8 rewards] / (1 - discount)."""
    data, behavior = problem
    data = replace(data, reward=(data.action - MEAN) @ SLOPE)
    chosen = replace(
        CRITIC,
        steps=1_500,
        support=8,
        support_steps=10,
        target_rate=0.1,
        discount=0.8,
        temperature=1e-3,
        return_floor=False,
    )
    learner, critic = critics.critic_learner(replace(data), SEEDS, chosen, behavior)
    training.fit(learner, chosen.steps, 2e-3, 500)
    best = 1.4236 * (VARIANCE * SLOPE.square().sum()) ** 0.5  # mean of the greatest of 8 normals
    value = critic.value(torch.zeros(len(SEEDS), 1, 1)).squeeze()
    assert torch.allclose(value, (best / (1 - chosen.discount)).expand(2), rtol=0.06), (value, best)


@pytest.mark.parametrize("method", ["td3bc", "diffusion-ql"])
def test_an_exported_policy_with_a_critic_of_its_own_acts_as_the_run_does(run, data, tiny, monkeypatch, method):
    """An export leaves target networks out; a policy that has one must load without."""
    small = replace(tiny.evaluation, episodes=1, solver_steps=2, candidates=2)
    monkeypatch.setitem(settings.PROFILES, "smoke", replace(tiny, evaluation=small))
    run = replace(run, methods=(method,), task=replace(run.task, horizon=3))
    behavior, critic = stages.train_behavior(run, data), stages.train_critic(run, data)
    stages.train_policy(run, data, behavior, critic, method)
    evaluation.evaluate(run, method)
    target = run.folder.parent / "exported"
    export(run.folder, target, 1, [method])
    state, g = data.state[0].numpy(), torch.Generator()
    own, exported = (
        Policy.load(folder, method, seed=1).act(state, g.manual_seed(0)) for folder in (run.folder, target)
    )
    assert (own == exported).all()
    with pytest.raises(files.StudyError, match="is the run itself"):
        export(run.folder, run.folder, 1, [method])
