"""A problem whose optimum is known: Gaussian behavior, linear Q, one state."""

import torch
from torch import nn

from aepo.core import models, posterior
from aepo.data import datasets

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


def problem():
    """Data of 20,000 recorded actions, and the exact behavior model."""
    count = 20_000
    action = MEAN + VARIANCE**0.5 * torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    zeros, state = torch.zeros(count), torch.zeros(count, 1)
    ends = -torch.ones(2), torch.ones(2)
    data = datasets.Dataset(
        "g", "g", state, action, zeros, state, zeros, zeros, zeros.long(), torch.zeros(1), torch.ones(1), *ends, None
    )
    behavior = models.Behavior(len(SEEDS), 1, 2, 4, 1, 257)
    behavior.noise_net = ExactNoise()
    behavior.state_std.fill_(1.0), behavior.low.fill_(-1.0), behavior.high.fill_(1.0)
    times = posterior.variance_times(257)
    behavior.variance = (VARIANCE / (1 + (VP.alpha(times) / VP.sigma(times)) ** 2 * VARIANCE)).expand(len(SEEDS), -1)
    return data, behavior
