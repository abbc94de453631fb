"""Two-dimensional problems with a known answer: behavior and energy networks of many problems trained side by side.

A *row* is one (problem, beta, seed); all rows of a method are trained in one stack, so that dozens of small trainings
cost little more than one. Q is standardised over each problem's density, so that beta is the standard deviation of beta Q.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from aepo.core import guidance, losses, posterior, sampler
from aepo.core.models import VP, take_seeds
from aepo.core.networks import EnergyNet, NoiseNet, generator, initialize
from aepo.core.schedule import T_MIN
from aepo.exact import mixtures
from aepo.learners.training import Draws, Learner, fit, stack_draws

LEARNED = (
    "exact", "aepo", "aepo-2", "aepo-cubature", "aepo-support", "support-mse", "exp-q", "contrastive", "point", "mean-q",
)  # fmt: skip
FORMS = {"aepo": "taylor", "aepo-2": "taylor-2", "aepo-cubature": "cubature", "point": "point"}  # of `guidance.KINDS`
SUPPORTED = ("aepo-support", "support-mse", "contrastive")
BREGMAN = ("aepo-support", "exp-q")
UNGUIDED = "unguided"


@dataclass(frozen=True)
class ToySettings:
    """Sizes of the toy trainings.

    `harmonics`: of the noise network's input; `support`: actions of a support or contrastive estimate; `groups`:
    contrastive sets a batch, so that groups x support equals `batch` and every method evaluates its network as often.
    """

    width: int = 64
    depth: int = 3
    harmonics: int = 3
    behavior_steps: int = 6_000
    energy_steps: int = 1_500
    batch: int = 256
    support: int = 64
    groups: int = 4
    learning_rate: float = 2e-3
    samples: int = 20_000
    variance_times: int = 65
    solver_steps: int = 25
    pool: int = 8_192
    proposals: int = 200_000


SETTINGS = {
    "smoke": ToySettings(width=32, behavior_steps=80, energy_steps=40, samples=2_000, pool=512, proposals=20_000),
    "quick": ToySettings(),
    "full": ToySettings(width=128, behavior_steps=10_000, energy_steps=10_000, samples=100_000, pool=65_536),
}


def raw_q(action: Tensor) -> Tensor:
    """A bounded, smooth Q with two ridges and a slope: action `(..., 2)` -> `(...,)`."""
    x, y = action.unbind(-1)
    return torch.sin(2.5 * x + 1.5 * y) + 0.7 * torch.cos(3.0 * (y - 0.4 * x)) + 0.5 * torch.tanh(2 * x)


@dataclass(frozen=True)
class Rows:
    """R stacked problems: names, betas, seeds `(R,)`, data `(R, N, 2)`, loc and scale of Q, bounds of beta Q `(R, 1)`."""

    problem: tuple[str, ...]
    beta: Tensor
    seed: tuple[int, ...]
    data: Tensor
    loc: Tensor
    scale: Tensor
    lowest: Tensor
    highest: Tensor

    def scaled_q(self, action: Tensor) -> Tensor:
        """beta Q, standardised: action `(R, ..., 2)` -> `(R, ...)`."""
        shape = (-1,) + (1,) * (action.ndim - 2)
        beta, loc, scale = (v.view(shape) for v in (self.beta, self.loc, self.scale))
        return beta * (raw_q(action) - loc) / scale

    def frame(self) -> pd.DataFrame:
        """problem, beta and seed of each row."""
        return pd.DataFrame({"problem": self.problem, "beta": self.beta.flatten().tolist(), "seed": self.seed})


def draw_density(name: str, count: int, g: torch.Generator) -> Tensor:
    """Samples of a named density (`mixtures.TOYS` or `mixtures.MIXTURES`) in float32, `(count, 2)`."""
    drawn = mixtures.toy_mixture(name).sample(count, g) if name in mixtures.MIXTURES else mixtures.toy(name, count, g)
    return drawn.float()


def draw_data(name: str, count: int, seed: int) -> Tensor:
    """The data of a problem for one seed, `(count, 2)`."""
    return draw_density(name, count, generator(seed, "toy", name))


def make_rows(problems: Sequence[str], betas: Sequence[float], seeds: Sequence[int], samples: int) -> Rows:
    """Every combination of problems, betas and seeds."""
    cells = [(p, b, s) for p in problems for b in betas for s in seeds]
    known = {(p, s): draw_data(p, samples, s) for p in problems for s in seeds}
    reference = {p: raw_q(draw_data(p, 50_000, 10**6)) for p in problems}
    data = torch.stack([known[p, s] for p, _, s in cells])
    loc = torch.tensor([[reference[p].mean()] for p, _, _ in cells])
    scale = torch.tensor([[reference[p].std()] for p, _, _ in cells])
    beta = torch.tensor([[b] for _, b, _ in cells])
    q = beta * (raw_q(data) - loc) / scale
    return Rows(
        tuple(p for p, _, _ in cells), beta, tuple(s for _, _, s in cells), data, loc, scale,
        q.amin(1, keepdim=True), q.amax(1, keepdim=True),
    )  # fmt: skip


def gather(data: Tensor, index: Tensor) -> Tensor:
    """data `(R, N, 2)`, index `(R, ...)` -> `(R, ..., 2)`."""
    rows = data.shape[0]
    return data.gather(1, index.reshape(rows, -1, 1).expand(-1, -1, 2)).view(*index.shape, 2)


def _no_state(action: Tensor) -> Tensor:
    return action.new_zeros(*action.shape[:-1], 1)


def _draw(generators: Sequence[torch.Generator], count: int, batch: int, size: int, support: int = 0) -> Draws:
    index = stack_draws(generators, lambda g: torch.randint(size, (count, batch), generator=g))
    draws = {
        "index": index,
        "noise": stack_draws(generators, lambda g: torch.randn(count, batch, 2, generator=g)),
        "t": T_MIN + (1 - T_MIN) * stack_draws(generators, lambda g: torch.rand(count, batch, generator=g)),
    }
    if support:
        draws["support"] = stack_draws(generators, lambda g: torch.randint(size, (count, batch, support), generator=g))
    return draws


@dataclass
class ToyBehavior:
    """Noise network of R rows and its posterior variance table `(R, T)`."""

    net: NoiseNet
    variance: Tensor

    def noise(self, noisy_action: Tensor, t: Tensor) -> Tensor:
        """eps_theta(a_t, t): noisy_action `(R, B, 2)`."""
        return self.net(_no_state(noisy_action), noisy_action, t)

    def take(self, rows: Sequence[int]) -> ToyBehavior:
        """The same model with other rows."""
        return ToyBehavior(take_seeds(self.net, rows, len(self.variance)), self.variance[list(rows)])


def train_behavior(rows: Rows, settings: ToySettings) -> ToyBehavior:
    """Denoising training of a noise network a row, with a moving average, and its posterior variance."""
    count = len(rows.problem)
    net, average = (NoiseNet(count, 1, 2, settings.width, settings.depth, VP, settings.harmonics) for _ in range(2))
    initialize(net, rows.seed, "toy-behavior")
    average.load_state_dict(net.state_dict())
    average.requires_grad_(False)
    averaged, trained = list(average.parameters()), list(net.parameters())

    def loss(draws: Draws):
        action = gather(rows.data, draws["index"])
        return losses.behavior_loss(net, _no_state(action), action, draws["noise"], draws["t"], VP)

    def after_step() -> None:
        torch._foreach_lerp_(averaged, [p.detach() for p in trained], 0.01)

    def draw(generators, steps):
        return _draw(generators, steps, settings.batch, rows.data.shape[1])

    learner = Learner("behavior", rows.seed, net, trained, draw, loss, after_step)
    fit(learner, settings.behavior_steps, settings.learning_rate, 250)
    behavior = ToyBehavior(average, torch.ones(count, settings.variance_times))
    used = min(2_048, rows.data.shape[1])
    generators = [generator(seed, "toy-variance") for seed in rows.seed]
    noise = stack_draws(generators, lambda g: torch.randn(settings.variance_times, used, 2, generator=g))
    times = posterior.variance_times(settings.variance_times)
    behavior.variance = posterior.fit_isotropic(behavior.noise, rows.data[:, :used], noise, times, VP)
    return behavior


def target(
    method: str,
    rows: Rows,
    behavior: ToyBehavior,
    action: Tensor,
    noisy: Tensor,
    t: Tensor,
    support: Tensor | None = None,
) -> Tensor:
    """Regression target of a method, clamped to the range of beta Q over the data: action, noisy `(R, B, 2)` -> `(R, B)`."""
    if method in ("mean-q", "exp-q"):
        return rows.scaled_q(action)
    if method in ("aepo-support", "support-mse"):
        candidates = torch.cat([action.unsqueeze(-2), support], -2)
        return guidance.support_energy(rows.scaled_q(candidates), candidates, noisy, t, VP, 1.0, check=False)
    mean = posterior.mean(noisy, behavior.noise(noisy, t), t, VP, -1.5, 1.5, check=False)
    variance = posterior.isotropic_variance(behavior.variance, t)
    bounds = (rows.lowest, rows.highest)
    return guidance.closed_form(FORMS[method], rows.scaled_q, mean, variance, 1.0, bounds)


@torch.no_grad()
def exact_pool(rows: Rows, settings: ToySettings) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy actions `(R, P, 2)`, times and exact energies `(R, P)` of mixtures, to regress on the truth itself."""
    generators = [generator(seed, "toy-pool") for seed in rows.seed]
    draws = {key: value[0] for key, value in _draw(generators, 1, settings.pool, rows.data.shape[1]).items()}
    noisy = losses.diffuse(gather(rows.data, draws["index"]), draws["noise"], draws["t"], VP)
    return noisy, draws["t"], exact_energy(rows, noisy, draws["t"])


def exact_energy(rows: Rows, noisy: Tensor, t: Tensor) -> Tensor:
    """E* of each row's mixture by the trapezoid grid: noisy `(R, B, 2)`, t 0-d or `(R, B)` -> `(R, B)`, float32."""
    energies = []
    for r, problem in enumerate(rows.problem):
        loc, scale = rows.loc[r].double(), rows.scale[r].double()

        def q(action: Tensor, loc=loc, scale=scale) -> Tensor:
            return (raw_q(action) - loc) / scale

        moment = t.double() if t.ndim == 0 else t[r].double()
        mixture = mixtures.toy_mixture(problem)
        energies.append(
            mixtures.grid_energy(mixture, q, noisy[r].double(), moment, VP, rows.beta[r].item(), points=GRID_POINTS)
        )
    return torch.stack(energies).float()


GRID_POINTS = 33


def train_energy(method: str, rows: Rows, behavior: ToyBehavior, settings: ToySettings) -> EnergyNet:
    """Train the energy network of a method of `LEARNED` for every row."""
    count = len(rows.problem)
    net = EnergyNet(count, 1, 2, settings.width, settings.depth, VP)
    initialize(net, rows.seed, "toy-energy")
    size = rows.data.shape[1]
    pool = exact_pool(rows, settings) if method == "exact" else None
    support = settings.support if method in SUPPORTED else 0
    energy_loss = losses.bregman_loss if method in BREGMAN else losses.energy_loss

    def pairs(draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        if pool is not None:
            noisy, t, energy = pool
            index = draws["index"] % settings.pool
            return gather(noisy, index), t.gather(1, index), energy.gather(1, index)
        action = gather(rows.data, draws["index"])
        noisy = losses.diffuse(action, draws["noise"], draws["t"], VP)
        others = gather(rows.data, draws["support"]) if "support" in draws else None
        with torch.no_grad():
            return noisy, draws["t"], target(method, rows, behavior, action, noisy, draws["t"], others)

    def regression(draws: Draws):
        noisy, t, energy = pairs(draws)
        return energy_loss(net, _no_state(noisy), noisy, t, energy)

    def contrastive(draws: Draws):
        action = gather(rows.data, draws["support"])
        return losses.contrastive_loss(
            net, _no_state(action[:, :, 0]), action, draws["noises"], draws["t"], rows.scaled_q(action), VP
        )

    def draw(generators, steps):
        if method != "contrastive":
            return _draw(generators, steps, settings.batch, size, support - 1 if support else 0)
        draws = _draw(generators, steps, settings.groups, size, support)
        shape = (steps, settings.groups, support, 2)
        return draws | {"noises": stack_draws(generators, lambda g: torch.randn(shape, generator=g))}

    if method != "contrastive":
        first = draw([generator(seed, "toy-scale") for seed in rows.seed], 8)
        energies = torch.cat([pairs({key: v[i] for key, v in first.items()})[2] for i in range(8)], 1)
        net.loc.copy_(energies.mean(1, keepdim=True))
        net.scale.copy_(energies.std(1, keepdim=True).clamp(min=1e-6))
    else:
        net.scale.copy_(rows.beta)
    loss = contrastive if method == "contrastive" else regression
    learner = Learner(method, rows.seed, net, list(net.parameters()), draw, loss)
    fit(learner, settings.energy_steps, settings.learning_rate, 250)
    return net.requires_grad_(False)


def sample(rows: Rows, behavior: ToyBehavior, energy: EnergyNet | None, count: int, settings: ToySettings) -> Tensor:
    """`count` guided samples of every row `(R, count, 2)`; the same initial noise for every method."""
    noise = torch.stack([torch.randn(count, 2, generator=generator(seed, "toy-sample")) for seed in rows.seed])
    return sampler.sample(
        behavior.noise,
        noise,
        VP,
        steps=settings.solver_steps,
        energy_gradient=None if energy is None else lambda a, t: energy.gradient(_no_state(a), a, t),
        low=-2.0,
        high=2.0,
    )
