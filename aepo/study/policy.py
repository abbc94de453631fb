"""Trained networks and the sampler as a policy: `Policy.load(folder, method).act(observations)`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from aepo import files
from aepo.core.models import VP, Behavior, Critic
from aepo.core.networks import TIME_FEATURES, EnergyNet, ShiftNet, select_seeds
from aepo.environments import flatten
from aepo.files import StudyError
from aepo.learners.actor import Acting, Actor, make_actor
from aepo.learners.policies import Trained
from aepo.methods import METHODS
from aepo.study import runs

LARGEST = 1e6  # of a guidance scale: networks overflow far beyond


def load_networks(folder: Path, stage: str, seeds: Sequence[int], device: str) -> Any:
    """Networks of a finished stage for the given seeds; StudyError where the file or a seed is missing."""
    path = Path(folder) / f"{stage}.safetensors"
    tensors, meta = files.load_networks(path)
    known = meta["seeds"]
    absent = [seed for seed in seeds if seed not in known]
    if absent:
        raise StudyError(f"{path} holds seeds {known}, not {absent}: train them first")
    rows = [known.index(seed) for seed in seeds]
    tensors = {key: select_seeds(v, rows, len(known)).float() for key, v in tensors.items()}
    try:
        module = _networks(stage, tensors, meta["settings"], len(seeds))
        module.load_state_dict(tensors)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        problem = f"does not hold the networks of {stage} ({' '.join(str(error).split())[:300]})"
        raise StudyError(f"{path} {problem}: {files.REMEDY}") from None
    return module.to(device).requires_grad_(False)


def _networks(stage: str, tensors: dict[str, Tensor], settings: dict, count: int) -> torch.nn.Module:
    """A stage's networks of `count` seeds, of the sizes of stored tensors and settings."""
    for key, value in list(tensors.items()):  # an exported policy lacks what is for training only
        if key.startswith("q."):
            tensors.setdefault(key.replace("q.", "q_target.", 1), value)
        if key.startswith("average.") and key != "average.agreement":
            tensors.setdefault(key.replace("average.", "policy.", 1), value)
    own, size = "average." if stage.startswith("policy-") else "", (settings["width"], settings["depth"])
    if own or stage == "behavior":
        n, d = (tensors[own + name].shape[-1] for name in ("state_mean", "low"))
        if own:
            its_critic = settings["critic_settings"]
            times = tensors["average.variance"].shape[-1] if "average.variance" in tensors else 1
            its_size = its_critic["width"], its_critic["depth"]
            return Trained(settings["kind"], count, (n, d, *size), (n, d, *its_size), times)
        return Behavior(count, n, d, *size, tensors["variance"].shape[-1])
    if stage == "critic":
        n = tensors["value.net.layers.0.weight"].shape[1]
        return Critic(count, n, tensors["q.net.layers.0.weight"].shape[1] - n, *size)
    if settings["energy"].startswith("shift-"):
        d = tensors["net.net.out.weight"].shape[-1]
        n = tensors["net.net.layers.0.weight"].shape[1] - d - TIME_FEATURES
        return ShiftNet(count, n, d, *size, tensors["variance"].shape[-1], settings["power"])
    n = tensors["offset.layers.0.weight"].shape[1] - TIME_FEATURES
    d = tensors["net.layers.0.weight"].shape[1] - n - TIME_FEATURES
    times = tensors["variance"].shape[-1] if settings["gate"] == "jacobian" else 1
    return EnergyNet(count, n, d, *size, VP, settings["gate"], times)


def load_actor(folder: Path, method: str, seeds: Sequence[int], how: Acting, device: str) -> Actor:
    """The actor of a method from the finished stages of a run folder."""
    stages = runs.stages_of(method, how.beta)
    loaded = {stage: load_networks(folder, stage, seeds, device) for stage in set(stages.values())}
    parts = {part: loaded[stage] for part, stage in stages.items()}
    behavior = getattr(parts["behavior"], "average", parts["behavior"])  # of a method's own policy
    return make_actor(METHODS[method], behavior, parts.get("critic"), parts.get("energy"), how)


class Policy:
    """One trained policy of one seed, loaded from a run folder."""

    def __init__(self, actor: Actor, observation_keys: Sequence[str] = ()):
        self.actor, self.observation_keys = actor, tuple(observation_keys)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        method: str | None = None,
        seed: int = 0,
        beta: float | None = None,
        guidance_scale: float | None = None,
        device: str | None = None,
    ) -> Self:
        """Load a method's policy from runs/<profile>/<task>; beta and guidance_scale are those evaluated where None.

        method: None is the only one that the folder has, or aepo where it has several.
        """
        if method is not None and method not in METHODS:
            raise StudyError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
        for name, value in {"beta": beta, "guidance_scale": guidance_scale}.items():
            if value is not None and not (isinstance(value, Real) and abs(value) <= LARGEST):
                raise ValueError(f"{name} must be a finite number, at most {LARGEST:g} in size, got {value!r:.80}")
        folder = runs.find_folder(folder)
        device = runs.choose_device(device or "auto")
        known = runs.read_manifest(folder).get("evaluation", {})
        method = method or (next(iter(known)) if len(known) == 1 else "aepo")
        evaluated = known.get(method, {})
        if not evaluated:
            where = f"{folder}/manifest.json"
            raise StudyError(f"{where} has no evaluation of {method!r}: run notebook 07_evaluation first")
        how = Acting.of(evaluated)
        scale = how.guidance_scale if guidance_scale is None else guidance_scale
        if isinstance(scale, list):  # one a seed; a seed that is not there is refused with its networks
            scale = dict(zip(evaluated["seeds"], scale, strict=True)).get(seed, 1.0)
        how = replace(how, beta=how.beta if beta is None else float(beta), guidance_scale=scale)
        return cls(load_actor(folder, method, [seed], how, device), evaluated.get("observation_keys", ()))

    def act(
        self, observations: np.ndarray | Mapping[str, np.ndarray], generator: torch.Generator | None = None
    ) -> np.ndarray:
        """Actions `(N, d)` inside the action box for observations `(N, n)`; one state `(n,)` gives `(d,)`.

        A dict observation is flattened in the order of `observation_keys` that training used. States farther than 1e6
        standard deviations from the data's mean are taken to lie there. ValueError where they cannot be used.
        """
        states = flatten(observations, self.observation_keys)
        if states.dtype.kind not in "fiub":
            raise ValueError(f"observations have type {states.dtype}, expected real numbers")
        with np.errstate(over="ignore"):
            states = states.astype(np.float32)
        behavior, single = self.actor.behavior, states.ndim == 1
        n, d, device = behavior.state_mean.shape[-1], behavior.low.shape[-1], behavior.low.device
        if states.ndim not in (1, 2) or states.shape[-1] != n:
            raise ValueError(f"observations have shape {states.shape}, expected (N, {n}) or ({n},)")
        if not np.isfinite(states).all():
            raise ValueError("observations hold NaN or infinity")
        states = np.atleast_2d(states)
        if not len(states):
            return np.zeros((0, d), np.float32)
        if not isinstance(generator, torch.Generator | None):
            raise ValueError(f"generator must be a torch.Generator, as torch.Generator() makes, got {generator!r}")
        shape = (1, len(states), self.actor.draws, d)
        noise = torch.randn(shape, generator=generator, device=generator.device if generator else "cpu")
        action = self.actor.act(torch.from_numpy(states).to(device).unsqueeze(0), noise.to(device))[0].cpu().numpy()
        return action[0] if single else action
