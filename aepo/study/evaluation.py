"""Rollouts in copies of an environment: all seeds and episodes in one sampler call a step; scores with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from aepo.core.networks import generator
from aepo.data.tasks import Task
from aepo.learners.actor import Actor
from aepo.progress import Progress
from aepo.study.copies import Copies, SpreadCopies, make_copies

MOST_ENVIRONMENTS = {"FrankaKitchen": 24}  # 68 MB each


@dataclass(frozen=True)
class Rollouts:
    """Episodes of S policies: returns, length, success `(S, E)`; states `(T, S, E, n)`, NaN after an episode's end.

    success: 1 or 0, NaN where the environment does not report it. E of states: the episodes whose states were kept.
    """

    returns: np.ndarray
    length: np.ndarray
    success: np.ndarray
    states: np.ndarray


def rollout(
    actor: Actor,
    copies: Copies | SpreadCopies,
    seeds: Sequence[int],
    episodes: int,
    horizon: int,
    name: str = "evaluate",
    progress_folder: Path | None = None,
    kept: int | None = None,
    first: int = 0,
) -> Rollouts:
    """Run `episodes` episodes of each of the actor's rows; `seeds` names the row's seed (rows may share one).

    `kept`: number of episodes a row whose states are kept (None: all). `first`: number of the first episode.
    Start and noise of an episode follow from (seed, episode) alone, the start the same for every method, the noise for all
    that draw as many candidates. Episodes that have ended
    are neither stepped nor sampled for: rows narrow to the greatest number still running.
    """
    shape, numbers = (len(seeds), episodes), range(first, first + episodes)
    device, d = actor.behavior.low.device, copies.action_dim
    noise = torch.stack(
        [
            torch.stack(
                [torch.randn(horizon, actor.draws, d, generator=generator(seed, "episode", e)) for e in numbers]
            )
            for seed in seeds
        ]
    ).to(device)
    starts = [int(generator(seed, "start", e).initial_seed() % 2**31) for seed in seeds for e in numbers]
    observation = copies.reset(starts)
    observation = observation.reshape(*shape, -1)
    returns, length, success = np.zeros(shape), np.zeros(shape, dtype=int), np.full(shape, np.nan)
    running, rows = np.ones(shape, dtype=bool), np.arange(len(seeds))[:, None]
    kept = episodes if kept is None else min(kept, episodes)
    states = np.full((horizon + 1, shape[0], kept, observation.shape[-1]), np.nan, dtype=np.float32)
    states[0] = observation[:, :kept]
    columns = np.tile(np.arange(episodes), (len(seeds), 1))
    with Progress(name, horizon, folder=progress_folder) as progress:
        for step in range(horizon):
            if running.sum(1).max() < columns.shape[1]:
                columns = np.argsort(~running, axis=1, kind="stable")[:, : running.sum(1).max()]
            state = torch.as_tensor(observation[rows, columns], dtype=torch.float32, device=device)
            action = actor.act(state, noise[rows, columns, step]).cpu().numpy()
            place = np.nonzero(running[rows, columns])
            who = (place[0], columns[place])
            took = copies.step(who[0] * episodes + who[1], action[place])
            observation[who] = took.observation
            returns[who] += took.reward
            length[who] += 1
            success[who] = np.fmax(success[who], took.success)
            shown = who[1] < kept
            states[step + 1][who[0][shown], who[1][shown]] = took.observation[shown]
            running[who] = ~took.ended
            progress.update(1)
            if not running.any():
                break
    return Rollouts(returns, length, success, states)


def play(
    actor: Actor, task: Task, seeds: Sequence[int], episodes: int, name: str, progress_folder: Path, kept: int
) -> Rollouts:
    """`rollout` in the task's environment, in rounds where so many copies of it at once would fill the memory."""
    most = next((count for kind, count in MOST_ENVIRONMENTS.items() if task.env_id.startswith(kind)), None)
    together = episodes if most is None else min(episodes, max(1, most // len(seeds)))
    rounds, copies = [], None
    for first in range(0, episodes, together):
        count = min(together, episodes - first)
        if copies is None or count < together:
            if copies is not None:
                copies.close()
            copies = make_copies(task, len(seeds) * count)
        label = name if together == episodes else f"{name}, episodes {first + 1} to {first + count} of {episodes}"
        keep = max(0, kept - first)
        rounds.append(rollout(actor, copies, seeds, count, task.horizon, label, progress_folder, keep, first))
    copies.close()
    joined = {
        field: np.concatenate([getattr(r, field) for r in rounds], 1) for field in ("returns", "length", "success")
    }
    return Rollouts(**joined, states=np.concatenate([r.states for r in rounds], 2))


def nested_bootstrap(returns: np.ndarray, draws: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95% percentile interval of `(seeds, episodes)` returns: seeds redrawn first, then episodes within each."""
    rng = np.random.default_rng(seed)
    seeds, episodes = returns.shape
    chosen = rng.integers(seeds, size=(draws, seeds, 1))
    within = rng.integers(episodes, size=(draws, seeds, episodes))
    means = returns[chosen, within].mean((1, 2))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(returns.mean()), float(low), float(high)
