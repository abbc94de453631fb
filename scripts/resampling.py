"""An ablation beside the package: candidates resampled by Q along the way, in place of the best of n at its end.

python scripts/resampling.py runs/quick/maze2d-umaze [--beta 3] [--candidates 16] [--steps 10] [--table runs/resampling.csv]

Both act with the behavior model and critic of a finished run that evaluated `best-of-n`, in the same episodes.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from aepo import files
from aepo.core import sampler
from aepo.core.models import VP, advantage_at
from aepo.core.schedule import VPSchedule, clip
from aepo.data import tasks
from aepo.learners.actor import Acting, Actor
from aepo.study import evaluation, runs, statistics
from aepo.study.policy import load_actor


@torch.no_grad()
def resample(
    noise_model: sampler.NoiseModel,
    noise: Tensor,
    vp: VPSchedule,
    steps: int,
    potential: Callable[[Tensor], Tensor],
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """Sequential Monte Carlo over K candidates: those whose exp(potential) of the predicted action grew go on.

    They are resampled, without drawing, at the end and before where fewer than half of them count; steps are ancestral (DDIM
    of eta 1). noise `(..., steps, K, d)`: the initial one, and the fresh one after each step but the last; potential
    `(..., K, d)` -> `(..., K)`; returns `(..., K, d)`.
    """
    times, alphas, sigmas, _ = sampler.solver_grid(vp, steps, "logsnr", 1.0, noise.dtype, noise.device)
    count, x, before = noise.shape[-2], noise[..., 0, :, :], torch.zeros(()).to(noise)
    middle = (torch.arange(count).to(noise) + 0.5) / count
    for i in range(steps):
        predicted = clip((x - sigmas[i] * noise_model(x, times[i])) / alphas[i], low, high)
        now = potential(predicted)
        weight = torch.softmax(now - before, -1)
        uneven = (weight.square().sum(-1, keepdim=True) > 2 / count) | (i + 1 == steps)
        drawn = torch.searchsorted(weight.cumsum(-1), middle.expand_as(weight).contiguous()).clamp(max=count - 1)
        kept = torch.where(uneven, drawn, torch.arange(count, device=noise.device))
        before, kept = torch.where(uneven, now.gather(-1, kept), before), kept.unsqueeze(-1)
        x, predicted = x.take_along_dim(kept, -2), predicted.take_along_dim(kept, -2)
        if i + 1 < steps:
            fresh = sigmas[i + 1] / sigmas[i] * math.sqrt(1 - (alphas[i] / alphas[i + 1]) ** 2)
            old = math.sqrt(sigmas[i + 1] ** 2 - fresh**2) / sigmas[i] * (x - alphas[i] * predicted)
            x = alphas[i + 1] * predicted + old + fresh * noise[..., i + 1, :, :]
    return predicted


@dataclass
class Resampling(Actor):
    """Takes the best by Q of `candidates` that were resampled by beta Q along the way."""

    beta: float = 3.0

    @property
    def draws(self) -> int:
        """Rows of noise a state: one a candidate and step."""
        return self.candidates * self.solver_steps

    @torch.no_grad()
    def propose(self, state: Tensor, noise: Tensor) -> Tensor:
        """As `Actor.propose`."""
        repeated, quality = state.repeat_interleave(self.candidates, 1), advantage_at(self.critic, state)
        noise_model = lambda a, t: self.behavior.noise_net(repeated, a.flatten(1, 2), t).view(a.shape)  # noqa: E731
        drawn = noise.unflatten(2, (self.solver_steps, self.candidates))
        made = resample(noise_model, drawn, VP, self.solver_steps, lambda a: self.beta * quality(a), -1.0, 1.0)
        taken = quality(made).argmax(-1)[..., None, None].expand(-1, -1, 1, made.shape[-1])
        return made.gather(2, taken).squeeze(2)


def compare(folder: Path, betas: list[float], candidates: int, steps: int, episodes: int) -> pd.DataFrame:
    """A row a policy: its beta (none: the best of n, no resampling) and mean score with its 95% interval."""
    manifest = runs.read_manifest(folder)
    entry = manifest.get("evaluation", {}).get("best-of-n")
    if not entry:
        raise files.StudyError(
            f"{folder} has no evaluation of best-of-n: run `aepo evaluate --methods best-of-n` first"
        )
    task, seeds = tasks.get(folder.name), entry["seeds"]
    low, high = next(iter(manifest["data"].values()))["reference_scores"]
    how = replace(Acting.of(entry), candidates=candidates, solver_steps=steps, noise_scale=1.0)
    best = load_actor(folder, "best-of-n", seeds, how, "cpu")
    own = {field.name: getattr(best, field.name) for field in fields(Actor)}
    rows = []
    for beta in (None, *betas):
        actor = best if beta is None else Resampling(**own, beta=beta)
        label = "best of n" if beta is None else f"resampled, beta {beta:g}"
        played = evaluation.play(actor, task, seeds, episodes, label, folder / "progress")
        score = 100 * (played.returns.astype(np.float64) - low) / (high - low)
        rows.append([task.name, folder.parent.name, label, candidates, *statistics.nested_bootstrap(score)])
    return pd.DataFrame(rows, columns=["task", "profile", "policy", "candidates", "score", "score_low", "score_high"])


def main() -> None:
    """Compare on each run, print the table, add it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders runs/<profile>/<task>")
    parser.add_argument("--beta", nargs="+", type=float, default=[1.0, 3.0, 10.0])
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--table", type=Path, help="CSV file whose rows of these runs are written anew")
    given = parser.parse_args()
    parts = [
        compare(runs.find_folder(f), given.beta, given.candidates, given.steps, given.episodes) for f in given.runs
    ]
    table = pd.concat(parts, ignore_index=True).round(1)
    print(table.to_string(index=False))
    if given.table:
        if given.table.exists():
            both = pd.concat([pd.read_csv(given.table), table])
            table = both.drop_duplicates(["task", "profile", "policy"], keep="last")
        with files.atomic_path(given.table) as temporary:
            table.to_csv(temporary, index=False)


if __name__ == "__main__":
    try:
        main()
    except files.StudyError as error:
        raise SystemExit(f"resampling: {error}") from None
