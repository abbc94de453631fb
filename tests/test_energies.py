"""Every guided method on a problem whose optimum is known: Gaussian behavior, linear Q, one state."""

from dataclasses import replace

import gaussian
import pytest
import torch
from gaussian import MEAN, SEEDS, SLOPE, VARIANCE, VP, LinearCritic

from aepo import settings
from aepo.learners import energies, support, training
from aepo.learners.actor import Actor
from aepo.learners.draws import Random, part
from aepo.learners.support import sample_support
from aepo.methods import METHODS, Method


@pytest.fixture(scope="module")
def problem():
    return gaussian.problem()


WITH_ENERGY = [name for name in settings.GUIDED if METHODS[name].energy]


@pytest.mark.parametrize("method", WITH_ENERGY)
def test_guided_samples_have_the_mean_of_the_tilted_gaussian(problem, method):
    """pi* = N(mean + beta S slope, S): the same optimum for every method, since here log E exp = mean + const."""
    data, behavior = problem
    chosen = settings.EnergySettings(width=64, depth=2, steps=800, batch=256, target_batches=4, support_states=1_024)
    critic, entry, beta = LinearCritic(), METHODS[method], 1.0
    drawn = sample_support(behavior, data, SEEDS, chosen) if entry.energy in energies.SUPPORTED else None
    learner, net = energies.energy_learner(energies.Problem(data, behavior, critic, entry, beta, chosen, drawn), SEEDS)
    training.fit(learner, chosen.steps, 2e-3, 400)
    noise = torch.randn(len(SEEDS), 4_000, 1, 2, generator=torch.Generator().manual_seed(3))
    sample = Actor(behavior, None, net.requires_grad_(False), 1.0, 15, 1).act(torch.zeros(len(SEEDS), 4_000, 1), noise)
    expected = MEAN + beta * VARIANCE * SLOPE
    assert (expected - MEAN).norm() > 0.07
    for row in sample:
        assert torch.allclose(row.mean(0), expected, atol=0.02), row.mean(0)


class TwoLevels(LinearCritic):
    """One state in ten is worth 12 more, as the heavy tail of a trained critic's advantages."""

    def advantage(self, state, action):
        return super().advantage(state, action) + 12 * state[..., 0].repeat_interleave(
            action.shape[1] // state.shape[1], 1
        )


@pytest.mark.parametrize(
    ("method", "steps"), [(METHODS["aepo-support"], 800), (Method("clean", "", "", energy="clean"), 3_000)]
)
def test_no_state_outweighs_the_others(problem, method, steps):
    """With one weight exp(E) for all states, states of low advantage are not learned (Hopper: a return of 5)."""
    data, behavior = problem
    state = (torch.arange(len(data)) % 10 == 0).float().unsqueeze(1)
    data = replace(data, state=state, next_state=state)
    chosen = settings.EnergySettings(
        width=64, depth=2, steps=steps, batch=256, target_batches=4, support_states=2_048, bregman=True
    )
    drawn = sample_support(behavior, data, SEEDS, chosen) if method.energy == "support" else None
    problem = energies.Problem(data, behavior, TwoLevels(), method, 1.0, chosen, drawn)
    learner, net = energies.energy_learner(problem, SEEDS)
    training.fit(learner, chosen.steps, 2e-3, 400)
    noise = torch.randn(len(SEEDS), 4_000, 1, 2, generator=torch.Generator().manual_seed(3))
    actor = Actor(behavior, None, net.requires_grad_(False), 1.0, 15, 1)
    for level in (0.0, 1.0):
        sample = actor.act(torch.full((len(SEEDS), 4_000, 1), level), noise)
        for row in sample:
            assert torch.allclose(row.mean(0), MEAN + VARIANCE * SLOPE, atol=0.05), (level, row.mean(0))


def test_support_actions_come_from_the_behavior(problem, monkeypatch):
    data, behavior = problem
    chosen = settings.EnergySettings(support=8, support_states=500, support_steps=15)
    drawn = sample_support(behavior, data, SEEDS, chosen)
    assert drawn.action.shape == (2, 500, 8, 2)
    assert all(len(set(row.tolist())) == 500 for row in drawn.index)
    for row in drawn.action.flatten(1, 2):
        assert torch.allclose(row.mean(0), MEAN, atol=0.02)
        assert torch.allclose(torch.cov(row.T), VARIANCE * torch.eye(2), atol=0.01)
    monkeypatch.setattr(support, "ROWS", 64)
    again = sample_support(behavior, data, SEEDS, chosen)
    assert torch.allclose(drawn.action, again.action, atol=1e-4)


class FewExtremeStates(LinearCritic):
    """One state in fifty has a slope a hundred times as steep: what heavy-tailed advantages do to squared error."""

    def advantage(self, state, action):
        steep = 1 + 99 * state[..., 0].repeat_interleave(action.shape[1] // state.shape[1], 1)
        return steep * super().advantage(state, action) + 30 * steep

    @property
    def bounds(self):
        return torch.full((len(SEEDS), 1), -1e6), torch.full((len(SEEDS), 1), 1e6)


def test_a_closed_form_is_learned_where_a_few_states_are_extreme(problem):
    data, behavior = problem
    state = (torch.arange(len(data)) % 50 == 0).float().unsqueeze(1)
    data = replace(data, state=state, next_state=state)
    chosen = settings.EnergySettings(width=64, depth=2, steps=800, batch=256, target_batches=4)
    problem = energies.Problem(
        data, behavior, FewExtremeStates(), replace(METHODS["aepo"], energy="cubature"), 1.0, chosen
    )
    learner, net = energies.energy_learner(problem, SEEDS)
    training.fit(learner, chosen.steps, 2e-3, 400)
    noise = torch.randn(len(SEEDS), 4_000, 1, 2, generator=torch.Generator().manual_seed(3))
    sample = Actor(behavior, None, net.requires_grad_(False), 1.0, 15, 1).act(torch.zeros(len(SEEDS), 4_000, 1), noise)
    for row in sample:
        assert torch.allclose(row.mean(0), MEAN + VARIANCE * SLOPE, atol=0.03), row.mean(0)


def test_the_jacobian_gate_learns_a_gaussian_at_small_and_large_t(problem):
    """The guidance is beta alpha c_t / sigma^2 slope at every t: what multiplies it in the network is a constant.

    Near pure noise its target is nearly constant in a_t, and an ungated network is wrong there by a factor of 50.
    """
    data, behavior = problem
    chosen = settings.EnergySettings(width=64, depth=2, steps=800, batch=256, target_batches=4, gate="jacobian")
    entry = energies.applied(METHODS["aepo"], chosen)
    learner, net = energies.energy_learner(energies.Problem(data, behavior, LinearCritic(), entry, 1.0, chosen), SEEDS)
    training.fit(learner, chosen.steps, 2e-3, 400)
    noise = torch.randn(len(SEEDS), 2_000, 2, generator=torch.Generator().manual_seed(3))
    for moment, most in ((0.02, 0.1), (0.2, 0.2), (0.95, 0.7), (1.0, 0.7)):
        t = torch.tensor(moment)
        alpha, sigma = VP.alpha(t), VP.sigma(t)
        exact = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * SLOPE
        found = net.gradient(torch.zeros(len(SEEDS), 2_000, 1), alpha * data.action[:2_000] + sigma * noise, t)
        error = (found - exact).square().sum(-1).mean(-1).sqrt() / exact.norm()
        assert (error < most).all(), (moment, error)


@pytest.mark.parametrize(("method", "own"), [("aepo", False), ("aepo-net", True)])
def test_closed_forms_can_be_learned_beyond_the_data(problem, method, own):
    """Half of the states are moved, half of the actions anywhere in the box; a shift network's own way, not an energy's."""
    data, behavior = problem
    chosen = settings.EnergySettings(width=16, depth=2, batch=64, target_batches=2)
    for beyond, wanted in ((None, own), (True, True), (False, False)):
        given = energies.Problem(data, behavior, LinearCritic(), METHODS[method], 1.0, replace(chosen, beyond=beyond))
        learner, _ = energies.energy_learner(given, SEEDS)
        draws = learner.draw(Random(SEEDS, "beyond", like=data.state, count=1))
        assert ("jitter" in draws) == wanted
        assert torch.isfinite(learner.loss(part(draws, 0))[0]).all()
    state, action = torch.zeros(len(SEEDS), 64, 1), torch.full((len(SEEDS), 64, 2), 0.3)
    draws = part({"jitter": torch.ones(1, len(SEEDS), 64, 1), "uniform": torch.rand(1, len(SEEDS), 64, 2)}, 0)
    moved, other = energies.Beyond(given, True).move(draws, state, action)
    assert (moved == chosen.jitter).sum() == (moved == 0).sum() == len(SEEDS) * 32
    assert (other == 0.3).all(-1).sum() == len(SEEDS) * 32
    assert other.abs().max() <= 1
    both = (moved[0, :, 0] > 0).int() * 2 + (other[0, :, 0] == 0.3).int()
    assert both.bincount().tolist() == [16] * 4, "each half with each half"
