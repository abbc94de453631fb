"""Every guided method on a problem whose optimum is known: Gaussian behavior, linear Q, one state."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from aepo import datasets, energies, models, posterior, settings, training
from aepo.methods import METHODS
from aepo.policy import Actor

SEEDS = (0, 1)
MEAN = torch.tensor([0.1, -0.1])
VARIANCE = 0.05  # of either action: round, so that the closed forms' isotropic posterior is exact
VP = models.VP
SLOPE = torch.tensor([2.0, -1.5])


class ExactNoise(nn.Module):
    """The noise model of N(MEAN, VARIANCE I): sigma (a_t - alpha mean) / (alpha^2 variance + sigma^2)."""

    def forward(self, state, noisy_action, t):
        alpha, sigma = VP.alpha(t), VP.sigma(t)
        if t.ndim:
            alpha, sigma = alpha.unsqueeze(-1), sigma.unsqueeze(-1)
        return sigma * (noisy_action - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2)


class LinearCritic(nn.Module):
    """Advantage slope . (a - mean), as the critic's: state `(S, B, n)`, action `(S, B K, d)`."""

    def advantage(self, state, action):
        return (action - MEAN) @ SLOPE

    @property
    def bounds(self):
        return torch.full((len(SEEDS), 1), -3.0), torch.full((len(SEEDS), 1), 3.0)


@pytest.fixture(scope="module")
def problem():
    count = 20_000
    action = MEAN + VARIANCE**0.5 * torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    zeros, state = torch.zeros(count), torch.zeros(count, 1)
    ends = -torch.ones(2), torch.ones(2)
    data = datasets.Dataset(
        "g", "g", state, action, zeros, state, zeros, zeros, zeros.long(), torch.zeros(1), torch.ones(1), *ends, None
    )
    behavior = models.Behavior(len(SEEDS), 1, 2, settings.BehaviorSettings(width=4, depth=1, variance_times=257))
    behavior.noise_net = ExactNoise()
    behavior.state_std.fill_(1.0), behavior.low.fill_(-1.0), behavior.high.fill_(1.0)
    times = posterior.variance_times(257)
    behavior.variance = (VARIANCE / (1 + (VP.alpha(times) / VP.sigma(times)) ** 2 * VARIANCE)).expand(len(SEEDS), -1)
    return data, behavior


@pytest.mark.parametrize("method", settings.GUIDED)
def test_guided_samples_have_the_mean_of_the_tilted_gaussian(problem, method):
    """pi* = N(mean + beta S slope, S): the same optimum for every method, since here log E exp = mean + const."""
    data, behavior = problem
    chosen = settings.EnergySettings(width=64, depth=2, steps=800, batch=256, target_batches=4, support_states=1_024)
    critic, entry, beta = LinearCritic(), METHODS[method], 1.0
    support = energies.sample_support(behavior, data, SEEDS, chosen) if entry.energy in energies.SUPPORTED else None
    learner, net = energies.energy_learner(data, behavior, critic, entry, beta, SEEDS, chosen, support=support)
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


@pytest.mark.parametrize(("method", "steps"), [("aepo-support", 800), ("exp-q", 3_000)])
def test_no_state_outweighs_the_others(problem, method, steps):
    """With one weight exp(E) for all states, states of low advantage are not learned (Hopper: a return of 5)."""
    data, behavior = problem
    state = (torch.arange(len(data)) % 10 == 0).float().unsqueeze(1)
    data = replace(data, state=state, next_state=state)
    chosen = settings.EnergySettings(width=64, depth=2, steps=steps, batch=256, target_batches=4, support_states=2_048)
    support = energies.sample_support(behavior, data, SEEDS, chosen) if method == "aepo-support" else None
    learner, net = energies.energy_learner(
        data, behavior, TwoLevels(), METHODS[method], 1.0, SEEDS, chosen, support=support
    )
    training.fit(learner, chosen.steps, 2e-3, 400)
    noise = torch.randn(len(SEEDS), 4_000, 1, 2, generator=torch.Generator().manual_seed(3))
    actor = Actor(behavior, None, net.requires_grad_(False), 1.0, 15, 1)
    for level in (0.0, 1.0):
        sample = actor.act(torch.full((len(SEEDS), 4_000, 1), level), noise)
        for row in sample:
            assert torch.allclose(row.mean(0), MEAN + VARIANCE * SLOPE, atol=0.05), (level, row.mean(0))


def test_support_actions_come_from_the_behavior(problem):
    data, behavior = problem
    chosen = settings.EnergySettings(support=8, support_states=500, support_steps=15)
    drawn = energies.sample_support(behavior, data, SEEDS, chosen)
    assert drawn.action.shape == (2, 500, 8, 2)
    assert all(len(set(row.tolist())) == 500 for row in drawn.index)
    for row in drawn.action.flatten(1, 2):
        assert torch.allclose(row.mean(0), MEAN, atol=0.02)
        assert torch.allclose(torch.cov(row.T), VARIANCE * torch.eye(2), atol=0.01)
    again = energies.sample_support(behavior, data, SEEDS, chosen, batch=64)
    assert torch.allclose(drawn.action, again.action, atol=1e-4)
