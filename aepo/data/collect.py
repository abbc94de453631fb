"""Data made here: way-point walks through mazes, and the actors that scripts/train_behaviors.py left in `actors/`."""

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

import gymnasium as gym
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
        storage.reserve(staging, data.steps, data.steps // task.horizon, cast(tuple, task.dimensions))
        episodes = RECIPES[task.recipe or ""](task, data.steps, data.seed)
        storage.reserve(staging, data.steps, len(episodes), cast(tuple, task.dimensions))
        spec, arguments = gym.spec(task.env_id or ""), POINTMAZE_WALK if task.recipe == "pointmaze" else task.env_kwargs
        *references, origin = reference_scores(task, data.seed)
        acted = f"{task.recipe} controller, action noise {ACTION_NOISE:g}"
        if task.recipe == "actors":
            steps = ", ".join(map(str, tier_checkpoints(task.env_id or "", task.tier)))
            algorithm = training(task.env_id)["algorithm"]
            acted = f"{algorithm}, sampled actions of the checkpoints after {steps} steps"
        cache.create(
            staging,
            dataset_id,
            task,
            episodes,
            references,
            env=replace(spec, kwargs={**spec.kwargs, **arguments}),
            algorithm_name=f"{acted}, seed {data.seed}",
            author="AEPO study contributors",
            description=f"{data.steps} steps, collected by the AEPO study. Scores: {origin}.",
            requirements=[f"{name}=={files.versions()[name]}" for name in ("mujoco", "gymnasium-robotics")],
        )
    return dataset_id


@dataclass(frozen=True)
class SquashedGaussian:
    """tanh(N(mu(s), sigma(s)^2)) scaled to the action box; ReLU layers as (weight `(out, in)`, bias `(out,)`)."""

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    mu: tuple[np.ndarray, np.ndarray]
    log_std: tuple[np.ndarray, np.ndarray]
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def load(cls, path: Path) -> Self:
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
    folder = ACTORS / env_id.split("-")[0].lower()
    try:
        return json.loads((folder / "training.json").read_text())
    except OSError:
        raise files.StudyError(
            f"no behavior policies for {env_id} in {folder}: run scripts/train_behaviors.py {folder.name}"
        ) from None


def tier_checkpoints(env_id: str, tier: str | None) -> list[int]:
    """The checkpoints (training steps) that a tier plays, in equal shares; "medium-expert" those of two tiers."""
    tiers = training(env_id)["tiers"]
    parts = ["medium", "expert"] if tier == "medium-expert" else [tier]
    if not set(parts) <= set(tiers):
        raise files.StudyError(f"unknown tier {tier!r} for {env_id}: choose one of {', '.join(tiers)}, medium-expert")
    return [steps for part in parts for steps in np.atleast_1d(tiers[part]).tolist()]


def load_checkpoint(env_id: str, steps: int) -> SquashedGaussian:
    """The actor after `steps` of training, its file checked against the recorded sha256."""
    path = ACTORS / env_id.split("-")[0].lower() / f"{steps}.safetensors"
    expected = training(env_id)["checkpoints"][str(steps)]["sha256"]
    if not path.exists() or storage.sha256(path) != expected:
        raise files.StudyError(f"{path} is missing or changed: restore it from the repository")
    return SquashedGaussian.load(path)


def collect_actors(task: Task, steps: int, seed: int) -> list[EpisodeBuffer]:
    """Episodes of the trained actors of the task's tier, with sampled actions; several checkpoints in equal shares."""
    checkpoints = tier_checkpoints(task.env_id or "", task.tier)
    episodes: list[EpisodeBuffer] = []
    shares = [len(part) for part in np.array_split(range(steps), len(checkpoints))]
    with Progress("collect", steps) as bar:
        for i, (checkpoint, share) in enumerate(zip(checkpoints, shares, strict=True)):
            episodes += _play(task, load_checkpoint(task.env_id or "", checkpoint), share, [seed, i], bar)
    return episodes


def _play(task: Task, actor: SquashedGaussian, steps: int, key: list[int], bar: Progress) -> list[EpisodeBuffer]:
    """Sampled actions of one actor in environments side by side: their episodes, the last of each cut off (truncated)."""
    shares = [len(part) for part in np.array_split(range(steps), _side_by_side(steps, task.horizon))]
    rng = np.random.default_rng(key)
    seeds = [int(np.random.SeedSequence([*key, i]).generate_state(1)[0]) for i in range(len(shares))]
    envs = [gym.make(task.env_id or "", disable_env_checker=True, **task.env_kwargs) for _ in shares]
    running = [([env.reset(seed=seed)[0]], list[Any](), list[Any]()) for env, seed in zip(envs, seeds, strict=True)]
    episodes: list[list[EpisodeBuffer]] = [[] for _ in envs]
    for step in range(max(shares)):
        chosen = actor.act(np.array([observations[-1] for observations, _, _ in running]), rng)
        for i in [i for i, share in enumerate(shares) if step < share]:
            observation, reward, terminated, truncated, _ = envs[i].step(chosen[i])
            for recorded, value in zip(running[i], (observation.copy(), chosen[i], reward), strict=True):
                recorded.append(value)
            cut = step == shares[i] - 1
            if terminated or truncated or cut:
                episodes[i].append(recorded_episode(seeds[i], *running[i], terminated, truncated or not terminated))
                if not cut:
                    running[i] = ([envs[i].reset()[0]], [], [])
        bar.update(sum(step < share for share in shares))
    for env in envs:
        env.close()
    return [episode for of_one in episodes for episode in of_one]


def _side_by_side(steps: int, horizon: int) -> int:
    """How many environments share `steps`: ten episodes each or more, and whole episodes of full length if possible."""
    most = int(np.clip(steps // (EPISODES_EACH * horizon), 1, ENVIRONMENTS))
    return next((count for count in range(most, 0, -1) if steps % (count * horizon) == 0), most)


RECIPES = {"waypoint": collect_walk, "pointmaze": collect_walk, "actors": collect_actors}  # of (task, steps, seed)


def reference_scores(task: Task, seed: int) -> tuple[float, float, str]:
    """Returns of score 0 and 100 for a task with a recipe, and where they come from."""
    if task.recipe != "actors":
        return maze_references(task, seed)
    trained = training(task.env_id)
    expert = trained["checkpoints"][str(trained["tiers"]["expert"])]["stochastic_mean"]
    origin = "0: random policy, 100: our expert checkpoint with sampled actions, both measured after its training"
    return trained["random_return"], expert, origin
