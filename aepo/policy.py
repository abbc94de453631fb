"""Trained networks and the sampler as a policy: `Policy.load(folder, method).act(observations)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aepo import runs, sampler
from aepo.capture import CapturedCalls
from aepo.methods import METHODS, Method
from aepo.models import VP, Behavior, Critic
from aepo.networks import TIME_FEATURES, EnergyNet, select_seeds
from aepo.observations import flatten
from aepo.runs import StudyError
from aepo.settings import BehaviorSettings, CriticSettings, EnergySettings


@dataclass
class Actor:
    """S policies side by side: behavior model, critic (best of n), energy (guidance) and how they are sampled.

    `guidance_scale`: a number, or `(S, 1, 1)` for one value a row. `candidates`: samples a state, the one of the
    highest advantage is taken.
    """

    behavior: Behavior
    critic: Critic | None
    energy: EnergyNet | None
    guidance_scale: float | Tensor
    solver_steps: int
    candidates: int

    def __post_init__(self):
        self._captured = CapturedCalls(self._act, "the sampler")

    @torch.no_grad()
    def act(self, state: Tensor, noise: Tensor) -> Tensor:
        """Environment actions `(S, B, d)` for raw states `(S, B, n)` and initial noise `(S, B, candidates, d)`."""
        return self._captured(state, noise) if state.device.type == "cuda" else self._act(state, noise)

    def _act(self, state: Tensor, noise: Tensor) -> Tensor:
        seeds, batch, count, d = noise.shape
        state = self.behavior.standardize(state)
        repeated = state.repeat_interleave(count, 1) if count > 1 else state
        action = sampler.sample(
            lambda a, t: self.behavior.noise_net(repeated, a, t),
            noise.reshape(seeds, batch * count, d),
            VP,
            steps=self.solver_steps,
            energy_gradient=None if self.energy is None else lambda a, t: self.energy.gradient(repeated, a, t),
            guidance_scale=self.guidance_scale,
            low=-1.0,
            high=1.0,
        )
        if count > 1:
            score = self.critic.advantage(state, action).view(seeds, batch, count)
            best = score.argmax(-1)[..., None, None].expand(-1, -1, 1, d)
            action = action.view(seeds, batch, count, d).gather(2, best).squeeze(2)
        return self.behavior.unscale(action)


def make_actor(
    method: Method,
    behavior: Behavior,
    critic: Critic | None,
    energy: EnergyNet | None,
    guidance_scale: float | Tensor,
    solver_steps: int,
    candidates: int,
) -> Actor:
    """The actor of a method of `METHODS`: what it does not use is left out."""
    if method.energy and energy is None:
        raise ValueError(f"method {method.name!r} needs its energy network")
    return Actor(
        behavior,
        critic if method.candidates else None,
        energy if method.energy else None,
        guidance_scale if method.energy else 0.0,
        solver_steps,
        candidates if method.candidates else 1,
    )


def load_networks(folder: Path, stage: str, seeds: Sequence[int], device: str) -> torch.nn.Module:
    """Networks of a finished stage for the given seeds; StudyError where the file or a seed is missing."""
    tensors, meta = runs.load_tensors(Path(folder) / f"{stage}.safetensors")
    absent = [seed for seed in seeds if seed not in meta["seeds"]]
    if absent:
        raise StudyError(f"{folder}/{stage}.safetensors holds seeds {meta['seeds']}, not {absent}: train them first")
    rows = [meta["seeds"].index(seed) for seed in seeds]
    tensors = {key: select_seeds(v, rows, len(meta["seeds"])).float() for key, v in tensors.items()}
    settings, count = meta["settings"], len(seeds)
    if stage == "behavior":
        module = Behavior(
            count, tensors["state_mean"].shape[-1], tensors["low"].shape[-1], _known(BehaviorSettings, settings)
        )
    elif stage == "critic":
        n = tensors["value.net.layers.0.weight"].shape[1]
        d = tensors["q.net.layers.0.weight"].shape[1] - n
        module = Critic(count, n, d, _known(CriticSettings, settings))
        for key, value in list(tensors.items()):  # an exported policy has no target network: it is for training only
            if key.startswith("q."):
                tensors.setdefault(key.replace("q.", "q_target.", 1), value)
    else:
        energy = _known(EnergySettings, settings)
        n = tensors["offset.layers.0.weight"].shape[1] - TIME_FEATURES
        d = tensors["net.layers.0.weight"].shape[1] - n - TIME_FEATURES
        module = EnergyNet(count, n, d, energy.width, energy.depth, VP)
    module.load_state_dict(tensors)
    return module.to(device).requires_grad_(False)


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
        entry = METHODS[method]
        beta = evaluated["beta"] if beta is None else beta
        guidance_scale = evaluated["guidance_scale"] if guidance_scale is None else guidance_scale
        behavior = load_networks(folder, "behavior", [seed], device)
        actor = make_actor(
            entry,
            behavior,
            load_networks(folder, "critic", [seed], device) if entry.candidates else None,
            load_networks(folder, runs.energy_stage(method, beta), [seed], device) if entry.energy else None,
            guidance_scale,
            evaluated["solver_steps"],
            evaluated["candidates"],
        )
        keys = evaluated.get("observation_keys", ())
        return cls(actor, behavior.state_mean.shape[-1], behavior.low.shape[-1], device, keys)

    def act(
        self, observations: np.ndarray | Mapping[str, np.ndarray], generator: torch.Generator | None = None
    ) -> np.ndarray:
        """Actions `(N, d)` inside the action box for observations `(N, n)`; one state `(n,)` gives `(d,)`.

        A dict observation, one or a batch, is flattened in the order of `observation_keys` that training used.
        ValueError for another shape, for values that are not finite, or for a dict that lacks a part.
        """
        states = flatten(observations, self.observation_keys).astype(np.float32)
        single = states.ndim == 1
        states = np.atleast_2d(states)
        if states.ndim != 2 or states.shape[1] != self.state_dim:
            shape, n = states.shape[1:] if single else states.shape, self.state_dim
            raise ValueError(f"observations have shape {shape}, expected (N, {n}) or ({n},)")
        if not np.isfinite(states).all():
            raise ValueError("observations hold NaN or infinity")
        shape = (1, len(states), self.actor.candidates, self.action_dim)
        noise = torch.randn(shape, generator=generator, device=generator.device if generator else "cpu")
        action = self.actor.act(torch.from_numpy(states).to(self.device).unsqueeze(0), noise.to(self.device))
        action = action[0].cpu().numpy()
        return action[0] if single else action
