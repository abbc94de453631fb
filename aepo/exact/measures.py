"""How far the toy networks are from the truth: exact samples, distances to them, guidance error, solver error."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor

from aepo.core import sampler
from aepo.core.models import VP
from aepo.core.networks import generator
from aepo.exact import mixtures
from aepo.exact.toys import Rows, draw_density, exact_energy, gather, raw_q


def truth(rows: Rows, count: int, repeat: int = 0, proposals: int = 200_000) -> tuple[Tensor, float]:
    """Exact samples of the tilted density of every row `(R, count, 2)`, and the least effective sample size behind them.

    Rows of one problem and beta share their samples; `repeat` chooses an independent set.
    """
    made: dict[tuple[str, float], tuple[Tensor, float]] = {}
    keys = list(zip(rows.problem, rows.beta.flatten().tolist(), strict=True))
    for r, (problem, beta) in enumerate(keys):
        if (problem, beta) not in made:
            made[problem, beta] = mixtures.tilted_samples(
                lambda number, g, problem=problem: draw_density(problem, number, g),
                lambda action, r=r: (raw_q(action) - rows.loc[r]) / rows.scale[r],
                beta,
                count,
                generator(repeat, "toy-truth", problem, beta),
                proposals,
            )
    return torch.stack([made[key][0] for key in keys]), min(size for _, size in made.values())


def guidance_error(
    rows: Rows,
    gradients: dict[str, Callable[[Tensor, Tensor], Tensor]],
    times: Sequence[float],
    count: int,
) -> pd.DataFrame:
    """Relative error |g - g*| / |g*| (root mean squares over noised data) of each method's guidance over t."""
    frames = []
    generators = [generator(seed, "toy-error") for seed in rows.seed]
    index = torch.stack([torch.randint(rows.data.shape[1], (count,), generator=g) for g in generators])
    noise = torch.stack([torch.randn(count, 2, generator=g) for g in generators])
    for moment in times:
        t = torch.tensor(moment)
        noisy = VP.alpha(t) * gather(rows.data, index) + VP.sigma(t) * noise
        reference = noisy.clone().requires_grad_(True)
        true = torch.autograd.grad(exact_energy(rows, reference, t).sum(), reference)[0]
        size = true.square().sum(-1).mean(-1).sqrt()
        for method, gradient in gradients.items():
            error = (gradient(noisy, t) - true).square().sum(-1).mean(-1).sqrt() / size
            frames.append(rows.frame().assign(method=method, t=moment, error=error.detach().numpy()))
    return pd.concat(frames, ignore_index=True)


def distances(rows: Rows, samples: dict[str, Tensor], truths: tuple[Tensor, Tensor]) -> pd.DataFrame:
    """Energy distance and sliced Wasserstein distance of every method's samples to exact ones, a row each.

    `truths`: two independent sets of exact samples; the distance between them is the method "noise floor".
    """
    first, second = truths
    frames = []
    for method, drawn in {**samples, "noise floor": second}.items():
        columns = {
            "energy_distance": [mixtures.energy_distance(x, y) for x, y in zip(drawn, first, strict=True)],
            "sliced_wasserstein": [
                mixtures.sliced_wasserstein(x, y, generator(0, "projections"))
                for x, y in zip(drawn, first, strict=True)
            ],
        }
        frames.append(rows.frame().assign(method=method, **columns))
    return pd.concat(frames, ignore_index=True)


def solver_error(
    problem: str, grids: Sequence[str], steps: Sequence[int], count: int, seeds: Sequence[int]
) -> pd.DataFrame:
    """Energy distance of unguided samples with the exact score to exact samples, over solver steps and time grids."""
    mixture, frames = mixtures.toy_mixture(problem), []
    for seed in seeds:
        noise = torch.randn(count, 2, generator=generator(seed, "toy-solver"), dtype=torch.float64)
        reference = mixture.sample(count, generator(seed, "toy-solver-truth"))
        floor = mixtures.energy_distance(mixture.sample(count, generator(seed, "toy-solver-floor")), reference)
        for grid in grids:
            for number in steps:
                drawn = sampler.sample(lambda a, t: mixture.noise(a, t, VP), noise, VP, number, grid=grid)
                distance = mixtures.energy_distance(drawn, reference)
                frames.append(
                    {"seed": seed, "grid": grid, "steps": number, "energy_distance": distance, "floor": floor}
                )
    return pd.DataFrame(frames)
