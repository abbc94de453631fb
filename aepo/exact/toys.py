"""Two-dimensional problems with a known answer; a row is one (problem, beta, seed), all rows are trained in one stack."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from aepo.core import guidance, losses, posterior, sampler
from aepo.core.models import VP
from aepo.core.networks import EnergyNet, NoiseNet, generator, initialize
from aepo.exact import mixtures
from aepo.learners.draws import Draws, Random, part, pick
from aepo.learners.energies import Pairs
from aepo.learners.training import Learner, fit, follow

LEARNED = {  # what an energy network regresses on (a form of `guidance.KINDS`, or below), and whether by the Bregman loss
    "exact": ("exact", False),
    "aepo": ("taylor", False),
    "aepo-2": ("taylor-2", False),
    "aepo-cubature": ("cubature", False),
    "aepo-support": ("support", True),
    "support-mse": ("support", False),
    "exp-q": ("clean", True),
    "contrastive": ("contrastive", False),
    "point": ("point", False),
    "mean-q": ("clean", False),
}
UNGUIDED = "unguided"
GRID_POINTS = 33
CHUNK = 250


@dataclass(frozen=True)
class ToySettings:
    """Sizes of the toy trainings; groups x support equals `batch`, so that every method evaluates its network as often."""

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
    """R stacked problems: names, betas, seeds, data `(R, N, 2)`, loc and scale of Q over its density, bounds of beta Q."""

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

    def q(self, row: int, action: Tensor) -> Tensor:
        """Q of one row, standardised: action `(..., 2)` -> `(...,)`."""
        return (raw_q(action) - self.loc[row].to(action)) / self.scale[row].to(action)

    def frame(self) -> pd.DataFrame:
        """problem, beta and seed of each row."""
        return pd.DataFrame({"problem": self.problem, "beta": self.beta.flatten().tolist(), "seed": self.seed})


def make_rows(problems: Sequence[str], betas: Sequence[float], seeds: Sequence[int], samples: int) -> Rows:
    """Every combination of problems (`mixtures.TOYS` or `mixtures.MIXTURES`), betas and seeds."""
    cells = [(p, b, s) for p in problems for b in betas for s in seeds]
    known = {(p, s): mixtures.toy(p, samples, generator(s, "toy", p)).float() for p in problems for s in seeds}
    reference = {p: raw_q(mixtures.toy(p, 50_000, generator(10**6, "toy", p)).float()) for p in problems}
    data = torch.stack([known[p, s] for p, _, s in cells])
    loc = torch.tensor([[reference[p].mean()] for p, _, _ in cells])
    scale = torch.tensor([[reference[p].std()] for p, _, _ in cells])
    names, values, numbers = zip(*cells, strict=True)
    beta = torch.tensor(values).unsqueeze(1)
    q = beta * (raw_q(data) - loc) / scale
    return Rows(names, beta, numbers, data, loc, scale, q.amin(1, keepdim=True), q.amax(1, keepdim=True))


def _no_state(action: Tensor) -> Tensor:
    return action.new_zeros(*action.shape[:-1], 1)


@dataclass
class ToyBehavior:
    """Noise network of R rows and its posterior variance table `(R, T)`."""

    net: NoiseNet
    variance: Tensor

    def noise(self, noisy_action: Tensor, t: Tensor) -> Tensor:
        """eps_theta(a_t, t): noisy_action `(R, B, 2)`."""
        return self.net(_no_state(noisy_action), noisy_action, t)


def train_behavior(rows: Rows, settings: ToySettings) -> ToyBehavior:
    """Denoising training of a noise network a row, with a moving average, and its posterior variance."""
    sizes = (len(rows.seed), 1, 2, settings.width, settings.depth, VP, settings.harmonics)
    net, average = initialize(NoiseNet(*sizes), rows.seed, "toy-behavior"), NoiseNet(*sizes).requires_grad_(False)
    average.load_state_dict(net.state_dict())

    def draw(random: Random) -> Draws:
        return random.diffusion(rows.data.shape[1], settings.batch, 2)

    def loss(draws: Draws):
        action = pick(rows.data, draws["index"])
        return losses.behavior_loss(net, _no_state(action), action, draws["noise"], draws["t"], VP)

    learner = Learner("behavior", rows.seed, net, list(net.parameters()), draw, loss, follow([(average, net, 0.01)]))
    fit(learner, settings.behavior_steps, settings.learning_rate, CHUNK)
    count, data = settings.variance_times, rows.data[:, :2_048]
    behavior, times = ToyBehavior(average, torch.ones(len(rows.seed), count)), posterior.variance_times(count)
    noise = Random(rows.seed, "toy-variance", like=data, count=count).normal(data.shape[1], 2)
    behavior.variance = posterior.fit_isotropic(behavior.noise, data, noise, times, VP)
    return behavior


@torch.no_grad()
def target(method: str, rows: Rows, behavior: ToyBehavior, pairs: Pairs) -> Tensor:
    """Regression target of a method `(R, B)`; a closed form's is clamped to the range of beta Q over the data."""
    kind, noisy, t = LEARNED[method][0], pairs.noisy_action, pairs.t
    if kind == "exact":
        return exact_energy(rows, noisy, t)
    if kind == "clean":
        return rows.scaled_q(pairs.action)
    if kind == "support":
        return guidance.support_energy(rows.scaled_q(pairs.candidates), pairs.candidates, noisy, t, VP, 1.0)
    mean = posterior.mean(noisy, behavior.noise(noisy, t), t, VP, -1.5, 1.5)
    variance = posterior.isotropic_variance(behavior.variance, t)
    return guidance.closed_form(kind, rows.scaled_q, mean, variance, 1.0, (rows.lowest, rows.highest))


def exact_energy(rows: Rows, noisy: Tensor, t: Tensor) -> Tensor:
    """E* of each row's mixture by the trapezoid grid: noisy `(R, B, 2)`, t 0-d or `(R, B)` -> `(R, B)`, float32."""
    energies = []
    for r, problem in enumerate(rows.problem):
        at = noisy[r].double(), (t if t.ndim == 0 else t[r]).double(), VP, rows.beta[r].item()
        mixture, q_function = mixtures.toy_mixture(problem), functools.partial(rows.q, r)
        energies.append(mixtures.grid_energy(mixture, q_function, *at, points=GRID_POINTS))
    return torch.stack(energies).float()


def train_energy(method: str, rows: Rows, behavior: ToyBehavior, settings: ToySettings) -> EnergyNet:
    """Train the energy network of a method of `LEARNED` for every row."""
    kind, bregman = LEARNED[method]
    net = EnergyNet(len(rows.seed), 1, 2, settings.width, settings.depth, VP)
    initialize(net, rows.seed, "toy-energy")
    size, sets = rows.data.shape[1], (settings.groups, settings.support)
    pool: list[Tensor] = []

    def draw(random: Random) -> Draws:
        if kind == "contrastive":
            draws = random.diffusion(size, settings.groups, 2)
            return draws | {"support": random.index(size, *sets), "noise": random.normal(*sets, 2)}
        draws = random.diffusion(size, settings.batch, 2)
        if kind == "support":
            draws["support"] = random.index(size, settings.batch, settings.support - 1)
        return draws

    def pairs(draws: Draws) -> list[Tensor]:
        """Noisy actions, their times and targets; of "exact", whose targets take long, from a pool that is made once."""
        if pool:
            return [pick(made, draws["index"] % settings.pool) for made in pool]
        action, t, candidates = pick(rows.data, draws["index"]), draws["t"], None
        if kind == "support":
            candidates = torch.cat([action.unsqueeze(-2), pick(rows.data, draws["support"])], -2)
        made = Pairs(_no_state(action), action, losses.diffuse(action, draws["noise"], t, VP), t, candidates=candidates)
        return [made.noisy_action, t, target(method, rows, behavior, made)]

    def loss(draws: Draws):
        if kind == "contrastive":
            action = pick(rows.data, draws["support"])
            state, scaled_q = _no_state(action[:, :, 0]), rows.scaled_q(action)
            return losses.contrastive_loss(net, state, action, draws["noise"], draws["t"], scaled_q, VP)
        noisy, t, energy = pairs(draws)
        return (losses.bregman_loss if bregman else losses.energy_loss)(net, _no_state(noisy), noisy, t, energy)

    if kind == "exact":
        pool += pairs(part(Random(rows.seed, "toy-pool", like=rows.data).diffusion(size, settings.pool, 2), 0))
    if kind == "contrastive":
        net.scale.copy_(rows.beta)
    else:
        first = draw(Random(rows.seed, "toy-scale", like=rows.data, count=8))
        energies = torch.cat([pairs(part(first, i))[-1] for i in range(8)], 1)
        net.loc.copy_(energies.mean(1, keepdim=True))
        net.scale.copy_(energies.std(1, keepdim=True).clamp(min=1e-6))
    learner = Learner(method, rows.seed, net, list(net.parameters()), draw, loss)
    fit(learner, settings.energy_steps, settings.learning_rate, CHUNK)
    return net.requires_grad_(False)


def sample(rows: Rows, behavior: ToyBehavior, energy: EnergyNet | None, count: int, settings: ToySettings) -> Tensor:
    """`count` guided samples of every row `(R, count, 2)`; the same initial noise for every method."""
    noise = Random(rows.seed, "toy-sample", like=rows.data).normal(count, 2)[0]
    gradient = energy and (lambda a, t: energy.gradient(_no_state(a), a, t))
    steps = settings.solver_steps
    return sampler.sample(behavior.noise, noise, VP, steps, energy_gradient=gradient, low=-2.0, high=2.0)


def truth(rows: Rows, count: int, repeat: int = 0, proposals: int = 200_000) -> tuple[Tensor, float]:
    """Exact samples `(R, count, 2)` of the tilted densities, set `repeat`, and the least effective sample size of them."""
    made: dict[tuple[str, float], tuple[Tensor, float]] = {}
    keys = list(zip(rows.problem, rows.beta.flatten().tolist(), strict=True))
    for r, (problem, beta) in enumerate(keys):
        if (problem, beta) not in made:
            g = generator(repeat, "toy-truth", problem, beta)
            actions, q_function = mixtures.toy(problem, proposals, g).float(), functools.partial(rows.q, r)
            made[problem, beta] = mixtures.resampled(actions, q_function, beta, count, g)
    return torch.stack([made[key][0] for key in keys]), min(size for _, size in made.values())


def distances(rows: Rows, samples: dict[str, Tensor], truths: tuple[Tensor, Tensor]) -> pd.DataFrame:
    """Energy distance of every method's samples to exact ones; that between two sets of them is the "noise floor"."""
    frames = []
    for method, drawn in {**samples, "noise floor": truths[1]}.items():
        distance = [mixtures.energy_distance(x, y) for x, y in zip(drawn, truths[0], strict=True)]
        frames.append(rows.frame().assign(method=method, energy_distance=distance))
    return pd.concat(frames, ignore_index=True)
