"""Settings of every stage: one frozen dataclass each, profiles of them, per task only where it must be."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from aepo.methods import METHODS

GUIDED = tuple(name for name, method in METHODS.items() if method.guided)
TEMPERED = tuple(name for name, method in METHODS.items() if method.tempered)
TRUST = {name: 20.0 for name, method in METHODS.items() if method.trusted}
WEIGHTED = tuple(name for name, method in METHODS.items() if method.policy == "resampled")
LOW_NOISE = {"bc-low-noise", *(name for name in GUIDED if not METHODS[name].best)}
NOISE_SCALES = {m: 0.0 if m in WEIGHTED else 0.25 if m in LOW_NOISE else 1.0 for m in METHODS}
BETAS = dict.fromkeys(("iql", *WEIGHTED), 1.5)
GUIDANCE_SCALES = {name: None if METHODS[name].scaled else 1.0 for name in GUIDED}


@dataclass(frozen=True)
class DataSettings:
    """How local data are made: environment steps and the seed of the walk."""

    steps: int = 200_000
    seed: int = 0


@dataclass(frozen=True)
class Training:
    """Of every stage that trains a network: its size and its steps."""

    width: int = 128
    depth: int = 3
    steps: int = 12_000
    batch: int = 256
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class BehaviorSettings(Training):
    """Diffusion behavior model. `error`: its loss is the squared error of the "velocity", the "noise" or the "clean" action.
    `ema_rate`: weight of the newest parameters in the averaged ones, per step."""

    error: str = "velocity"
    ema_rate: float = 0.005
    variance_times: int = 65
    variance_samples: int = 4_096


@dataclass(frozen=True)
class CriticSettings(Training):
    """The shared critic, of `kind` "expectile" (IQL) or "softmax" (QGPO's, in-support).

    `discount` None: by the rule of `learners.discount`, which sees no score. `target_rate` moves the target; `return_floor`:
    no target below the return that followed. `reward_scale` makes Q about 1; None: (1 - discount) / mean |r|. The softmax
    critic: `support` behavior samples a next state in `support_steps` solver steps, `temperature` in units of their spread.
    `hindsight`: share of a batch with hindsight goals, reached within `goal_radius` (see `hindsight.Hindsight`).
    """

    kind: str = "expectile"
    depth: int = 2
    steps: int = 10_000
    discount: float | None = None
    expectile: float = 0.8
    target_rate: float = 0.02
    reward_scale: float | None = None
    return_floor: bool = True
    support: int = 8
    support_steps: int = 5
    temperature: float = 1.0
    hindsight: float = 0.0
    goal_radius: float = 0.45


@dataclass(frozen=True)
class EnergySettings(Training):
    """Energy network. `target_batches`: batches whose statistics standardise the regression target.

    `support`: behavior samples a state (in `support_steps` solver steps) for `support_states` states; `groups`: states in
    a batch of the contrastive loss. Switches, for ablations; None: the method's own. `form`: what is learned, or of a method
    without a network the closed form; `differentiated`: the gradient of its energy in place of the shift. `gate`: false,
    true for alpha_t, or "jacobian"; `bregman` loss. `clamp`: closed forms stay within beta times the range of recorded
    advantages. `beyond`: closed forms are learned beyond the data too, at states moved by `jitter` standard deviations and
    actions anywhere in the box; the methods' own: shift networks are, energies are not.
    """

    steps: int = 4_000
    target_batches: int = 32
    support: int = 16
    support_states: int = 16_384
    support_steps: int = 10
    groups: int = 64
    form: str | None = None
    gate: bool | str | None = None
    bregman: bool | None = None
    clamp: bool = True
    differentiated: bool = False
    beyond: bool | None = None
    jitter: float = 0.5


@dataclass(frozen=True)
class PolicySettings(Training):
    """Policies that are networks of their own: qipo, iql, td3bc, diffusion-ql; weighted cloning, in its behavior's steps.

    `critic_steps`: steps of those that train a critic beside the policy. `rounds`: how often qipo draws support actions
    anew; a flow, which starts from nothing, takes a behavior's steps more in the first. `weight_cap`: greatest weight of
    iql and of resampled pairs, of which `uniform_share` are drawn alike. `alpha`: weight of Q in td3bc, `eta` in
    diffusion-ql, whose policy acts in `chain` solver steps. `target_noise`, `noise_clip`: td3bc's smoothed target policy.
    """

    critic_steps: int = 5_000
    ema_rate: float = 0.005
    rounds: int = 2
    weight_cap: float = 100.0
    uniform_share: float = 0.5
    alpha: float = 2.5
    eta: float = 1.0
    chain: int = 5
    target_noise: float = 0.2
    noise_clip: float = 0.5


@dataclass(frozen=True)
class EvaluationSettings:
    """Rollouts: episodes a seed, solver steps, candidates of best-of-n; beta and guidance scale by method.

    A scale that is None is chosen by a rule, for each seed, times `scale_factor`. `trust`: the beta of a shift that is
    followed where the twins agree. `noise_scale`: factor on the initial noise by method, 0 for one action a state.
    `pick`: those with candidates take the "best" by Q, or one drawn by "softmax" of beta Q. `t_start`: the time that the
    diffusion starts from. `curve_scales`: where `curve_episodes` of the first seed show the return over the scale.
    """

    episodes: int = 20
    solver_steps: int = 10
    t_start: float = 1.0
    candidates: int = 16
    pick: str = "best"
    noise_scale: Mapping[str, float] = field(default_factory=NOISE_SCALES.copy)
    beta: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(TEMPERED, 3.0) | BETAS)
    trust: Mapping[str, float] = field(default_factory=TRUST.copy)
    guidance_scale: Mapping[str, float | None] = field(default_factory=GUIDANCE_SCALES.copy)
    scale_factor: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(GUIDED, 1.0))
    curve_scales: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
    curve_episodes: int = 10


@dataclass(frozen=True)
class Profile:
    """Everything a run is made with; `chunk`: training steps between two looks at the loss (and checkpoints)."""

    data: DataSettings = DataSettings()
    behavior: BehaviorSettings = BehaviorSettings()
    critic: CriticSettings = CriticSettings()
    energy: EnergySettings = EnergySettings()
    policy: PolicySettings = PolicySettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    chunk: int = 250
    seeds: int = 3


def changed(settings: Any, differing: Mapping[str, Any]) -> Any:
    """A settings dataclass, or a profile of them, with other values; values by stage and by method are merged."""
    new = dict(differing)
    for key, value in differing.items():
        if isinstance(value, Mapping):
            old = getattr(settings, key)
            new[key] = {**old, **value} if isinstance(old, Mapping) else changed(old, value)
        elif isinstance(value, list):
            new[key] = tuple(value)
    return replace(settings, **new)


QUICK = Profile()
OTHERS = yaml.safe_load(Path(__file__).with_name("profiles.yaml").read_text())
SMOKE, STUDY, FULL = (changed(QUICK, OTHERS[name]) for name in ("smoke", "study", "full"))
PROFILES = {"smoke": SMOKE, "quick": QUICK, "study": STUDY, "full": FULL}


def get(profile: str) -> Profile:
    """The profile of that name, or a ValueError that lists those there are."""
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}: choose one of {', '.join(PROFILES)}")
    return PROFILES[profile]


def for_task(profile: str, differing: Mapping[str, Mapping[str, Any]]) -> Profile:
    """The profile with a task's own settings, by stage: {"critic": {"discount": 0.99}}."""
    return changed(get(profile), differing)


def as_dict(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain JSON data."""
    return json.loads(json.dumps(asdict(settings)))


def digest(content: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of JSON data with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
