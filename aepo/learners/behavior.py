"""The behavior stage: a diffusion model of the recorded actions, and the variance of its posterior."""

from __future__ import annotations

import torch
from torch import nn

from aepo.core import losses, posterior
from aepo.core.models import VP, Behavior
from aepo.core.networks import NoiseNet, generator, initialize
from aepo.data.datasets import Dataset
from aepo.learners.support import diffusion_draws
from aepo.learners.training import Learner, stack_draws
from aepo.settings import BehaviorSettings


def behavior_learner(data: Dataset, seeds: tuple[int, ...], settings: BehaviorSettings) -> tuple[Learner, Behavior]:
    """Denoising training; the returned Behavior holds the moving average of the trained parameters."""
    n, d, like = data.state.shape[1], data.action.shape[1], data.state
    module = nn.ModuleDict(
        {
            "average": Behavior(len(seeds), n, d, settings.width, settings.depth, settings.variance_times),
            "trained": NoiseNet(len(seeds), n, d, settings.width, settings.depth, VP),
        }
    ).to(like)
    behavior, trained = module["average"], module["trained"]
    initialize(trained, seeds, "behavior")
    behavior.requires_grad_(False).noise_net.load_state_dict(trained.state_dict())
    behavior.scale(data.state_mean, data.state_std, data.action_low, data.action_high)
    state = data.standardize(data.state)
    averaged, parameters = list(behavior.noise_net.parameters()), list(trained.parameters())

    def draw(generators, count):
        return diffusion_draws(generators, count, settings.batch, len(data), d, state.dtype)

    def loss(draws):
        return losses.behavior_loss(
            trained, state[draws["index"]], data.action[draws["index"]], draws["noise"], draws["t"], VP
        )

    def after_step():
        torch._foreach_lerp_(averaged, [p.detach() for p in parameters], settings.ema_rate)

    return Learner("behavior", seeds, module, parameters, draw, loss, after_step), behavior


@torch.no_grad()
def finish_behavior(behavior: Behavior, data: Dataset, seeds: tuple[int, ...], settings: BehaviorSettings) -> None:
    """Fill the posterior variance table from recorded actions."""
    state = data.standardize(data.state)
    generators = [generator(seed, "variance", device=state.device) for seed in seeds]
    count = settings.variance_samples
    index = stack_draws(generators, lambda g: torch.randint(len(data), (1, count), generator=g, device=g.device))[0]
    shape = (settings.variance_times, count, data.action.shape[1])
    noise = stack_draws(generators, lambda g: torch.randn(shape, generator=g, device=g.device, dtype=state.dtype))
    times = posterior.variance_times(settings.variance_times, state.device, state.dtype)
    table = posterior.fit_isotropic(
        lambda noisy, t: behavior.noise_net(state[index], noisy, t), data.action[index], noise, times, VP
    )
    behavior.variance.copy_(table)
