"""The trained stages: behavior, critic, energy. Each loads its artefact where it fits, else trains what is missing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pandas as pd
from torch import Tensor, nn

from aepo import files
from aepo import settings as settings_table
from aepo.core.models import ActionModel, Behavior, Critic, take_seeds
from aepo.core.networks import EnergyNet, ShiftNet, join_seeds, select_seeds
from aepo.data.datasets import Dataset
from aepo.files import StudyError
from aepo.learners.behavior import behavior_learner, finish_behavior
from aepo.learners.checkpoints import clear_checkpoints
from aepo.learners.critics import critic_learner, finish_critic, softmax_critic_learner
from aepo.learners.energies import SUPPORTED, applied, energy_learner, make_net
from aepo.learners.policies import RENEWED, WITH_CRITIC, Flow, Trained, policy_learner
from aepo.learners.shifts import make_shift_net, shift_learner
from aepo.learners.support import Support, sample_support
from aepo.learners.training import THREADS, Learner, fit, threads
from aepo.methods import METHODS, Method
from aepo.settings import BehaviorSettings, CriticSettings, EnergySettings, PolicySettings
from aepo.study import runs
from aepo.study.runs import Run

TRUSTED_SHARE = 0.1
SUPPORT = ("support", "support_states", "support_steps")  # settings that support actions depend on


@threads(THREADS)
def _stage(
    run: Run,
    name: str,
    content: dict[str, Any],
    steps: int,
    rate: float,
    build: Callable[[tuple[int, ...]], tuple[Learner | None, nn.Module]],
    finish: Callable[[nn.Module, tuple[int, ...]], None],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load the artefact where its settings hash fits, train the seeds that it lacks, and write it; returns its content."""
    meta = {
        "stage": name,
        "settings": content,
        "settings_hash": settings_table.digest(content),
        "versions": files.versions(),
        "threads": THREADS,
    }
    path = run.artifact(name)
    remedy = (
        "make batch or width smaller, take fewer seeds, or more memory; a training goes on from its last checkpoint"
    )
    with files.lock(run.folder, name), files.memory(name, remedy):
        tensors, seeds = {}, ()
        if path.exists():
            tensors, stored = files.load_networks(path)
            if stored.get("settings_hash") == meta["settings_hash"]:
                seeds = tuple(stored["seeds"])
            else:
                aside = path.with_name(f"{path.stem}.{stored.get('settings_hash')}.old")
                print(
                    f"{name}: settings have changed ({_changes(stored.get('settings'), content)}), so it is trained again; "
                    f"the old artefact is kept as {aside.name}"
                )
                path.replace(aside)
        missing = tuple(seed for seed in run.seeds if seed not in seeds)
        entry = {**meta, "device": run.device, "steps": steps}
        if missing:
            started = time.time()
            learner, module = build(missing)
            log = pd.DataFrame()
            if learner:
                log = fit(learner, steps, rate, run.profile.chunk, run.checkpoints(), meta, run.folder / "progress")
            finish(module, missing)
            trained = dict(module.state_dict())
            if seeds:
                trained = {
                    key: join_seeds(tensors[key], trained[key].cpu(), len(seeds), len(missing)) for key in trained
                }
                if learner:
                    before = runs.read_metrics(run, name)
                    log = pd.concat([before[before["seed"].isin(seeds)], log], ignore_index=True)
            tensors, seeds = {key: value.cpu() for key, value in trained.items()}, seeds + missing
            if learner:
                with files.atomic_path(run.metrics(name)) as temporary:
                    log.to_parquet(temporary)
            entry |= {"seeds": list(seeds), "seconds": round(time.time() - started, 1)}
            runs.update_manifest(run.folder, "stages", name, entry)
            files.write_artifact(path, tensors, {**meta, "seeds": list(seeds)})  # last: what is there is complete
        elif name not in runs.read_manifest(run.folder).get("stages", {}):
            runs.update_manifest(run.folder, "stages", name, entry | {"seeds": list(seeds)})
        clear_checkpoints(run.checkpoints(), name)
    rows = [seeds.index(seed) for seed in run.seeds]
    return {key: select_seeds(value, rows, len(seeds)).to(run.device) for key, value in tensors.items()}, meta


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
    settings = settings or run.profile.behavior
    data = data.to(run.device)
    tensors, _ = _stage(
        run,
        "behavior",
        _content(settings, run, data),
        settings.steps,
        settings.learning_rate,
        lambda seeds: behavior_learner(data, seeds, settings),
        lambda module, seeds: finish_behavior(module, data, seeds, settings),
    )
    sizes = (settings.width, settings.depth, settings.variance_times)
    behavior = Behavior(len(run.seeds), data.state.shape[1], data.action.shape[1], *sizes).to(run.device)
    files.fill(behavior, tensors, run.artifact("behavior"))
    return behavior.requires_grad_(False)


def train_critic(
    run: Run, data: Dataset, settings: CriticSettings | None = None, behavior: Behavior | None = None
) -> Critic:
    """The critic stage of a run for all its seeds: trained where it is missing, else loaded.

    The kind "softmax", QGPO's own, needs the behavior model.
    """
    settings = settings or run.profile.critic
    data = data.to(run.device)
    content, softmax = _content(settings, run, data), settings.kind == "softmax"
    if softmax:
        content["behavior"] = _settings_hash(run, "behavior")

    def build(seeds: tuple[int, ...]) -> tuple[Learner, Critic]:
        if not softmax:
            return critic_learner(data, seeds, settings)
        own = _of_seeds(run, seeds, behavior)[0]
        return softmax_critic_learner(data, own, seeds, settings)

    tensors, _ = _stage(
        run,
        "critic",
        content,
        settings.steps,
        settings.learning_rate,
        build,
        lambda module, seeds: finish_critic(module, data),
    )
    critic = Critic(len(run.seeds), data.state.shape[1], data.action.shape[1], settings.width, settings.depth)
    files.fill(critic.to(run.device), tensors, run.artifact("critic"))
    return critic.requires_grad_(False)


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
    data = data.to(run.device)
    content = {key: getattr(settings, key) for key in SUPPORT} | {"data": data.content_hash}
    content[source] = _settings_hash(run, source)

    def draw(seeds: tuple[int, ...]) -> nn.Module:
        drawn = sample_support(_of_seeds(run, seeds, behavior)[0], data, seeds, settings)
        module = nn.Module()
        module.register_buffer("index", drawn.index)
        module.register_buffer("action", drawn.action)
        return module

    tensors, _ = _stage(run, name, content, 0, 0.0, lambda seeds: (None, draw(seeds)), lambda module, seeds: None)
    if set(tensors) != {"index", "action"}:
        raise StudyError(f"{run.artifact(name)} lacks index or action: {files.REMEDY}")
    return Support(tensors["index"], tensors["action"])


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
    steps = settings.critic_steps if entry.policy in WITH_CRITIC else settings.steps // rounds
    data, final = data.to(run.device), runs.policy_stage(method, beta)
    model, source, trained = behavior, "behavior", None
    for index in range(rounds):
        name = final if index == rounds - 1 else f"{final}-round{index + 1}"
        support = None
        if entry.policy in RENEWED:
            of = "support" if index == 0 else f"support-{final}-round{index + 1}"
            support = train_support(run, data, model, run.profile.energy, of, source)
        trained = _train_policy(run, data, model, critic, entry, beta / rounds, settings, name, source, support, steps)
        model, source = trained.average, name
    return trained


def _train_policy(
    run: Run,
    data: Dataset,
    start: ActionModel,
    critic: Critic,
    entry: Method,
    beta: float,
    settings: PolicySettings,
    name: str,
    source: str,
    support: Support | None,
    steps: int,
) -> Trained:
    critic_settings, kind = run.profile.critic, entry.policy
    content = _content(settings, run, data, kind=kind, beta=beta)
    content["critic_settings"] = settings_table.as_dict(critic_settings)
    if kind not in WITH_CRITIC:
        content["critic"] = _settings_hash(run, "critic")
    goes_on = kind == "weighted" or (kind == "flow" and isinstance(start, Flow))
    if kind == "flow" and goes_on:
        content["start"] = source
    if support is not None:
        content |= {source: _settings_hash(run, source)} | {key: getattr(run.profile.energy, key) for key in SUPPORT}

    def build(seeds: tuple[int, ...]) -> tuple[Learner, Trained]:
        model, own = _of_seeds(run, seeds, start, critic)
        rows = [run.seeds.index(seed) for seed in seeds]
        drawn = support and Support(support.index[rows], support.action[rows])
        first = model if goes_on else None
        return policy_learner(kind, data, seeds, settings, critic_settings, beta, own, drawn, first, name)

    tensors, _ = _stage(run, name, content, steps, settings.learning_rate, build, lambda module, seeds: None)
    n, d = data.state.shape[1], data.action.shape[1]
    sizes = (settings.width, settings.depth), (critic_settings.width, critic_settings.depth)
    module = Trained(kind, len(run.seeds), n, d, *sizes).to(run.device)
    files.fill(module, tensors, run.artifact(name))
    return module.requires_grad_(False)


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
    settings = settings or run.profile.energy
    if METHODS[method].energy is None:
        raise StudyError(
            f"method {method!r} has no energy network: only {', '.join(m for m in METHODS if METHODS[m].energy)}"
        )
    entry = applied(METHODS[method], settings)
    beta = run.profile.evaluation.beta[method] if beta is None else beta
    data = data.to(run.device)
    upstream = {stage: _settings_hash(run, stage) for stage in ("behavior", "critic")}
    name = runs.energy_stage(method, beta)
    support = train_support(run, data, behavior, settings) if entry.energy in SUPPORTED else None

    shift = entry.energy.removeprefix("shift-") if entry.energy.startswith("shift-") else None

    def build(seeds: tuple[int, ...]) -> tuple[Learner, nn.Module]:
        own = _of_seeds(run, seeds, behavior, critic)
        if shift:
            goals = run.profile.critic.hindsight > 0
            return shift_learner(data, *own, shift, beta, seeds, settings, name, goals)
        rows = [run.seeds.index(seed) for seed in seeds]
        drawn = support and Support(support.index[rows], support.action[rows])
        return energy_learner(data, *own, entry, beta, seeds, settings, name, drawn)

    tensors, _ = _stage(
        run,
        name,
        _content(
            settings, run, data, energy=entry.energy, gate=entry.gate, bregman=entry.bregman, beta=beta, **upstream
        ),
        settings.steps,
        settings.learning_rate,
        build,
        lambda module, seeds: None,
    )
    if shift:
        net = make_shift_net(behavior, data.state.shape[1], settings)
    else:
        net = make_net(data, len(run.seeds), entry, settings)
    files.fill(net, tensors, run.artifact(name))
    curved = 0.0 if shift else runs.read_metrics(run, name).groupby("seed")["curved"].last().max()
    if entry.energy == "taylor" and curved > TRUSTED_SHARE:
        print(
            f"{name}: beta c_t |H v| is above 1 at up to {100 * curved:.0f}% of noised actions: first order is not to be "
            "trusted there (notebook 09 shows where)"
        )
    return net.requires_grad_(False)


def _of_seeds(run: Run, seeds: tuple[int, ...], *modules: nn.Module) -> list[nn.Module]:
    """The given seeds of the run's stacked networks, for a training that adds seeds to earlier ones."""
    rows = [run.seeds.index(seed) for seed in seeds]
    return [take_seeds(module, rows, len(run.seeds)) for module in modules]
