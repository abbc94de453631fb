"""Evaluating methods: episodes in copies of the environment, kept in evaluation/<name>.safetensors with what made them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aepo import environments, files
from aepo import settings as settings_table
from aepo.core.networks import generator
from aepo.data.tasks import Task
from aepo.learners.actor import AGREED
from aepo.methods import METHODS
from aepo.progress import Progress
from aepo.study import runs
from aepo.study.guidance_scale import checksums, matched_scales
from aepo.study.policy import Acting, Actor, load_actor
from aepo.study.runs import Run

MOST_COPIES = {"FrankaKitchen": 24}  # of an environment at once: one takes 68 MB
SHOWN_EPISODES = 8  # of a row: their states are kept
FEWER = "evaluate fewer episodes or seeds at once, or take more memory"


@dataclass(frozen=True)
class Rollouts:
    """Episodes of S policies: returns, length, success (NaN: not reported) `(S, E)`; states `(T, S, SHOWN_EPISODES, n)`."""

    returns: np.ndarray
    length: np.ndarray
    success: np.ndarray
    states: np.ndarray


class Copies:
    """`count` copies of a task's environment."""

    def __init__(self, task: Task, count: int):
        self.envs: list[Any] = [environments.make(task) for _ in range(count)]
        self.action_dim = self.envs[0].action_space.shape[0]

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """First observations `(K, n)` of the first K copies, one a seed."""
        return np.stack([env.reset(seed=seed)[0] for env, seed in zip(self.envs, seeds, strict=False)])

    def step(self, which: Sequence[int] | np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """One step of the copies `which`, actions `(K, d)`: observations `(K, n)`; reward, ended, success `(K,)`."""
        steps = [self.envs[i].step(action) for i, action in zip(which, actions, strict=True)]
        observation, reward, terminated, truncated, info = map(np.array, zip(*steps, strict=True))
        return observation, reward, terminated | truncated, np.array([float(i.get("success", np.nan)) for i in info])


def rollout(
    actor: Actor, copies: Copies, seeds: Sequence[int], episodes: int, horizon: int, first: int = 0, progress=None
) -> Rollouts:
    """Run `episodes` episodes, from number `first` on, of each of the actor's rows; `seeds` names the row's seed.

    Start and noise of an episode follow from (seed, episode) alone, the start the same for every method, the noise for
    all that draw as many candidates. Rows narrow to the greatest number of episodes still running.
    """
    shape, numbers = (len(seeds), episodes), range(first, first + episodes)
    noise_shape = (horizon, actor.draws, copies.action_dim)
    drawn = [torch.randn(noise_shape, generator=generator(seed, "episode", e)) for seed in seeds for e in numbers]
    device = actor.behavior.low.device
    noise = torch.stack(drawn).view(*shape, *noise_shape).to(device)
    starts = [int(generator(seed, "start", e).initial_seed() % 2**31) for seed in seeds for e in numbers]
    observation = copies.reset(starts).reshape(*shape, -1)
    returns, length, success = np.zeros(shape), np.zeros(shape, dtype=int), np.full(shape, np.nan)
    kept = min(max(SHOWN_EPISODES - first, 0), episodes)
    states = np.full((horizon + 1, len(seeds), kept, observation.shape[-1]), np.nan, dtype=np.float32)
    states[0] = observation[:, :kept]
    running, rows = np.ones(shape, dtype=bool), np.arange(len(seeds))[:, None]
    columns = np.tile(np.arange(episodes), (len(seeds), 1))  # of each row: the episodes that are sampled for
    for step in range(horizon):
        most = running.sum(1).max()
        if most < columns.shape[1]:
            columns = np.argsort(~running, axis=1, kind="stable")[:, :most]
        state = torch.as_tensor(observation[rows, columns], dtype=torch.float32, device=device)
        action = actor.act(state, noise[rows, columns, step]).cpu().numpy()
        place = np.nonzero(running[rows, columns])
        who = (place[0], columns[place])
        seen, reward, ended, reached = copies.step(who[0] * episodes + who[1], action[place])
        observation[who] = seen
        returns[who] += reward
        length[who] += 1
        success[who] = np.fmax(success[who], reached)
        shown = who[1] < kept
        states[step + 1][who[0][shown], who[1][shown]] = seen[shown]
        running[who] = ~ended
        if progress:
            progress.update(1)
        if not running.any():
            break
    return Rollouts(returns, length, success, states)


def play(actor: Actor, task: Task, seeds: Sequence[int], episodes: int, name: str, progress_folder: Path) -> Rollouts:
    """`rollout` in the task's environment, in rounds where so many copies of it at once would fill the memory."""
    most = next((n for kind, n in MOST_COPIES.items() if (task.env_id or "").startswith(kind)), len(seeds) * episodes)
    together = min(episodes, max(1, most // len(seeds)))
    copies, rounds = Copies(task, len(seeds) * together), []
    for first in range(0, episodes, together):
        count = min(together, episodes - first)
        label = name if together == episodes else f"{name}, episodes {first + 1} to {first + count} of {episodes}"
        with Progress(label, task.horizon, folder=progress_folder) as progress:
            rounds.append(rollout(actor, copies, seeds, count, task.horizon, first, progress))
    for env in copies.envs:
        env.close()
    whole = {key: [getattr(each, key) for each in rounds] for key in ("returns", "length", "success", "states")}
    return Rollouts(**{key: np.concatenate(parts, 2 if key == "states" else 1) for key, parts in whole.items()})


def evaluate(run: Run, method: str) -> Rollouts | None:
    """Evaluate a method for all seeds of the run, `evaluation.episodes` episodes each, or load what is kept.

    None, said in one sentence, for a train-only task: the manifest then holds how the policy acts, without rollouts.
    """
    content = _made_with(run, method) | {"episodes": run.profile.evaluation.episodes, "seeds": list(run.seeds)}
    if run.task.env_id is None:
        _note(run, method, content)
        print(f"{method}: not evaluated, {run.task.name} is {run.task.note or 'train-only: it names no environment'}")
        return None
    return _kept_or_played(run, method, method, run.seeds, content)


def evaluate_curve(run: Run, method: str) -> Rollouts:
    """The first seed at each of `evaluation.curve_scales`, side by side as rows, or load what is kept."""
    settings, seed = run.profile.evaluation, run.seeds[0]
    own = {"guidance_scale": list(settings.curve_scales), "episodes": settings.curve_episodes, "seed": seed}
    seeds = [seed] * len(settings.curve_scales)
    return _kept_or_played(run, f"curve-{method}", method, seeds, _made_with(run, method) | own)


def guidance_of(run: Run, method: str) -> tuple[float, list[float]]:
    """Inverse temperature, and guidance scale of each seed, that a method is evaluated with; 0 where it has none."""
    settings = run.profile.evaluation
    beta, scale = settings.beta.get(method, 0.0), settings.guidance_scale.get(method, 0.0)
    if scale is None:
        return beta, [settings.scale_factor[method] * matched for matched in matched_scales(run, method, beta)]
    return beta, [scale] * len(run.seeds)


def _made_with(run: Run, method: str) -> dict[str, Any]:
    """What rollouts are made with: guidance, sampler, contents of the networks, environment."""
    settings, task, (beta, scales) = run.profile.evaluation, run.task, guidance_of(run, method)
    return {
        "beta": beta,
        "guidance_scale": scales,
        "solver_steps": settings.solver_steps,
        "t_start": settings.t_start,
        "candidates": settings.candidates if METHODS[method].best else 1,
        "noise_scale": settings.noise_scale[method],
        "form": run.profile.energy.form if METHODS[method].shift else None,
        "differentiated": run.profile.energy.differentiated and METHODS[method].shift is not None,
        "pick": settings.pick,
        "trust": settings.trust.get(method),
        "agreed": AGREED if METHODS[method].trusted else None,
        "networks": checksums(run, method, beta),
        **{key: getattr(task, key) for key in ("env_id", "env_kwargs", "observation_keys", "horizon")},
    }


def _kept_or_played(run: Run, name: str, method: str, seeds: Sequence[int], content: Mapping[str, Any]) -> Rollouts:
    """Rollouts kept under `name` with the same content, else played as it says, a row a seed, and kept."""
    digest, path = settings_table.digest(content), run.folder / "evaluation" / f"{name}.safetensors"
    label = f"evaluate {name}"
    with files.lock(run.folder, f"evaluation-{name}"):
        started, rollouts = time.time(), _stored(path, digest)
        played = rollouts is None
        if rollouts is None:
            with files.memory(label, FEWER):
                actor = load_actor(run.folder, method, seeds, Acting.of(content), run.device)
                rollouts = play(actor, run.task, seeds, content["episodes"], label, run.folder / "progress")
        if name == method:  # before the rollouts, whose file marks the end
            _note(run, method, content, **({"seconds": round(time.time() - started, 1)} if played else {}))
        if played:
            tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in vars(rollouts).items()}
            files.save_tensors(path, tensors, {"settings": content, "settings_hash": digest})
    return rollouts


def _note(run: Run, method: str, content: Mapping[str, Any], **measured: float) -> None:
    """Write a method's manifest entry, where there is none of the same content or something was measured."""
    digest = settings_table.digest(content)
    noted = runs.read_manifest(run.folder).get("evaluation", {}).get(method, {})
    if measured or noted.get("settings_hash") != digest:
        entry = {**content, **measured, "device": run.device, "settings_hash": digest}
        runs.update_manifest(run.folder, "evaluation", method, entry)


def _stored(path: Path, digest: str) -> Rollouts | None:
    """Rollouts kept under the same settings hash, else None."""
    try:
        tensors, meta = files.load_tensors(path) if path.exists() else ({}, {})
    except files.StudyError as error:
        print(f"evaluated again: {error}")
        return None
    if meta.get("settings_hash") != digest or set(tensors) != set(Rollouts.__dataclass_fields__):
        return None
    return Rollouts(**{key: value.numpy() for key, value in tensors.items()})
