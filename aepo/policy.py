"""Trained networks and the sampler as a policy: `Policy.load(folder, method).act(observations)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aepo import faults, runs, sampler
from aepo.methods import METHODS, Method
from aepo.models import VP, Behavior, Critic
from aepo.networks import TIME_FEATURES, EnergyNet, select_seeds
from aepo.observations import flatten
from aepo.runs import StudyError
from aepo.settings import BehaviorSettings, CriticSettings, EnergySettings

FARTHEST = 1e6  # standard deviations from the mean that a network is shown: beyond, its numbers overflow


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

    @torch.no_grad()
    def act(self, state: Tensor, noise: Tensor) -> Tensor:
        """Environment actions `(S, B, d)` for raw states `(S, B, n)` and initial noise `(S, B, candidates, d)`."""
        seeds, batch, count, d = noise.shape
        state = self.behavior.standardize(state).clamp(-FARTHEST, FARTHEST)
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
    path = Path(folder) / f"{stage}.safetensors"
    tensors, meta = runs.load_tensors(path)
    known = faults.known(meta, path)["seeds"]
    absent = [seed for seed in seeds if seed not in known]
    if absent:
        raise StudyError(f"{path} holds seeds {known}, not {absent}: train them first")
    faults.check_tensors(tensors, len(known), path)
    rows = [known.index(seed) for seed in seeds]
    tensors = {key: select_seeds(v, rows, len(known)).float() for key, v in tensors.items()}
    try:
        module = _networks(stage, tensors, meta["settings"], len(seeds))
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise StudyError(f"{path} does not hold the networks of {stage} ({reason[:200]}): {faults.REMEDY}") from None
    faults.fill(module, tensors, path)
    return module.to(device).requires_grad_(False)


def _networks(stage: str, tensors: dict[str, Tensor], settings: dict, count: int) -> torch.nn.Module:
    """A stage's networks of `count` seeds, of the sizes of stored tensors and settings."""
    if stage == "behavior":
        n, d = tensors["state_mean"].shape[-1], tensors["low"].shape[-1]
        return Behavior(count, n, d, _known(BehaviorSettings, settings))
    if stage == "critic":
        n = tensors["value.net.layers.0.weight"].shape[1]
        d = tensors["q.net.layers.0.weight"].shape[1] - n
        for key, value in list(tensors.items()):  # an exported policy has no target network: it is for training only
            if key.startswith("q."):
                tensors.setdefault(key.replace("q.", "q_target.", 1), value)
        return Critic(count, n, d, _known(CriticSettings, settings))
    energy = _known(EnergySettings, settings)
    n = tensors["offset.layers.0.weight"].shape[1] - TIME_FEATURES
    d = tensors["net.layers.0.weight"].shape[1] - n - TIME_FEATURES
    return EnergyNet(count, n, d, energy.width, energy.depth, VP)


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
        shape = (1, len(states), self.actor.candidates, self.action_dim)
        noise = torch.randn(shape, generator=generator, device=generator.device if generator else "cpu")
        action = self.actor.act(torch.from_numpy(states).to(self.device).unsqueeze(0), noise.to(self.device))
        action = action[0].cpu().numpy()
        return action[0] if single else action
