"""Train the behavior policies of the local MuJoCo datasets with PPO or SAC, and keep a few of their actors.

python scripts/train_behaviors.py hopper               # trains, then writes aepo/data/actors/hopper
python scripts/train_behaviors.py hopper --finish      # writes it from the checkpoints there are, without training

Called again after an interruption it goes on from the last saved state (weights, optimizer, PPO's running mean and
variance of the observations, SAC's replay buffer; the random numbers and the running episodes start anew, so that bytes
differ from those of an unbroken training).
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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import torch
from safetensors.numpy import save
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tqdm import tqdm

from aepo import files
from aepo.data import tasks
from aepo.data.collect import SquashedGaussian

CURVE_EPISODES, CHOSEN_EPISODES, KEPT_EPISODES = 10, 40, 20
SAVE_SECONDS = 300
CANDIDATES = 10
EARLY, FINER = 0.1, 6  # checkpoints are that much denser in the first tenth of the training, where returns rise fast
MIXED = 10  # checkpoints
FRACTIONS = {"medium": 0.42, "simple": 0.17}
D4RL_EXPERT = {task.name.split("-")[1]: task.references[1] for task in tasks.suite("mujoco") if task.references}
PACKAGES = ("stable-baselines3", "torch", "numpy", "gymnasium", "mujoco")


@dataclass(frozen=True)
class Settings:
    """Of one environment's training, for every algorithm; what is not here is Stable-Baselines3's default."""

    env_id: str
    steps: int
    interval: int  # steps between two checkpoints
    gamma: float = 0.99
    gamma_end: float | None = None  # of PPO: its horizon 1 / (1 - gamma) grows to that of this one, geometrically
    algorithm: str = "PPO"
    environments: int = 16
    width: int = 128
    arguments: Mapping = field(default_factory=lambda: PPO_ARGUMENTS)


PPO_ARGUMENTS = {"n_steps": 256, "batch_size": 512, "n_epochs": 10, "target_kl": 0.03}
SAC_ARGUMENTS = {"learning_rate": 7e-4, "batch_size": 256, "learning_starts": 10_000, "gradient_steps": 2}
LEARNING_RATE = 3e-4  # of PPO: falls linearly to a tenth
LOG_STD = -0.5  # of PPO's actions before the tanh, at its start
SETTINGS = {
    "invertedpendulum": Settings("InvertedPendulum-v5", 400_000, 4_096),
    "reacher": Settings("Reacher-v5", 1_000_000, 40_960, gamma=0.95),
    "inverteddoublependulum": Settings("InvertedDoublePendulum-v5", 1_000_000, 20_480),
    "pusher": Settings("Pusher-v5", 2_000_000, 40_960, gamma=0.95),
    "swimmer": Settings("Swimmer-v5", 3_000_000, 40_960, gamma=0.9999, arguments=PPO_ARGUMENTS | {"gae_lambda": 0.99}),
    "hopper": Settings("Hopper-v5", 5_000_000, 49_152, gamma_end=0.999),
    "halfcheetah": Settings(
        "HalfCheetah-v5", 1_000_000, 20_000, algorithm="SAC", environments=4, arguments=SAC_ARGUMENTS
    ),
    "walker2d": Settings("Walker2d-v5", 6_000_000, 98_304, gamma_end=0.999),
    "ant": Settings("Ant-v5", 6_000_000, 98_304),
}


def make(env_id: str) -> gym.Env:
    """The environment as its task plays it."""
    kwargs = next((task.env_kwargs for task in tasks.suite("local") if task.env_id == env_id), {})
    return gym.make(env_id, disable_env_checker=True, **kwargs)


def squashed(env_id: str) -> gym.Env:
    """The same, for actions before the tanh: PPO's Gaussian is then the one that `SquashedGaussian` samples."""
    env = make(env_id)
    low, high = env.action_space.low, env.action_space.high
    wide = gym.spaces.Box(-10, 10, env.action_space.shape, np.float32)
    return gym.wrappers.TransformAction(env, lambda latent: low + 0.5 * (np.tanh(latent) + 1) * (high - low), wide)


def actor_tensors(model: BaseAlgorithm, env_id: str) -> dict[str, np.ndarray]:
    """The actor as named arrays: layers.<i>, mu, log_std (weight, bias) and the action box low, high.

    PPO's running normalization of observations is folded into the first layer (its clip at 10 deviations is left out).
    """
    space = make(env_id).action_space
    sac = isinstance(model, SAC)
    hidden, mu = (
        (model.actor.latent_pi, model.actor.mu)
        if sac
        else (model.policy.mlp_extractor.policy_net, model.policy.action_net)
    )
    named = {
        f"layers.{i}": layer for i, layer in enumerate(each for each in hidden if isinstance(each, torch.nn.Linear))
    }
    named |= {"mu": mu} | ({"log_std": model.actor.log_std} if sac else {})
    arrays = {f"{name}.weight": layer.weight.detach().numpy().astype(np.float64) for name, layer in named.items()}
    arrays |= {f"{name}.bias": layer.bias.detach().numpy().astype(np.float64) for name, layer in named.items()}
    if not sac:
        seen = model.get_vec_normalize_env()
        arrays["layers.0.weight"] = arrays["layers.0.weight"] / np.sqrt(seen.obs_rms.var + seen.epsilon)
        arrays["layers.0.bias"] = arrays["layers.0.bias"] - arrays["layers.0.weight"] @ seen.obs_rms.mean
        arrays["log_std.weight"] = np.zeros_like(arrays["mu.weight"])
        arrays["log_std.bias"] = model.policy.log_std.detach().numpy()
    return arrays | {"low": space.low, "high": space.high}


def save_actor(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write an actor's arrays in half precision, atomically (the action box too: it is small and exact there)."""
    half = {name: np.ascontiguousarray(value, dtype=np.float16) for name, value in tensors.items()}
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(save(half))


def episode_returns(
    env_id: str, actor: SquashedGaussian | None, episodes: int, seed: int, stochastic: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Returns and lengths `(episodes,)` of whole episodes, stepped side by side; without an actor of the random policy."""
    envs = [make(env_id) for _ in range(episodes)]
    rng = np.random.default_rng([seed, int(stochastic)])
    space = envs[0].action_space
    states = np.array([env.reset(seed=seed + i)[0] for i, env in enumerate(envs)])
    returns, lengths, running = np.zeros(episodes), np.zeros(episodes, dtype=int), np.arange(episodes)
    while len(running):
        if actor is None:
            actions = rng.uniform(space.low, space.high, (len(running), *space.shape)).astype(np.float32)
        else:
            actions = actor.act(states[running], rng if stochastic else None)
        ended = np.zeros(len(running), dtype=bool)
        for row, i in enumerate(running):
            states[i], reward, terminated, truncated, _ = envs[i].step(actions[row])
            returns[i] += reward
            lengths[i] += 1
            ended[row] = terminated or truncated
        running = running[~ended]
    for env in envs:
        env.close()
    return returns, lengths


def measure(env_id: str, path: Path, episodes: int, seed: int, modes: tuple[str, ...]) -> dict[str, float]:
    """Mean and deviation of the return of a stored actor, and reward a step, with sampled or deterministic actions."""
    actor, row = SquashedGaussian.load(path), {}
    for mode in modes:
        returns, lengths = episode_returns(env_id, actor, episodes, seed, mode == "stochastic")
        row |= {f"{mode}_mean": round(float(returns.mean()), 3), f"{mode}_std": round(float(returns.std()), 3)}
        row[f"{mode}_per_step"] = round(float(returns.sum() / lengths.sum()), 4)
    return row


class Checkpoints(BaseCallback):
    """Between two updates: stores and measures the actor every `interval` steps, and saves the whole state."""

    def __init__(self, settings: Settings, seed: int, folder: Path, log: dict, minutes: float):
        super().__init__()
        self.deadline = time.monotonic() + 60 * minutes
        self.settings, self.seed, self.folder, self.log = settings, seed, folder, log
        self.bar = tqdm(total=settings.steps, initial=log["steps"], desc=settings.env_id, unit="step", mininterval=10)
        self.clock = self.saved = time.monotonic()
        self.late = False

    def _on_step(self) -> bool:
        return not self.late

    def _on_rollout_start(self) -> None:
        self.bar.update(self.num_timesteps - self.bar.n)
        if self.settings.gamma_end:
            first, last = 1 - self.settings.gamma, 1 - self.settings.gamma_end
            self.model.gamma = 1 - first * (last / first) ** (self.num_timesteps / self.settings.steps)
            self.model.rollout_buffer.gamma = self.model.gamma
        last = self.log["curve"][-1]["steps"] if self.log["curve"] else -self.settings.interval
        finer = FINER if self.num_timesteps < EARLY * self.settings.steps else 1
        if self.num_timesteps - last < self.settings.interval // finer and self.num_timesteps < self.settings.steps:
            return
        path = self.folder / f"{self.num_timesteps}.safetensors"
        save_actor(path, actor_tensors(self.model, self.settings.env_id))
        row = measure(self.settings.env_id, path, CURVE_EPISODES, 10_000 + 1_000 * self.seed, ("stochastic",))
        self.log["curve"].append({"steps": self.num_timesteps} | row)
        self.bar.set_postfix_str(f"return {row['stochastic_mean']:.1f}")
        now = time.monotonic()
        self.log["steps"], self.log["seconds"] = self.num_timesteps, self.log["seconds"] + now - self.clock
        self.clock, self.late = now, now > self.deadline
        if self.late or now - self.saved > SAVE_SECONDS or self.num_timesteps >= self.settings.steps:
            self.save()

    _on_training_end = _on_rollout_start

    def save(self) -> None:
        """Replace the folder `state` by a new one with the model, what it cannot do without, and the log."""
        fresh, state = self.folder / "state.new", self.folder / "state"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        self.model.save(fresh / "model.zip")
        if isinstance(self.model, SAC):
            self.model.save_replay_buffer(fresh / "buffer.pkl")
        else:
            self.model.get_vec_normalize_env().save(fresh / "normalization.pkl")
        files.write_json(fresh / "log.json", self.log)
        shutil.rmtree(state, ignore_errors=True)
        fresh.rename(state)
        files.write_json(self.folder / "log.json", self.log)
        self.saved = time.monotonic()


def new_model(settings: Settings, seed: int) -> BaseAlgorithm:
    """An untrained model with its environments."""
    network = {"net_arch": [settings.width] * 2}
    more = {"gamma": settings.gamma, "seed": seed, "device": "cpu", **settings.arguments}
    if settings.algorithm == "SAC":
        env = DummyVecEnv([lambda: make(settings.env_id)] * settings.environments)
        network |= {"optimizer_kwargs": {"fused": True}}
        return SAC("MlpPolicy", env, policy_kwargs=network, buffer_size=settings.steps, **more)
    env = VecNormalize(DummyVecEnv([lambda: squashed(settings.env_id)] * settings.environments), gamma=settings.gamma)
    network |= {"activation_fn": torch.nn.ReLU, "log_std_init": LOG_STD}
    return PPO("MlpPolicy", env, lambda left: LEARNING_RATE * (0.1 + 0.9 * left), policy_kwargs=network, **more)


def saved_model(settings: Settings, state: Path, seed: int) -> BaseAlgorithm:
    """The model of the folder `state`, as `Checkpoints.save` left it."""
    if settings.algorithm == "SAC":
        env = DummyVecEnv([lambda: make(settings.env_id)] * settings.environments)
        model = SAC.load(state / "model.zip", env=env, device="cpu")
        model.load_replay_buffer(state / "buffer.pkl")
    else:
        env = DummyVecEnv([lambda: squashed(settings.env_id)] * settings.environments)
        env = VecNormalize.load(str(state / "normalization.pkl"), env)
        model = PPO.load(state / "model.zip", env=env, device="cpu")
    model.set_random_seed(seed)
    return model


def train(settings: Settings, seed: int, folder: Path, minutes: float) -> None:
    """Train in `folder`, or go on from the state there, for at most about `minutes` of wall time."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    state = folder / "state"
    if (state / "log.json").exists():
        log = json.loads((state / "log.json").read_text())
        log["resumed_at"].append(log["steps"])
        log["settings"] = asdict(settings) | {"seed": seed}
        model = saved_model(settings, state, seed + log["steps"])
    else:
        log = {"steps": 0, "seconds": 0.0, "resumed_at": [], "settings": asdict(settings) | {"seed": seed}, "curve": []}
        model = new_model(settings, seed)
    if log["steps"] < settings.steps:
        callback = Checkpoints(settings, seed, folder, log, minutes)
        model.learn(settings.steps - log["steps"], callback=callback, reset_num_timesteps=log["steps"] == 0)
        callback.bar.close()


def choose_tiers(env_id: str, curve: list[dict], random_return: float, top: float, folder: Path, seed: int) -> dict:
    """Checkpoints (steps) of each tier; of the candidates nearest on the curve, each measured again, the nearest."""
    again: dict[int, dict] = {}

    def best(rows: list[dict], target: float) -> dict:
        for row in sorted(rows, key=lambda row: abs(row["stochastic_mean"] - target))[:CANDIDATES]:
            path = folder / f"{row['steps']}.safetensors"
            again.setdefault(
                row["steps"], measure(env_id, path, CHOSEN_EPISODES, 15_000 + 1_000 * seed, ("stochastic",))
            )
        seen = [{"steps": row["steps"]} | again[row["steps"]] for row in rows if row["steps"] in again]
        return min(seen, key=lambda row: abs(row["stochastic_mean"] - target))

    expert = best(curve, 1e9)
    slower = [row for row in curve if row["stochastic_per_step"] < expert["stochastic_per_step"]] or curve
    chosen = {
        tier: best(
            [row for row in slower if row["steps"] < expert["steps"]], random_return + share * (top - random_return)
        )
        for tier, share in FRACTIONS.items()
    }
    mixed = [
        min(curve, key=lambda row: abs(row["steps"] - share * curve[-1]["steps"])) for share in np.linspace(0, 1, MIXED)
    ]
    tiers = {tier: row["steps"] for tier, row in (chosen | {"expert": expert}).items()}
    return tiers | {"mixed": sorted({row["steps"] for row in mixed})}


def finish(env: str, settings: Settings, seed: int, folder: Path, out: Path) -> None:
    """Choose the tiers among the checkpoints there are, measure them on fresh episodes, write `out`/<env>."""
    log = json.loads((folder / "log.json").read_text())
    random_return = float(episode_returns(settings.env_id, None, 100, 30_000 + 1_000 * seed)[0].mean())
    top = D4RL_EXPERT.get(env, max(row["stochastic_mean"] for row in log["curve"]))
    tiers = choose_tiers(settings.env_id, log["curve"], random_return, top, folder, seed)
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
        path, modes = target / f"{step}.safetensors", ("stochastic", "deterministic")
        row = measure(settings.env_id, path, KEPT_EPISODES, 20_000 + 1_000 * seed, modes)
        checkpoints[str(step)] = row | {"sha256": hashlib.sha256(content).hexdigest()}
    shares = {
        tier: round((checkpoints[str(step)]["stochastic_mean"] - random_return) / (top - random_return), 3)
        for tier, step in tiers.items()
        if tier != "mixed"
    }
    content = {
        "env_id": settings.env_id,
        "seed": seed,
        "algorithm": f"{settings.algorithm} of Stable-Baselines3, CPU, one thread",
        "settings": log["settings"],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "steps": log["steps"],
        "seconds": round(log["seconds"]),
        "resumed_at": log["resumed_at"],
        "random_return": round(random_return, 3),
        "reference": top,
        "tiers": tiers,
        "tier_shares": shares,
        "tier_rule": f"by mean return of sampled actions, {CANDIDATES} candidates of the curve measured again over "
        f"{CHOSEN_EPISODES} episodes; expert: highest; medium, simple: before it and slower a step, nearest "
        f"{FRACTIONS['medium']} and {FRACTIONS['simple']} of the way from random to the reference (D4RL's expert, else "
        "the highest of the curve); mixed: along the training, evenly spaced",
        "checkpoint_episodes": KEPT_EPISODES,
        "checkpoints": checkpoints,
        "curve_episodes": CURVE_EPISODES,
        "curve": log["curve"],
    }
    files.write_json(target / "training.json", content)
    print(
        env,
        f"{log['steps']} steps",
        {tier: checkpoints[str(tiers[tier])]["stochastic_mean"] for tier in shares},
        shares,
    )


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
