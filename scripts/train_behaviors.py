"""Train the behavior policies of the local MuJoCo datasets with soft actor-critic, and keep a few of their actors.

python scripts/train_behaviors.py hopper               # trains, then writes aepo/data/actors/hopper
python scripts/train_behaviors.py hopper --finish      # writes it from the checkpoints there are, without training

Called again after an interruption it goes on from the last saved state (weights, optimizers, replay buffer; the
random numbers and the running episode start anew, so that bytes differ from those of an unbroken training).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import torch
from safetensors.numpy import save
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from aepo import files
from aepo.data import tasks
from aepo.data.collect import SquashedGaussian

CURVE_EPISODES, KEPT_EPISODES = 10, 20
SAVE_SECONDS = 600
EARLY, FINER = 0.1, 5  # checkpoints are that much denser in the first tenth of the training, where returns rise fast
CANDIDATES = 4
MIXED = (0.05, 0.25, 0.5, 0.75, 1.0)
FRACTIONS = {"medium": 0.45, "simple": 0.2}
D4RL_EXPERT = {task.name.split("-")[1]: task.references[1] for task in tasks.suite("mujoco") if task.references}
DEFAULTS = {  # of Stable-Baselines3, but for the fused Adam
    "layers": 2,
    "optimizer": "fused Adam",
    "gradient_steps": 1,
    "tau": 0.005,
    "ent_coef": "auto",
    "target_entropy": "auto",
    "n_critics": 2,
}
PACKAGES = ("stable-baselines3", "torch", "numpy", "gymnasium", "mujoco")


@dataclass(frozen=True)
class Settings:
    """Soft actor-critic for one environment; what is not here is Stable-Baselines3's default."""

    env_id: str
    steps: int
    learning_rate: float = 3e-4
    gamma: float = 0.99
    width: int = 128
    batch_size: int = 256
    learning_starts: int = 5_000
    train_freq: int = 1
    checkpoints: int = 40


SETTINGS = {
    "invertedpendulum": Settings(
        "InvertedPendulum-v5", 12_000, 1e-3, batch_size=128, learning_starts=500, checkpoints=240
    ),
    "reacher": Settings("Reacher-v5", 50_000, 1e-3, batch_size=128, learning_starts=1_000, checkpoints=100),
    "inverteddoublependulum": Settings(
        "InvertedDoublePendulum-v5", 40_000, 1e-3, batch_size=128, learning_starts=1_000, train_freq=2, checkpoints=80
    ),
    "hopper": Settings("Hopper-v5", 250_000, 7e-4, batch_size=128, train_freq=2, checkpoints=100),
    "pusher": Settings("Pusher-v5", 80_000, 7e-4, batch_size=128, train_freq=2, checkpoints=80),
    "swimmer": Settings("Swimmer-v5", 150_000, 7e-4, gamma=0.9999, batch_size=128, train_freq=2, checkpoints=75),
    "halfcheetah": Settings("HalfCheetah-v5", 280_000, 1e-3, checkpoints=40),
    "walker2d": Settings("Walker2d-v5", 300_000, 7e-4, batch_size=128, train_freq=2, checkpoints=100),
    "ant": Settings("Ant-v5", 200_000, 5e-4, checkpoints=40),
}


def actor_tensors(model: SAC) -> dict[str, np.ndarray]:
    """The actor of a model as named arrays: layers.<i>, mu, log_std (weight, bias) and the action box low, high."""
    actor = model.policy.actor
    linear = [layer for layer in actor.latent_pi if isinstance(layer, torch.nn.Linear)]
    named = {f"layers.{i}": layer for i, layer in enumerate(linear)} | {"mu": actor.mu, "log_std": actor.log_std}
    arrays = {"low": model.action_space.low, "high": model.action_space.high}
    for name, layer in named.items():
        arrays[f"{name}.weight"] = layer.weight.detach().numpy()
        arrays[f"{name}.bias"] = layer.bias.detach().numpy()
    return arrays


def save_actor(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write an actor's arrays in half precision, atomically (the action box too: it is small and exact there)."""
    half = {name: np.ascontiguousarray(value, dtype=np.float16) for name, value in tensors.items()}
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(save(half))


def episode_returns(
    env_id: str, actor: SquashedGaussian | None, episodes: int, seed: int, stochastic: bool = True
) -> np.ndarray:
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


def measure(env_id: str, path: Path, episodes: int, seed: int) -> dict[str, float]:
    """Mean and standard deviation of the return of a stored actor, with sampled and with deterministic actions."""
    actor, row = SquashedGaussian.load(path), {}
    for name, stochastic in (("stochastic", True), ("deterministic", False)):
        returns = episode_returns(env_id, actor, episodes, seed, stochastic)
        row |= {f"{name}_mean": round(float(returns.mean()), 3), f"{name}_std": round(float(returns.std()), 3)}
    return row


class Checkpoints(BaseCallback):
    """Stores and measures the actor along the training, and saves the whole state every few minutes."""

    def __init__(self, settings: Settings, seed: int, folder: Path, log: dict, minutes: float):
        super().__init__()
        self.deadline = time.monotonic() + 60 * minutes
        self.settings, self.seed, self.folder, self.log = settings, seed, folder, log
        self.interval = settings.steps // settings.checkpoints
        self.bar = tqdm(total=settings.steps, initial=log["steps"], desc=settings.env_id, unit="step", mininterval=10)
        self.clock = self.saved = time.monotonic()

    def _on_step(self) -> bool:
        self.bar.update(self.num_timesteps - self.bar.n)
        early = self.num_timesteps <= EARLY * self.settings.steps and self.num_timesteps % (self.interval // FINER) == 0
        if early or self.num_timesteps % self.interval == 0:
            path = self.folder / f"{self.num_timesteps}.safetensors"
            save_actor(path, actor_tensors(self.model))
            row = measure(self.settings.env_id, path, CURVE_EPISODES, 10_000 + 1_000 * self.seed)
            self.log["curve"].append({"steps": self.num_timesteps} | row)
            self.bar.set_postfix_str(f"return {row['stochastic_mean']:.1f} / {row['deterministic_mean']:.1f}")
            now = time.monotonic()
            self.log["steps"], self.log["seconds"] = self.num_timesteps, self.log["seconds"] + now - self.clock
            self.clock = now
            files.write_json(self.folder / "log.json", self.log)
            late = now > self.deadline
            if late or now - self.saved > SAVE_SECONDS or self.num_timesteps >= self.settings.steps:
                self.save()
            return not late
        return True

    def save(self) -> None:
        """Replace the folder `state` by a new one with model, replay buffer and log."""
        fresh, state = self.folder / "state.new", self.folder / "state"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        self.model.save(fresh / "model.zip")
        self.model.save_replay_buffer(fresh / "buffer.pkl")
        files.write_json(fresh / "log.json", self.log)
        shutil.rmtree(state, ignore_errors=True)
        fresh.rename(state)
        self.saved = time.monotonic()


def train(settings: Settings, seed: int, folder: Path, minutes: float) -> None:
    """Train in `folder`, or go on from the state there, for at most about `minutes` of wall time."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    state = folder / "state"
    if (state / "log.json").exists():
        log = json.loads((state / "log.json").read_text())
        model = SAC.load(state / "model.zip", env=gym.make(settings.env_id), device="cpu")
        model.load_replay_buffer(state / "buffer.pkl")
        model.set_random_seed(seed + log["steps"])
        log["resumed_at"].append(log["steps"])
        log["settings"] = asdict(settings) | {"seed": seed}
    else:
        log = {"steps": 0, "seconds": 0.0, "resumed_at": [], "settings": asdict(settings) | {"seed": seed}, "curve": []}
        model = SAC(
            "MlpPolicy",
            gym.make(settings.env_id),
            learning_rate=settings.learning_rate,
            gamma=settings.gamma,
            batch_size=settings.batch_size,
            buffer_size=settings.steps,
            learning_starts=settings.learning_starts,
            train_freq=settings.train_freq,
            policy_kwargs={"net_arch": [settings.width] * 2, "optimizer_kwargs": {"fused": True}},
            seed=seed,
            device="cpu",
        )
    if log["steps"] < settings.steps:
        callback = Checkpoints(settings, seed, folder, log, minutes)
        model.learn(settings.steps - log["steps"], callback=callback, reset_num_timesteps=log["steps"] == 0)
        callback.bar.close()


def choose_tiers(env_id: str, curve: list[dict], random_return: float, folder: Path, seed: int) -> dict[str, Any]:
    """Checkpoints (steps) of each tier. For each single one the candidates nearest on the curve are measured again."""
    steps, returns = [row["steps"] for row in curve], np.array([row["stochastic_mean"] for row in curve])

    def best(target: float, *taken: int) -> int:
        near = [i for i in np.argsort(np.abs(returns - target), kind="stable") if steps[i] not in taken][:CANDIDATES]
        for i in near:
            if steps[i] not in again:
                again[steps[i]] = measure(
                    env_id, folder / f"{steps[i]}.safetensors", KEPT_EPISODES, 15_000 + 1_000 * seed
                )
        return min((steps[i] for i in near), key=lambda step: abs(again[step]["stochastic_mean"] - target))

    again: dict[int, dict] = {}
    expert = best(returns.max() + 1e6)
    top = again[expert]["stochastic_mean"]
    simple, medium = (random_return + FRACTIONS[tier] * (top - random_return) for tier in ("simple", "medium"))
    simple = best(simple, expert)
    tiers = {"expert": expert, "simple": simple, "medium": best(medium, expert, simple)}
    mixed = [steps[int(np.abs(np.array(steps) - share * steps[-1]).argmin())] for share in MIXED]
    return tiers | {"mixed": mixed}


def finish(env: str, settings: Settings, seed: int, folder: Path, out: Path) -> None:
    """Choose the tiers among the checkpoints there are, measure them on fresh episodes, write `out`/<env>."""
    log = json.loads((folder / "log.json").read_text())
    random_return = float(episode_returns(settings.env_id, None, 100, 30_000 + 1_000 * seed).mean())
    tiers = choose_tiers(settings.env_id, log["curve"], random_return, folder, seed)
    kept = sorted({step for value in tiers.values() for step in (value if isinstance(value, list) else [value])})
    target = out / env
    target.mkdir(parents=True, exist_ok=True)
    for stale in target.glob("*.safetensors"):
        if int(stale.stem) not in kept:
            stale.unlink()
    checkpoints = {}
    for step in tqdm(kept, desc=f"measuring {env}", unit="checkpoint"):
        content = (folder / f"{step}.safetensors").read_bytes()
        with files.atomic_path(target / f"{step}.safetensors") as temporary:
            Path(temporary).write_bytes(content)
        row = measure(settings.env_id, target / f"{step}.safetensors", KEPT_EPISODES, 20_000 + 1_000 * seed)
        checkpoints[str(step)] = row | {"sha256": hashlib.sha256(content).hexdigest()}
    best = checkpoints[str(tiers["expert"])]["stochastic_mean"]
    fractions = {
        tier: round((checkpoints[str(step)]["stochastic_mean"] - random_return) / (best - random_return), 3)
        for tier, step in tiers.items()
        if tier != "mixed"
    }
    notes = list(log.get("remarks", []))
    if env in D4RL_EXPERT and best < D4RL_EXPERT[env] * 2 / 3:
        notes.append(
            f"the tier named expert is the best checkpoint of this short training: its return {best:.0f} is "
            f"{best / D4RL_EXPERT[env]:.0%} of D4RL's expert reference {D4RL_EXPERT[env]:g}, below two thirds"
        )
    if log["steps"] < settings.steps:
        notes.append(f"cut off after {log['steps']} of {settings.steps} steps")
    content = {
        "env_id": settings.env_id,
        "seed": seed,
        "algorithm": "soft actor-critic of Stable-Baselines3, CPU, one thread",
        "settings": {"train_freq": 1} | DEFAULTS | log["settings"],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "steps": log["steps"],
        "seconds": round(log["seconds"]),
        "resumed_at": log["resumed_at"],
        "random_return": round(random_return, 3),
        "tiers": tiers,
        "tier_fractions": fractions,
        "tier_rule": "by mean return of sampled actions, four candidates of the curve measured again; expert: highest; "
        "medium, simple: nearest 0.45 and 0.2 of the way from random to it; mixed: after 5, 25, 50, 75, 100% of the steps",
        "note": "; ".join(notes),
        "checkpoint_episodes": KEPT_EPISODES,
        "checkpoints": checkpoints,
        "curve_episodes": CURVE_EPISODES,
        "curve": log["curve"],
    }
    files.write_json(target / "training.json", content)
    print(env, {tier: checkpoints[str(s)]["stochastic_mean"] for tier, s in tiers.items() if tier != "mixed"}, *notes)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the behavior policies of the local MuJoCo datasets.")
    parser.add_argument("env", choices=SETTINGS)
    parser.add_argument("--steps", type=int, help="environment steps (default: the table in this file)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after about that much wall time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("aepo/data/actors"), help="where the kept actors go")
    parser.add_argument("--work", type=Path, default=Path("runs/behaviors"), help="checkpoints and saved states")
    parser.add_argument("--finish", action="store_true", help="no training: write --out from the checkpoints there are")
    arguments = parser.parse_args()
    settings = SETTINGS[arguments.env]
    if arguments.steps:
        settings = replace(settings, steps=arguments.steps)
    folder = arguments.work / f"{arguments.env}-{arguments.seed}"
    if not arguments.finish:
        train(settings, arguments.seed, folder, arguments.minutes)
    finish(arguments.env, settings, arguments.seed, folder, arguments.out)


if __name__ == "__main__":
    main()
