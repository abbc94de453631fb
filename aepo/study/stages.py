"""The trained stages: behavior, critic, energy. Each loads its artefact where it fits, else trains what is missing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

from aepo import files
from aepo import settings as settings_table
from aepo.core.models import ActionModel, Behavior, Critic, take_seeds
from aepo.core.networks import EnergyNet, ShiftNet, join_seeds
from aepo.data.datasets import Dataset
from aepo.files import StudyError
from aepo.learners.behavior import behavior_learner, finish_behavior
from aepo.learners.checkpoints import clear_checkpoints
from aepo.learners.critics import critic_learner, finish_critic, softmax_critic_learner
from aepo.learners.energies import SUPPORTED, applied, energy_learner
from aepo.learners.energies import Problem as Guidance
from aepo.learners.policies import RENEWED, WITH_CRITIC, Trained, policy_learner
from aepo.learners.policies import Problem as Policies
from aepo.learners.support import Support, sample_support
from aepo.learners.training import THREADS, Learner, fit, threads
from aepo.methods import METHODS
from aepo.settings import BehaviorSettings, CriticSettings, EnergySettings, PolicySettings
from aepo.study import runs
from aepo.study.policy import load_networks
from aepo.study.runs import Run

REMEDY = "make batch or width smaller, take fewer seeds, or more memory; a training goes on from its last checkpoint"
TRUSTED_SHARE = 0.1
SUPPORT = ("support", "support_states", "support_steps")  # settings that support actions depend on


@dataclass(frozen=True)
class Stage:
    """A stage of a run: its name, what its artefact is made with, its steps of training and their learning rate."""

    name: str
    content: dict[str, Any]
    steps: int = 0
    rate: float = 0.0


Build = Callable[[tuple[int, ...]], tuple[Learner | None, nn.Module]]


@threads(THREADS)
def _stage(
    run: Run, stage: Stage, build: Build, finish: Callable[[nn.Module, tuple[int, ...]], None] | None = None
) -> None:
    """Leave the artefact as it is where its settings hash fits, else train the seeds that it lacks, and write it."""
    name, path = stage.name, run.artifact(stage.name)
    meta = {
        "stage": name,
        "settings": stage.content,
        "settings_hash": settings_table.digest(stage.content),
        "versions": files.versions(),
        "threads": THREADS,
    }
    entry = {**meta, "device": run.device, "steps": stage.steps}
    with files.lock(run.folder, name), files.memory(name, REMEDY):
        tensors, seeds = _stored(path, stage, meta["settings_hash"])
        missing = tuple(seed for seed in run.seeds if seed not in seeds)
        if missing:
            started = time.time()
            learner, module = build(missing)
            if learner:
                where = run.checkpoints(), meta, run.folder / "progress"
                log = fit(learner, stage.steps, stage.rate, run.profile.chunk, *where)
            if finish:
                finish(module, missing)
            trained = {key: value.cpu() for key, value in module.state_dict().items()}
            if seeds:
                counts = len(seeds), len(missing)
                trained = {key: join_seeds(tensors[key], value, *counts) for key, value in trained.items()}
            if learner:
                before = [frame[frame["seed"].isin(seeds)] for frame in [runs.read_metrics(run, name)]] if seeds else []
                with files.atomic_path(run.metrics(name)) as temporary:
                    pd.concat([*before, log], ignore_index=True).to_parquet(temporary)
            seeds += missing
            took = {"seeds": list(seeds), "seconds": round(time.time() - started, 1)}
            runs.update_manifest(run.folder, "stages", name, entry | took)
            files.write_artifact(path, trained, {**meta, "seeds": list(seeds)})  # last: what is there is complete
        elif name not in runs.read_manifest(run.folder).get("stages", {}):
            runs.update_manifest(run.folder, "stages", name, entry | {"seeds": list(seeds)})
        clear_checkpoints(run.checkpoints(), name)


def _stored(path: Path, stage: Stage, digest: str) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """Tensors and seeds of an artefact; none where there is none. One of other settings is put aside."""
    if not path.exists():
        return {}, ()
    tensors, stored = files.load_networks(path)
    if stored.get("settings_hash") == digest:
        return tensors, tuple(stored["seeds"])
    aside = path.with_name(f"{path.stem}.{stored.get('settings_hash')}.old")
    print(
        f"{stage.name}: settings have changed ({_changes(stored.get('settings'), stage.content)}), so it is trained again; "
        f"the old artefact is kept as {aside.name}"
    )
    path.replace(aside)
    return {}, ()


def _settings_hash(run: Run, stage: str) -> str:
    return files.load_tensors(run.artifact(stage))[1]["settings_hash"]


def _changes(before: Any, now: dict[str, Any]) -> str:
    """Which settings differ, with their values, the first few of them."""
    before = before if isinstance(before, dict) else {}
    keys = [key for key in {**now, **before} if before.get(key) != now.get(key)]
    shown = [f"{key} {before.get(key)} -> {now.get(key)}" for key in keys[:3]]
    return ", ".join(shown + [f"{len(keys) - 3} more"] * (len(keys) > 3))


def _content(settings: Any, run: Run, data: Dataset, **more: Any) -> dict[str, Any]:
    made_of = {"chunk": run.profile.chunk, "data": data.content_hash, "format": files.FORMAT}
    return {**settings_table.as_dict(settings), **made_of, **more}


def train_behavior(run: Run, data: Dataset, settings: BehaviorSettings | None = None) -> Behavior:
    """The behavior stage of a run for all its seeds: trained where it is missing, else loaded."""
    settings, data = settings or run.profile.behavior, data.to(run.device)
    stage = Stage("behavior", _content(settings, run, data), settings.steps, settings.learning_rate)
    finish = lambda module, seeds: finish_behavior(module, data, seeds, settings)  # noqa: E731
    _stage(run, stage, lambda seeds: behavior_learner(data, seeds, settings), finish)
    return load_networks(run.folder, "behavior", run.seeds, run.device)


def train_critic(
    run: Run, data: Dataset, settings: CriticSettings | None = None, behavior: Behavior | None = None
) -> Critic:
    """The critic stage of a run for all its seeds: trained where it is missing, else loaded.

    The kind "softmax", QGPO's own, needs the behavior model.
    """
    settings, data = settings or run.profile.critic, data.to(run.device)
    content = _content(settings, run, data)
    if settings.kind == "softmax":
        content["behavior"] = _settings_hash(run, "behavior")

    def build(seeds: tuple[int, ...]) -> tuple[Learner, Critic]:
        if settings.kind == "softmax":
            return softmax_critic_learner(data, _of_seeds(run, seeds, behavior), seeds, settings)
        return critic_learner(data, seeds, settings)

    stage = Stage("critic", content, settings.steps, settings.learning_rate)
    _stage(run, stage, build, lambda module, seeds: finish_critic(module, data))
    return load_networks(run.folder, "critic", run.seeds, run.device)


def train_support(
    run: Run,
    data: Dataset,
    behavior: ActionModel,
    settings: EnergySettings,
    name: str = "support",
    source: str = "behavior",
) -> Support:
    """The support actions of a run for all its seeds, shared by the methods that need them: drawn or loaded.

    `source`: the stage of the model that draws them, the behavior model or a policy.
    """
    data, path = data.to(run.device), run.artifact(name)
    content = {key: getattr(settings, key) for key in SUPPORT} | {"data": data.content_hash}
    content[source] = _settings_hash(run, source)

    def draw(seeds: tuple[int, ...]) -> tuple[None, nn.Module]:
        drawn = sample_support(_of_seeds(run, seeds, behavior), data, seeds, settings)
        module = nn.Module()
        module.register_buffer("index", drawn.index)
        module.register_buffer("action", drawn.action)
        return None, module

    _stage(run, Stage(name, content), draw)
    tensors, meta = files.load_tensors(path)
    if set(tensors) != {"index", "action"}:
        raise StudyError(f"{path} lacks index or action: {files.REMEDY}")
    rows = [meta["seeds"].index(seed) for seed in run.seeds]
    return Support(*(tensors[key][rows].to(run.device) for key in ("index", "action")))


def train_policy(
    run: Run,
    data: Dataset,
    behavior: Behavior,
    critic: Critic,
    method: str,
    beta: float | None = None,
    settings: PolicySettings | None = None,
) -> Trained:
    """A method's own policy at inverse temperature beta (as evaluated where None): trained, round by round, or loaded."""
    entry, settings = METHODS[method], settings or run.profile.policy
    if entry.policy is None:
        known = ", ".join(m for m in METHODS if METHODS[m].policy)
        raise StudyError(f"method {method!r} has no policy of its own: only {known}")
    beta = run.profile.evaluation.beta[method] if beta is None and entry.tempered else beta or 0.0
    rounds = settings.rounds if entry.policy in RENEWED else 1
    data, final = data.to(run.device), runs.policy_stage(method, beta)
    problem = Policies(entry.policy, data, beta / rounds, settings, run.profile.critic, critic)
    model, source = behavior, "behavior"
    for index in range(rounds):
        name = final if index == rounds - 1 else f"{final}-round{index + 1}"
        if entry.policy in RENEWED:
            of = "support" if index == 0 else f"support-{final}-round{index + 1}"
            support = train_support(run, data, model, run.profile.energy, of, source)
            goes_on = entry.policy == "weighted" or index > 0
            problem = replace(problem, support=support, start=model if goes_on else None)
        trained = _train_policy(run, problem, name, source, settings.steps // rounds)
        model, source = trained.average, name
    return trained


def _train_policy(run: Run, problem: Policies, name: str, source: str, steps: int) -> Trained:
    settings, kind = problem.settings, problem.kind
    content = _content(settings, run, problem.data, kind=kind, beta=problem.beta)
    content["critic_settings"] = settings_table.as_dict(problem.critic_settings)
    if kind in WITH_CRITIC:
        steps = settings.critic_steps
    else:
        content["critic"] = _settings_hash(run, "critic")
    if problem.support:
        content |= {key: getattr(run.profile.energy, key) for key in SUPPORT}
        content |= {source: _settings_hash(run, source), "start": problem.start is not None and source}

    def build(seeds: tuple[int, ...]) -> tuple[Learner, Trained]:
        own = {key: _of_seeds(run, seeds, getattr(problem, key)) for key in ("critic", "support", "start")}
        return policy_learner(replace(problem, **own), seeds, name)

    _stage(run, Stage(name, content, steps, settings.learning_rate), build)
    return load_networks(run.folder, name, run.seeds, run.device)


def train_energy(
    run: Run,
    data: Dataset,
    behavior: Behavior,
    critic: Critic,
    method: str,
    beta: float | None = None,
    settings: EnergySettings | None = None,
) -> EnergyNet | ShiftNet:
    """The energy (or shift) stage of a method at inverse temperature beta (as evaluated where None): trained or loaded."""
    settings, data = settings or run.profile.energy, data.to(run.device)
    if METHODS[method].energy is None:
        known = ", ".join(m for m in METHODS if METHODS[m].energy)
        raise StudyError(f"method {method!r} has no energy network: only {known}")
    entry = applied(METHODS[method], settings)
    beta = run.profile.evaluation.beta[method] if beta is None else beta
    made_of = {stage: _settings_hash(run, stage) for stage in ("behavior", "critic")}
    made_of |= {"energy": entry.energy, "gate": entry.gate, "bregman": entry.bregman, "beta": beta}
    support = train_support(run, data, behavior, settings) if entry.energy in SUPPORTED else None
    name, goals = runs.energy_stage(method, beta), run.profile.critic.hindsight > 0
    problem = Guidance(data, behavior, critic, entry, beta, settings, support, goals)

    def build(seeds: tuple[int, ...]) -> tuple[Learner, nn.Module]:
        own = {key: _of_seeds(run, seeds, getattr(problem, key)) for key in ("behavior", "critic", "support")}
        return energy_learner(replace(problem, **own), seeds, name)

    stage = Stage(name, _content(settings, run, data, **made_of), settings.steps, settings.learning_rate)
    _stage(run, stage, build)
    curved = runs.read_metrics(run, name).groupby("seed")["curved"].last().max()
    if entry.energy == "taylor" and curved > TRUSTED_SHARE:
        print(
            f"{name}: beta c_t |H v| is above 1 at up to {100 * curved:.0f}% of noised actions: first order is not to be "
            "trusted there (notebook 09 shows where)"
        )
    return load_networks(run.folder, name, run.seeds, run.device)


def _of_seeds(run: Run, seeds: tuple[int, ...], made: nn.Module | Support | None) -> Any:
    """The given seeds of what is stacked for the run's, for a training that adds seeds to earlier ones."""
    rows = [run.seeds.index(seed) for seed in seeds]
    if isinstance(made, Support):
        return Support(made.index[rows], made.action[rows])
    return made and take_seeds(made, rows, len(run.seeds))
