"""Small trained policies that act as behaviors: squashed Gaussian actors, stored in half precision, run in NumPy."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from safetensors.numpy import load_file, save

from aepo import files

BEHAVIORS = Path(__file__).parent / "actors"
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
TIERS = ("simple", "medium", "expert", "mixed", "medium-expert")


@dataclass(frozen=True)
class Actor:
    """tanh(N(mu(s), sigma(s)^2)) scaled to the action box; ReLU layers as (weight `(out, in)`, bias `(out,)`)."""

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    mu: tuple[np.ndarray, np.ndarray]
    log_std: tuple[np.ndarray, np.ndarray]
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> Actor:
        """From the arrays of a file, half precision widened to float32."""
        wide = {name: np.asarray(value, dtype=np.float32) for name, value in tensors.items()}
        count = sum(name.startswith("layers.") for name in wide) // 2
        pair = lambda stem: (wide[f"{stem}.weight"], wide[f"{stem}.bias"])  # noqa: E731
        layers = tuple(pair(f"layers.{i}") for i in range(count))
        return cls(layers, pair("mu"), pair("log_std"), wide["low"], wide["high"])

    @classmethod
    def load(cls, path: Path) -> Actor:
        """Read a file that `save_actor` wrote."""
        return cls.from_tensors(load_file(path))

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


def save_actor(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write an actor's arrays in half precision, atomically (the action box too: it is small and exact there)."""
    half = {name: np.ascontiguousarray(value, dtype=np.float16) for name, value in tensors.items()}
    with files.atomic_path(path) as temporary:
        Path(temporary).write_bytes(save(half))


def episode_returns(env_id: str, actor: Actor | None, episodes: int, seed: int, stochastic: bool = True) -> np.ndarray:
    """Returns `(episodes,)` of whole episodes, stepped side by side; without an actor of the random policy."""
    envs = [gym.make(env_id, disable_env_checker=True) for _ in range(episodes)]
    rng = np.random.default_rng([seed, int(stochastic)])
    space = envs[0].action_space
    states = np.array([env.reset(seed=seed + i)[0] for i, env in enumerate(envs)])
    returns, running = np.zeros(episodes), np.arange(episodes)
    while len(running):
        if actor is None:
            actions = rng.uniform(space.low, space.high, (len(running), *space.shape)).astype(np.float32)
        else:
            actions = actor.act(states[running], rng if stochastic else None)
        ended = np.zeros(len(running), dtype=bool)
        for row, i in enumerate(running):
            states[i], reward, terminated, truncated, _ = envs[i].step(actions[row])
            returns[i] += reward
            ended[row] = terminated or truncated
        running = running[~ended]
    for env in envs:
        env.close()
    return returns


def _folder(env_id: str) -> Path:
    """Where the actors of an environment lie: Hopper-v5 -> actors/hopper."""
    return BEHAVIORS / env_id.split("-")[0].lower()


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


def tier_checkpoints(env_id: str, tier: str | None) -> list[int]:
    """The checkpoints (training steps) that a tier plays, in equal shares."""
    if tier not in TIERS:
        raise files.StudyError(f"unknown tier {tier!r} for {env_id}: choose one of {', '.join(TIERS)}")
    tiers = training(env_id)["tiers"]
    if tier == "medium-expert":
        return [tiers["medium"], tiers["expert"]]
    return tiers["mixed"] if tier == "mixed" else [tiers[tier]]


def load_checkpoint(env_id: str, steps: int) -> Actor:
    """The actor after `steps` of training, its file checked against the recorded sha256."""
    path = _folder(env_id) / f"{steps}.safetensors"
    expected = training(env_id)["checkpoints"][str(steps)]["sha256"]
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
        raise files.StudyError(f"{path} is missing or changed: restore it from the repository")
    return Actor.load(path)
