"""Trained networks and the sampler as a policy: `Policy.load(folder, method).act(observations)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aepo import files
from aepo.core.models import VP, ActionModel, Behavior, ClosedForm, Critic, Energy, Trained
from aepo.core.networks import TIME_FEATURES, EnergyNet, select_seeds
from aepo.environments import flatten
from aepo.files import StudyError
from aepo.learners.capture import CapturedCalls
from aepo.methods import METHODS, Method
from aepo.settings import BehaviorSettings, CriticSettings, EnergySettings, PolicySettings
from aepo.study import runs

FARTHEST = 1e6  # standard deviations from the mean that a network is shown: beyond, its numbers overflow


@dataclass
class Actor:
    """S policies side by side: what makes actions, what guides it, and how one of several samples is taken.

    `guidance_scale`: a number, or `(S, 1, 1)` for one value a row. `noise_scale`: factor on the initial noise.
    `candidates`: samples a state, one of which is taken by the critic's advantage: the best, or where `temperature` is
    above 0 one drawn by softmax(advantage / temperature).
    """

    behavior: ActionModel
    critic: Critic | Trained | None
    energy: Energy | None
    guidance_scale: float | Tensor
    solver_steps: int
    candidates: int
    temperature: float = 0.0
    noise_scale: float = 1.0

    @property
    def draws(self) -> int:
        """Rows of initial noise a state: one a candidate, and one more where the pick is drawn."""
        return self.candidates + (self.candidates > 1 and self.temperature > 0)

    def __post_init__(self):
        self._captured = CapturedCalls(self._act, "the sampler")

    @torch.no_grad()
    def act(self, state: Tensor, noise: Tensor) -> Tensor:
        """Environment actions `(S, B, d)` for raw states `(S, B, n)` and initial noise `(S, B, draws, d)`."""
        return self._captured(state, noise) if state.device.type == "cuda" else self._act(state, noise)

    def _act(self, state: Tensor, noise: Tensor) -> Tensor:
        return self.behavior.unscale(self.propose(self.behavior.standardize(state).clamp(-FARTHEST, FARTHEST), noise))

    @torch.no_grad()
    def propose(self, state: Tensor, noise: Tensor) -> Tensor:
        """As `act`, for standardised states, in [-1, 1]."""
        seeds, batch, _, d = noise.shape
        count = self.candidates
        repeated = state.repeat_interleave(count, 1) if count > 1 else state
        start = self.noise_scale * noise[:, :, :count].reshape(seeds, batch * count, d)
        action = self.behavior.sample(repeated, start, self.solver_steps, self.energy, self.guidance_scale)
        if count == 1:
            return action
        score = self.critic.advantage(state, action).view(seeds, batch, count)
        taken = score.argmax(-1) if self.draws == count else _drawn(score / self.temperature, noise[:, :, count, 0])
        taken = taken[..., None, None].expand(-1, -1, 1, d)
        return action.view(seeds, batch, count, d).gather(2, taken).squeeze(2)


def _drawn(logits: Tensor, normal: Tensor) -> Tensor:
    """Indices `(S, B)` drawn by softmax(logits) `(S, B, K)` from one standard normal number each `(S, B)`."""
    chance = torch.softmax(logits, -1).cumsum(-1)[..., :-1]
    return (torch.special.ndtr(normal).unsqueeze(-1) > chance).sum(-1)


def make_actor(
    method: Method,
    behavior: ActionModel,
    critic: Critic | Trained | None,
    energy: Energy | None,
    beta: float,
    guidance_scale: float | Tensor,
    solver_steps: int,
    candidates: int,
    noise_scale: float = 1.0,
) -> Actor:
    """The actor of a method of `METHODS`: what it does not use is left out. `behavior`: its own policy where it has one."""
    if method.energy and energy is None:
        raise ValueError(f"method {method.name!r} needs its energy network")
    if method.closed:
        energy = ClosedForm(method.closed, behavior, critic, beta)
    return Actor(
        behavior,
        critic if method.pick else None,
        energy if method.guided else None,
        guidance_scale if method.guided else 0.0,
        solver_steps,
        candidates if method.pick else 1,
        1 / beta if method.pick == "softmax" else 0.0,
        noise_scale,
    )


def load_networks(folder: Path, stage: str, seeds: Sequence[int], device: str) -> torch.nn.Module:
    """Networks of a finished stage for the given seeds; StudyError where the file or a seed is missing."""
    path = Path(folder) / f"{stage}.safetensors"
    tensors, meta = files.load_tensors(path)
    known = files.known(meta, path)["seeds"]
    absent = [seed for seed in seeds if seed not in known]
    if absent:
        raise StudyError(f"{path} holds seeds {known}, not {absent}: train them first")
    files.check_tensors(tensors, len(known), path)
    rows = [known.index(seed) for seed in seeds]
    tensors = {key: select_seeds(v, rows, len(known)).float() for key, v in tensors.items()}
    try:
        module = _networks(stage, tensors, meta["settings"], len(seeds))
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise StudyError(f"{path} does not hold the networks of {stage} ({reason[:200]}): {files.REMEDY}") from None
    files.fill(module, tensors, path)
    return module.to(device).requires_grad_(False)


def _networks(stage: str, tensors: dict[str, Tensor], settings: dict, count: int) -> torch.nn.Module:
    """A stage's networks of `count` seeds, of the sizes of stored tensors and settings."""
    if stage == "behavior":
        n, d = tensors["state_mean"].shape[-1], tensors["low"].shape[-1]
        return Behavior(count, n, d, _known(BehaviorSettings, settings))
    for key, value in list(tensors.items()):  # an exported policy has no target network: it is for training only
        if key.startswith("q."):
            tensors.setdefault(key.replace("q.", "q_target.", 1), value)
    if stage.startswith("critic"):
        n = tensors["value.net.layers.0.weight"].shape[1]
        d = tensors["q.net.layers.0.weight"].shape[1] - n
        return Critic(count, n, d, _known(CriticSettings, settings))
    if stage.startswith("policy-"):
        n, d = tensors["average.state_mean"].shape[-1], tensors["average.low"].shape[-1]
        own = (_known(PolicySettings, settings), _known(CriticSettings, settings["critic_settings"]))
        return Trained(settings["kind"], count, n, d, *own)
    energy = _known(EnergySettings, settings)
    n = tensors["offset.layers.0.weight"].shape[1] - TIME_FEATURES
    d = tensors["net.layers.0.weight"].shape[1] - n - TIME_FEATURES
    return EnergyNet(count, n, d, energy.width, energy.depth, VP, settings.get("gate", True))


def load_actor(
    folder: Path,
    method: str,
    seeds: Sequence[int],
    beta: float,
    guidance_scale: float | Sequence[float],
    solver_steps: int,
    candidates: int,
    device: str,
    noise_scale: float = 1.0,
    snapshot: int | None = None,
) -> Actor:
    """The actor of a method from the finished stages of a run folder; guidance_scale: a number, or one a seed.

    `snapshot`: that of its energy network, counted from the earliest; None: the last network.
    """
    stages = runs.stages_of(method, beta)
    loaded = {stage: load_networks(folder, stage, seeds, device) for stage in set(stages.values())}
    parts = {part: loaded[stage] for part, stage in stages.items()}
    behavior = parts["behavior"]
    if isinstance(guidance_scale, Sequence):
        guidance_scale = torch.tensor(guidance_scale, device=device).view(-1, 1, 1)
    return make_actor(
        METHODS[method],
        behavior.average if isinstance(behavior, Trained) else behavior,
        parts.get("critic"),
        parts.get("energy") if snapshot is None else parts["energy"].snapshots[snapshot],
        beta,
        guidance_scale,
        solver_steps,
        candidates,
        noise_scale,
    )


def _known(kind: type, settings: dict) -> object:
    """A settings dataclass from stored settings, without what the stage added to them."""
    return kind(**{key: value for key, value in settings.items() if key in kind.__dataclass_fields__})


class Policy:
    """One trained policy of one seed, loaded from a run folder."""

    def __init__(
        self, actor: Actor, state_dim: int, action_dim: int, device: str, observation_keys: Sequence[str] = ()
    ):
        self.actor, self.state_dim, self.action_dim, self.device = actor, state_dim, action_dim, device
        self.observation_keys = tuple(observation_keys)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        method: str = "aepo",
        seed: int = 0,
        beta: float | None = None,
        guidance_scale: float | None = None,
        device: str | None = None,
    ) -> Policy:
        """Load a method's policy from runs/<profile>/<task>; beta and guidance_scale are those evaluated where None."""
        if method not in METHODS:
            raise StudyError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
        folder = runs.find_folder(folder)
        device = runs.choose_device(device or "auto")
        evaluated = runs.read_manifest(folder).get("evaluation", {}).get(method, {})
        if not evaluated:
            raise StudyError(
                f"{folder}/manifest.json has no evaluation of {method!r}: run notebook 07_evaluation first"
            )
        beta = evaluated["beta"] if beta is None else beta
        if guidance_scale is None:
            guidance_scale = evaluated["guidance_scale"]
            if isinstance(guidance_scale, list):  # one a seed; a seed that is not there is refused with its networks
                guidance_scale = dict(zip(evaluated["seeds"], guidance_scale, strict=True)).get(seed, 1.0)
        sampling = (evaluated["solver_steps"], evaluated["candidates"])
        noise_scale = evaluated.get("noise_scale", 1.0)
        actor = load_actor(folder, method, [seed], beta, guidance_scale, *sampling, device, noise_scale)
        behavior = actor.behavior
        keys = evaluated.get("observation_keys", ())
        return cls(actor, behavior.state_mean.shape[-1], behavior.low.shape[-1], device, keys)

    def act(
        self, observations: np.ndarray | Mapping[str, np.ndarray], generator: torch.Generator | None = None
    ) -> np.ndarray:
        """Actions `(N, d)` inside the action box for observations `(N, n)`; one state `(n,)` gives `(d,)`.

        A dict observation, one or a batch, is flattened in the order of `observation_keys` that training used.
        States farther than 1e6 standard deviations from the data's mean are taken to lie at that distance. ValueError
        for another shape, for values that are not real numbers or not finite in float32, or for a dict that lacks a part.
        """
        states = flatten(observations, self.observation_keys)
        if states.dtype.kind not in "fiub":
            raise ValueError(f"observations have type {states.dtype}, expected real numbers")
        with np.errstate(over="ignore"):
            states = states.astype(np.float32)
        single = states.ndim == 1
        states = np.atleast_2d(states)
        if states.ndim != 2 or states.shape[1] != self.state_dim:
            shape, n = states.shape[1:] if single else states.shape, self.state_dim
            raise ValueError(f"observations have shape {shape}, expected (N, {n}) or ({n},)")
        if not np.isfinite(states).all():
            raise ValueError("observations hold NaN or infinity")
        if not len(states):
            return np.zeros((0, self.action_dim), np.float32)
        shape = (1, len(states), self.actor.draws, self.action_dim)
        noise = torch.randn(shape, generator=generator, device=generator.device if generator else "cpu")
        action = self.actor.act(torch.from_numpy(states).to(self.device).unsqueeze(0), noise.to(self.device))
        action = action[0].cpu().numpy()
        return action[0] if single else action
