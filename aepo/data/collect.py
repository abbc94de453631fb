"""How data are made where nothing can be downloaded: way-point walks through mazes, and small trained actors.

The actors are squashed Gaussians, trained by scripts/train_behaviors.py and stored in half precision in `actors/`, one
folder an environment, with training.json. A tier of a task says which of them play.
"""

from __future__ import annotations

import copy
import functools
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector.episode_buffer import EpisodeBuffer
from safetensors.numpy import load_file

from aepo import files
from aepo.data import cache, storage
from aepo.data.tasks import Task
from aepo.data.waypoint import ACTION_NOISE, POINTMAZE_WALK, collect_walk, maze_references, recorded_episode
from aepo.progress import Progress
from aepo.settings import DataSettings

ENVIRONMENTS = 16
EPISODES_EACH = 10
ACTORS = Path(__file__).parent / "actors"
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


def collect_dataset(task: Task, dataset_id: str, data: DataSettings) -> str:
    """Run the task's recipe, and write what it recorded as a Minari dataset, where there is none; returns its id."""
    with storage.claim(dataset_id) as staging:
        if staging is None:
            return dataset_id
        storage.reserve(staging, data.steps, data.steps // task.horizon, task.dimensions)
        episodes = RECIPES[task.recipe](task, data.steps, data.seed)
        storage.reserve(staging, data.steps, len(episodes), task.dimensions)
        collecting, evaluating = (copy.deepcopy(gym.spec(task.env_id)) for _ in range(2))
        collecting.kwargs.update(POINTMAZE_WALK if task.recipe == "pointmaze" else task.env_kwargs)
        evaluating.kwargs.update(task.env_kwargs)
        low, high, origin = reference_scores(task, data.seed)
        versions = files.versions()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is set to None", module="minari")
            minari.create_dataset_from_buffers(
                dataset_id,
                buffer=episodes,
                env=collecting,
                eval_env=evaluating,
                algorithm_name=f"{_what_acted(task)}, seed {data.seed}",
                author="AEPO study contributors",
                ref_min_score=low,
                ref_max_score=high,
                description=f"{data.steps} steps, collected by the AEPO study. Scores: {origin}.",
                requirements=[f"{name}=={versions[name]}" for name in ("mujoco", "gymnasium-robotics")],
            )
        cache.build(staging / dataset_id, dataset_id, task)
    return dataset_id


def _what_acted(task: Task) -> str:
    if task.recipe == "sac":
        checkpoints = tier_checkpoints(task.env_id, task.tier)
        return f"soft actor-critic, sampled actions of the checkpoints after {', '.join(map(str, checkpoints))} steps"
    return f"{task.recipe} controller, action noise {ACTION_NOISE:g}"


# ---- trained actors


@dataclass(frozen=True)
class SquashedGaussian:
    """tanh(N(mu(s), sigma(s)^2)) scaled to the action box; ReLU layers as (weight `(out, in)`, bias `(out,)`)."""

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    mu: tuple[np.ndarray, np.ndarray]
    log_std: tuple[np.ndarray, np.ndarray]
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def load(cls, path: Path) -> SquashedGaussian:
        """Read a file of scripts/train_behaviors.py, half precision widened to float32."""
        wide = {name: value.astype(np.float32) for name, value in load_file(path).items()}
        names = [f"layers.{i}" for i in range(sum(name.startswith("layers.") for name in wide) // 2)]
        *layers, mu, log_std = [(wide[f"{name}.weight"], wide[f"{name}.bias"]) for name in (*names, "mu", "log_std")]
        return cls(tuple(layers), mu, log_std, wide["low"], wide["high"])

    def act(self, observations: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Actions `(N, d)` float32 for observations `(N, n)`: sampled with `rng`, the mode without."""
        hidden = np.asarray(observations, dtype=np.float32)
        for weight, bias in self.layers:
            hidden = np.maximum(hidden @ weight.T + bias, 0)
        latent = hidden @ self.mu[0].T + self.mu[1]
        if rng is not None:
            log_std = np.clip(hidden @ self.log_std[0].T + self.log_std[1], LOG_STD_MIN, LOG_STD_MAX)
            latent = latent + np.exp(log_std) * rng.standard_normal(latent.shape, dtype=np.float32)
        return np.clip(self.low + 0.5 * (np.tanh(latent) + 1) * (self.high - self.low), self.low, self.high)


@functools.lru_cache
def training(env_id: str) -> dict[str, Any]:
    """What training.json says of an environment's actors: settings, curve, checkpoints, tiers."""
    path = _folder(env_id) / "training.json"
    try:
        return json.loads(path.read_text())
    except OSError:
        raise files.StudyError(
            f"no behavior policies for {env_id} in {path.parent}: run scripts/train_behaviors.py {path.parent.name}"
        ) from None


def _folder(env_id: str) -> Path:
    """Where the actors of an environment lie: Hopper-v5 -> actors/hopper."""
    return ACTORS / env_id.split("-")[0].lower()


def tier_checkpoints(env_id: str, tier: str | None) -> list[int]:
    """The checkpoints (training steps) that a tier plays, in equal shares; "medium-expert" those of two tiers."""
    tiers = training(env_id)["tiers"]
    parts = ["medium", "expert"] if tier == "medium-expert" else [tier]
    if not set(parts) <= set(tiers):
        raise files.StudyError(f"unknown tier {tier!r} for {env_id}: choose one of {', '.join(tiers)}, medium-expert")
    return [steps for part in parts for steps in np.atleast_1d(tiers[part]).tolist()]


def load_checkpoint(env_id: str, steps: int) -> SquashedGaussian:
    """The actor after `steps` of training, its file checked against the recorded sha256."""
    path = _folder(env_id) / f"{steps}.safetensors"
    expected = training(env_id)["checkpoints"][str(steps)]["sha256"]
    if not path.exists() or storage.sha256(path) != expected:
        raise files.StudyError(f"{path} is missing or changed: restore it from the repository")
    return SquashedGaussian.load(path)


def collect_actors(task: Task, steps: int, seed: int) -> list[EpisodeBuffer]:
    """Episodes of the trained actors of the task's tier, with sampled actions; several checkpoints in equal shares."""
    checkpoints = tier_checkpoints(task.env_id, task.tier)
    episodes: list[EpisodeBuffer] = []
    with Progress("collect", steps) as bar:
        for i, (checkpoint, share) in enumerate(zip(checkpoints, _split(steps, len(checkpoints)), strict=True)):
            if share:
                episodes += _play(task, load_checkpoint(task.env_id, checkpoint), share, [seed, i], bar)
    return episodes


def _play(task: Task, actor: SquashedGaussian, steps: int, key: list[int], bar: Progress) -> list[EpisodeBuffer]:
    """`steps` steps of one actor with sampled actions, several environments side by side, their episodes in order.

    The last episode of each environment is cut off (truncated) where its share of the steps ends.
    """
    shares = _split(steps, _side_by_side(steps, task.horizon))
    rng = np.random.default_rng(key)
    envs = [gym.make(task.env_id, disable_env_checker=True, **task.env_kwargs) for _ in shares]
    seeds = [int(np.random.SeedSequence([*key, i]).generate_state(1)[0]) for i in range(len(envs))]
    running = [([env.reset(seed=seed)[0]], [], []) for env, seed in zip(envs, seeds, strict=True)]
    episodes: list[list[EpisodeBuffer]] = [[] for _ in envs]
    for step in range(max(shares)):
        chosen = actor.act(np.array([observations[-1] for observations, _, _ in running]), rng)
        for i, env in enumerate(envs):
            if step >= shares[i]:
                continue
            observations, actions, rewards = running[i]
            observation, reward, terminated, truncated, _ = env.step(chosen[i])
            observations.append(observation.copy())
            actions.append(chosen[i])
            rewards.append(reward)
            cut = step == shares[i] - 1
            if terminated or truncated or cut:
                truncated = truncated or not terminated
                episodes[i].append(recorded_episode(seeds[i], observations, actions, rewards, terminated, truncated))
                if not cut:
                    running[i] = ([env.reset()[0]], [], [])
        bar.update(sum(step < share for share in shares))
    for env in envs:
        env.close()
    return [episode for of_one in episodes for episode in of_one]


def _split(total: int, parts: int) -> list[int]:
    """`total` as `parts` integers that differ by at most one."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def _side_by_side(steps: int, horizon: int) -> int:
    """How many environments share `steps`: ten episodes each or more, and whole episodes of full length if possible."""
    most = int(np.clip(steps // (EPISODES_EACH * horizon), 1, ENVIRONMENTS))
    return next((count for count in range(most, 0, -1) if steps % (count * horizon) == 0), most)


def actor_references(task: Task) -> tuple[float, float, str]:
    """Score 0: random policy as measured after the training; 100: D4RL's expert where it has one, else our own expert."""
    trained = training(task.env_id)
    if task.references:
        origin = "0: random policy, measured; 100: D4RL's expert reference, of older data and environment versions"
        return trained["random_return"], task.references[1], origin
    best = trained["checkpoints"][str(trained["tiers"]["expert"])]
    origin = "0: random policy, 100: our expert checkpoint with deterministic actions, both measured after its training"
    return trained["random_return"], best["deterministic_mean"], origin


# ---- recipes: (task, steps, seed) -> episodes

RECIPES: dict[str, Callable[[Task, int, int], list[EpisodeBuffer]]] = {
    "waypoint": collect_walk,
    "pointmaze": collect_walk,
    "sac": collect_actors,
}


def reference_scores(task: Task, seed: int) -> tuple[float, float, str]:
    """Returns of score 0 and 100 for a task with a recipe, and where they come from."""
    return actor_references(task) if task.recipe == "sac" else maze_references(task, seed)
