"""Rollouts in vector environments: all seeds and episodes in one sampler call a step; scores with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

from aepo.environments import make_vector
from aepo.networks import generator
from aepo.policy import Actor
from aepo.progress import Progress
from aepo.tasks import Task

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
    environments: gym.vector.VectorEnv,
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
    Start and noise of an episode follow from (seed, episode) alone, the same for every method.
    """
    shape, numbers = (len(seeds), episodes), range(first, first + episodes)
    device = actor.behavior.low.device
    d = environments.single_action_space.shape[0]
    noise = torch.stack(
        [
            torch.stack(
                [torch.randn(horizon, actor.candidates, d, generator=generator(seed, "episode", e)) for e in numbers]
            )
            for seed in seeds
        ]
    ).to(device)
    starts = [int(generator(seed, "start", e).initial_seed() % 2**31) for seed in seeds for e in numbers]
    observation, _ = environments.reset(seed=starts)
    returns, length, success = np.zeros(shape), np.zeros(shape, dtype=int), np.full(shape, np.nan)
    running = np.ones(shape, dtype=bool)
    kept = episodes if kept is None else min(kept, episodes)
    states = np.full((horizon + 1, shape[0], kept, observation.shape[-1]), np.nan, dtype=np.float32)
    states[0] = observation.reshape(*shape, -1)[:, :kept]
    with Progress(name, horizon, folder=progress_folder) as progress:
        for step in range(horizon):
            state = torch.as_tensor(observation, dtype=torch.float32, device=device).view(*shape, -1)
            action = actor.act(state, noise[:, :, step])
            observation, reward, terminated, truncated, info = environments.step(action.reshape(-1, d).cpu().numpy())
            returns += np.where(running, reward.reshape(shape), 0)
            length += running
            if "success" in info:
                reached = np.asarray(info["success"], dtype=float).reshape(shape)
                success = np.where(running, np.fmax(success, reached), success)
            states[step + 1][running[:, :kept]] = observation.reshape(*shape, -1)[:, :kept][running[:, :kept]]
            running &= ~(terminated | truncated).reshape(shape)
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
    rounds, environments = [], None
    for first in range(0, episodes, together):
        count = min(together, episodes - first)
        if environments is None or count < together:
            if environments is not None:
                environments.close()
            environments = make_vector(task, len(seeds) * count)
        label = name if together == episodes else f"{name}, episodes {first + 1} to {first + count} of {episodes}"
        keep = max(0, kept - first)
        rounds.append(rollout(actor, environments, seeds, count, task.horizon, label, progress_folder, keep, first))
    environments.close()
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
