"""Recipes that make data where nothing can be downloaded: way-point walks through mazes, and small trained actors."""

from __future__ import annotations

import copy
from collections.abc import Callable

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from minari.data_collector.episode_buffer import EpisodeBuffer

from aepo.data import behaviors
from aepo.data.behaviors import Actor
from aepo.data.suites import D4RL_LOCOMOTION, LOCOMOTION
from aepo.data.tasks import Task
from aepo.data.waypoint import ACTION_NOISE, POINTMAZE_WALK, collect_maze2d, collect_pointmaze, maze_references
from aepo.progress import Progress

ENVIRONMENTS = 16
EPISODES_EACH = 10
D4RL_EXPERT = {LOCOMOTION[robot][0]: expert for robot, (_, expert) in D4RL_LOCOMOTION.items()}


def _split(total: int, parts: int) -> list[int]:
    """`total` as `parts` integers that differ by at most one."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def _side_by_side(steps: int, horizon: int) -> int:
    """How many environments share `steps`: ten episodes each or more, and whole episodes of full length if possible."""
    most = int(np.clip(steps // (EPISODES_EACH * horizon), 1, ENVIRONMENTS))
    return next((count for count in range(most, 0, -1) if steps % (count * horizon) == 0), most)


def _play(task: Task, actor: Actor, steps: int, key: list[int], bar: Progress | None) -> list[EpisodeBuffer]:
    """`steps` steps of one actor with sampled actions, several environments side by side, their episodes in order.

    The last episode of each environment is cut off (truncated) where its share of the steps ends.
    """
    count = _side_by_side(steps, task.horizon)
    shares = _split(steps, count)
    rng = np.random.default_rng(key)
    envs = [gym.make(task.env_id, disable_env_checker=True, **task.env_kwargs) for _ in range(count)]
    seeds = [int(np.random.SeedSequence([*key, i]).generate_state(1)[0]) for i in range(count)]
    rows = [[env.reset(seed=seed)[0]] for env, seed in zip(envs, seeds, strict=True)]
    actions: list[list] = [[] for _ in envs]
    rewards: list[list] = [[] for _ in envs]
    episodes: list[list[EpisodeBuffer]] = [[] for _ in envs]
    for step in range(max(shares)):
        chosen = actor.act(np.array([row[-1] for row in rows]), rng)
        for i, env in enumerate(envs):
            if step >= shares[i]:
                continue
            observation, reward, terminated, truncated, _ = env.step(chosen[i])
            rows[i].append(observation.copy())
            actions[i].append(chosen[i])
            rewards[i].append(reward)
            cut = step == shares[i] - 1
            if terminated or truncated or cut:
                length = len(rewards[i])
                last = np.arange(length) == length - 1
                episodes[i].append(
                    EpisodeBuffer(
                        seed=seeds[i],
                        observations=np.array(rows[i]),
                        actions=np.array(actions[i], dtype=np.float32),
                        rewards=np.array(rewards[i], dtype=np.float64),
                        terminations=last & bool(terminated),
                        truncations=last & bool(truncated or (cut and not terminated)),
                    )
                )
                if not cut:
                    rows[i] = [env.reset()[0]]
                    actions[i], rewards[i] = [], []
        if bar and (step % 100 == 99 or step == max(shares) - 1):
            bar.update(sum(min(share, step + 1) - min(share, step // 100 * 100) for share in shares))
    for env in envs:
        env.close()
    return [episode for of_one in episodes for episode in of_one]


def collect_actors(task: Task, steps: int, seed: int, progress: bool = True) -> list[EpisodeBuffer]:
    """Episodes of the trained actors of the task's tier, with sampled actions; several checkpoints in equal shares."""
    checkpoints = behaviors.tier_checkpoints(task.env_id, task.tier)
    shares = _split(steps, len(checkpoints))
    bar = Progress("collect", steps) if progress else None
    episodes: list[EpisodeBuffer] = []
    for i, (checkpoint, share) in enumerate(zip(checkpoints, shares, strict=True)):
        if share:
            episodes += _play(task, behaviors.load_checkpoint(task.env_id, checkpoint), share, [seed, i], bar)
    if bar:
        bar.close()
    return episodes


def actor_references(task: Task, seed: int) -> tuple[float, float, str]:
    """Score 0: random policy as measured after the training; 100: D4RL's expert where it has one, else our own expert."""
    training = behaviors.training(task.env_id)
    random_return = training["random_return"]
    expert = D4RL_EXPERT.get(task.env_id.split("-")[0])
    if expert is not None:
        origin = "0: random policy, measured; 100: D4RL's expert reference, of older data and environment versions"
        return random_return, expert, origin
    best = training["checkpoints"][str(training["tiers"]["expert"])]
    origin = "0: random policy, 100: our expert checkpoint with deterministic actions, both measured after its training"
    return random_return, best["deterministic_mean"], origin


Recipe = Callable[[Task, int, int, bool], list[EpisodeBuffer]]
RECIPES: dict[str, Recipe] = {"waypoint": collect_maze2d, "pointmaze": collect_pointmaze, "sac": collect_actors}
REFERENCES: dict[str, Callable[[Task, int], tuple[float, float, str]]] = {
    "waypoint": maze_references,
    "pointmaze": maze_references,
    "sac": actor_references,
}


def reference_scores(task: Task, seed: int) -> tuple[float, float, str]:
    """Returns of score 0 and 100 for a task with a recipe, and where they come from."""
    return REFERENCES[task.recipe](task, seed)


def environment_specs(task: Task) -> tuple[EnvSpec, EnvSpec]:
    """What the data are collected in, and what evaluates: for the dataset's metadata."""
    collecting, evaluating = (copy.deepcopy(gym.spec(task.env_id)) for _ in range(2))
    evaluating.kwargs.update(task.env_kwargs)
    collecting.kwargs.update(POINTMAZE_WALK if task.recipe == "pointmaze" else task.env_kwargs)
    return collecting, evaluating


def describe(task: Task) -> str:
    """What made the data, for the dataset's metadata."""
    if task.recipe == "sac":
        checkpoints = behaviors.tier_checkpoints(task.env_id, task.tier)
        return f"soft actor-critic, sampled actions of the checkpoints after {', '.join(map(str, checkpoints))} steps"
    return f"{task.recipe} controller, action noise {ACTION_NOISE:g}"
