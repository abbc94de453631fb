"""The behavior stage: a diffusion model of the recorded actions, and the variance of its posterior."""

import torch
from torch import Tensor, nn

from aepo.core import losses, posterior
from aepo.core.models import VP, Behavior
from aepo.core.networks import NoiseNet, initialize
from aepo.data.datasets import Dataset
from aepo.learners.draws import Random, weighted_index
from aepo.learners.training import Learner, follow
from aepo.settings import BehaviorSettings


def behavior_learner(data: Dataset, seeds: tuple[int, ...], settings: BehaviorSettings) -> tuple[Learner, Behavior]:
    """Denoising training; the returned Behavior holds the moving average of the trained parameters."""
    n, d = data.state.shape[1], data.action.shape[1]
    behavior = Behavior(len(seeds), n, d, settings.width, settings.depth, settings.variance_times)
    trained = NoiseNet(len(seeds), n, d, settings.width, settings.depth, VP)
    module = nn.ModuleDict({"average": behavior, "trained": trained}).to(data.state)
    initialize(trained, seeds, "behavior")
    behavior.requires_grad_(False).noise_net.load_state_dict(trained.state_dict())
    behavior.scale(data.state_mean, data.state_std, data.action_low, data.action_high)
    state = data.standardize(data.state)

    def draw(random: Random):
        return random.diffusion(len(data), settings.batch, d)

    def loss(draws):
        at = draws["index"]
        return losses.behavior_loss(trained, state[at], data.action[at], draws["noise"], draws["t"], VP, settings.error)

    after_step = follow([(behavior.noise_net, trained, settings.ema_rate)])
    return Learner("behavior", seeds, module, list(trained.parameters()), draw, loss, after_step), behavior


@torch.no_grad()
def finish_behavior(
    behavior: Behavior, data: Dataset, seeds: tuple[int, ...], settings: BehaviorSettings, chance: Tensor | None = None
) -> None:
    """Fill the posterior variance table from recorded actions; `chance`: of a model that was trained by such ones."""
    state, count = data.standardize(data.state), settings.variance_times
    draw = Random(seeds, "variance", like=state)
    if chance is None:
        index = draw.index(len(data), settings.variance_samples)[0]
    else:
        index = weighted_index(chance, draw.uniform(settings.variance_samples))[0]
    random = Random(seeds, "variance-noise", like=state, count=count)
    noise = random.normal(settings.variance_samples, data.action.shape[1])
    noise_model = lambda noisy, t: behavior.noise_net(state[index], noisy, t)  # noqa: E731
    times = posterior.variance_times(count, state.device, state.dtype)
    behavior.variance.copy_(posterior.fit_isotropic(noise_model, data.action[index], noise, times, VP))
