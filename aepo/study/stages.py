"""The trained stages: behavior, critic, energy. Each loads its artefact where it fits, else trains what is missing."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

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
from aepo.learners.critics import critic_learner, finish_critic
from aepo.learners.discount import chosen_discount
from aepo.learners.energies import SUPPORTED, applied, energy_learner
from aepo.learners.energies import Problem as Guidance
from aepo.learners.policies import RENEWED, WITH_CRITIC, Trained, agreement, chances, policy_learner
from aepo.learners.policies import Problem as Policies
from aepo.learners.support import Support, sample_support
from aepo.learners.training import THREADS, Learner, fit, threads
from aepo.methods import CLONING, METHODS, Method
from aepo.settings import CriticSettings
from aepo.study import runs
from aepo.study.policy import load_networks
from aepo.study.runs import Run

REMEDY = "make batch or width smaller, take fewer seeds, or more memory; a training goes on from its last checkpoint"
TRUSTED_SHARE = 0.1
SUPPORT = ("support", "support_states", "support_steps")  # settings that support actions depend on

Build = Callable[[tuple[int, ...]], tuple[Learner | None, nn.Module]]


@threads(THREADS)
def _stage(
    run: Run, name: str, content: dict[str, Any], build: Build, settings: Any = None, finish: Callable | None = None
) -> None:
    """Leave an artefact as it is where the hash of `content` fits, else train the seeds that it lacks, and write it."""
    digest = settings_table.digest(content)
    meta: dict[str, Any] = {"stage": name, "settings": content, "settings_hash": digest}
    meta |= {"versions": files.versions(), "threads": THREADS}
    entry = {**meta, "device": run.device, "steps": settings.steps if settings else 0}
    with files.lock(run.folder, name), files.memory(name, REMEDY):
        tensors, seeds = _stored(run, name, content, digest)
        missing = tuple(seed for seed in run.seeds if seed not in seeds)
        if missing:
            started = time.time()
            learner, module = build(missing)
            if learner:
                where = run.folder / "checkpoints", meta, run.folder / "progress"
                log = fit(learner, settings.steps, settings.learning_rate, run.profile.chunk, *where)
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
            files.write_artifact(run.artifact(name), trained, {**meta, "seeds": list(seeds)})  # last: it is complete
        elif name not in runs.read_manifest(run.folder).get("stages", {}):
            runs.update_manifest(run.folder, "stages", name, entry | {"seeds": list(seeds)})
        clear_checkpoints(run.folder / "checkpoints", name)


def _stored(run: Run, name: str, content: dict[str, Any], digest: str) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """Tensors and seeds of an artefact; none where there is none. One of other settings is put aside."""
    path = run.artifact(name)
    if not path.exists():
        return {}, ()
    tensors, stored = files.load_networks(path)
    if stored.get("settings_hash") == digest:
        return tensors, tuple(stored["seeds"])
    aside, before = path.with_name(f"{path.stem}.{stored.get('settings_hash')}.old"), stored["settings"]
    changed = [f"{k} {before.get(k)} -> {content.get(k)}" for k in content | before if before.get(k) != content.get(k)]
    shown = ", ".join(changed[:3] + [f"{len(changed) - 3} more"] * (len(changed) > 3))
    print(f"{name}: settings have changed ({shown}), so it is trained again; the old artefact is kept as {aside.name}")
    path.replace(aside)
    return {}, ()


def _settings_hash(run: Run, stage: str) -> str:
    return files.load_tensors(run.artifact(stage))[1]["settings_hash"]


def _content(settings: Any, run: Run, data: Dataset, **more: Any) -> dict[str, Any]:
    made_of = {"chunk": run.profile.chunk, "data": data.content_hash, "format": files.FORMAT}
    return {**settings_table.as_dict(settings), **made_of, **more}


def _of_seeds(run: Run, seeds: tuple[int, ...], problem: Any) -> Any:
    """A problem with the given seeds of what is stacked for the run's, for a training that adds seeds to earlier ones."""
    rows, own = [run.seeds.index(seed) for seed in seeds], dict[str, Any]()
    for name, made in vars(problem).items():
        if isinstance(made, nn.Module):
            own[name] = take_seeds(made, rows, len(run.seeds))
        elif isinstance(made, Support):
            own[name] = Support(made.index[rows], made.action[rows])
    return replace(problem, **own)


def _entry(method: str, network: str) -> Method:
    """A method's entry of METHODS; StudyError where it has no such network ("energy" or "policy")."""
    if getattr(METHODS[method], network) is None:
        known = ", ".join(name for name, entry in METHODS.items() if getattr(entry, network))
        raise StudyError(f"method {method!r} has no {network} network of its own: only {known}")
    return METHODS[method]


def train_behavior(run: Run, data: Dataset) -> Behavior:
    """The behavior stage of a run for all its seeds: trained where it is missing, else loaded."""
    settings, data = run.profile.behavior, data.to(run.device)
    build = lambda seeds: behavior_learner(data, seeds, settings)  # noqa: E731
    finish = lambda module, seeds: finish_behavior(module, data, seeds, settings)  # noqa: E731
    _stage(run, "behavior", _content(settings, run, data), build, settings, finish)
    return load_networks(run.folder, "behavior", run.seeds, run.device)


def critic_settings(run: Run, data: Dataset) -> CriticSettings:
    """The critic's settings of a run, with the discount of the rule where they name none."""
    settings = run.profile.critic
    return settings if settings.discount else replace(settings, discount=chosen_discount(data, run.task))


def train_critic(run: Run, data: Dataset, behavior: Behavior | None = None) -> Critic:
    """The critic stage of a run; the kind "softmax", QGPO's own, needs the behavior model."""
    settings, data = critic_settings(run, data), data.to(run.device)
    content, softmax = _content(settings, run, data), settings.kind == "softmax"
    if softmax:
        content["behavior"] = _settings_hash(run, "behavior")

    def build(seeds: tuple[int, ...]) -> tuple[Learner, Critic]:
        rows, model = [run.seeds.index(seed) for seed in seeds], cast(Behavior, behavior)
        return critic_learner(data, seeds, settings, take_seeds(model, rows, len(run.seeds)) if softmax else None)

    _stage(run, "critic", content, build, settings, lambda module, seeds: finish_critic(module, data))
    return load_networks(run.folder, "critic", run.seeds, run.device)


def train_support(
    run: Run, data: Dataset, behavior: ActionModel, name: str = "support", source: str = "behavior"
) -> Support:
    """The support actions of a run, drawn by the model of the stage `source`, shared by the methods that need them."""
    data, path, settings = data.to(run.device), run.artifact(name), run.profile.energy
    content = {key: getattr(settings, key) for key in SUPPORT} | {"data": data.content_hash}
    content[source] = _settings_hash(run, source)

    def draw(seeds: tuple[int, ...]) -> tuple[None, nn.Module]:
        module, own = nn.Module(), take_seeds(behavior, [run.seeds.index(seed) for seed in seeds], len(run.seeds))
        for key, drawn in vars(sample_support(own, data, seeds, settings)).items():
            module.register_buffer(key, drawn)
        return None, module

    _stage(run, name, content, draw)
    tensors, meta = files.load_tensors(path)
    if set(tensors) != {"index", "action"}:
        raise StudyError(f"{path} lacks index or action: {files.REMEDY}")
    rows = [meta["seeds"].index(seed) for seed in run.seeds]
    return Support(*(tensors[key][rows].to(run.device) for key in ("index", "action")))


def train_policy(run: Run, data: Dataset, behavior: Behavior, critic: Critic, method: str) -> Trained:
    """A method's own policy at the inverse temperature that is evaluated: trained, round by round, or loaded."""
    entry, settings, data = _entry(method, "policy"), run.profile.policy, data.to(run.device)
    beta = run.profile.evaluation.beta[method] if entry.tempered else 0.0
    rounds = settings.rounds if entry.policy in RENEWED else 1
    name, model, source = runs.policy_stage(method, beta), behavior, "behavior"
    times, its_critic = run.profile.behavior.variance_times, critic_settings(run, data)
    problem = Policies(entry.policy or "", data, beta / rounds, settings, its_critic, critic, times=times)
    if entry.policy not in RENEWED:
        return _train_policy(run, problem, name, settings.steps)
    for index in range(rounds):
        this = name if index == rounds - 1 else f"{name}-round{index + 1}"
        support = train_support(run, data, model, f"support-{name}-round{index + 1}" if index else "support", source)
        problem = replace(problem, support=support, start=model if entry.policy == "weighted" or index else None)
        steps = settings.steps // rounds + (0 if problem.start else run.profile.behavior.steps)
        trained = _train_policy(run, problem, this, steps, source)
        model, source = trained.average, this
    return trained


def _train_policy(run: Run, problem: Policies, name: str, steps: int, source: str = "behavior") -> Trained:
    settings, kind = problem.settings, problem.kind
    content = _content(settings, run, problem.data, kind=kind, beta=problem.beta)
    content["critic_settings"] = settings_table.as_dict(problem.critic_settings)
    if kind in WITH_CRITIC:
        steps = settings.critic_steps
    else:
        content["critic"] = _settings_hash(run, "critic")
    if problem.support:
        content |= {key: getattr(run.profile.energy, key) for key in SUPPORT}
        content |= {source: _settings_hash(run, source), "start": source if problem.start else steps}
    build = lambda seeds: policy_learner(_of_seeds(run, seeds, problem), seeds, name)  # noqa: E731
    finish, times = None, run.profile.behavior
    if kind == "resampled":  # a behavior model of other pairs: as long, and with a posterior variance
        steps = times.steps
        measured = [times.variance_times, times.variance_samples, "agreement"]
        content |= {"steps": steps, "measured": measured}

        def finish(module: Trained, seeds: tuple[int, ...]) -> None:
            own, average = _of_seeds(run, seeds, problem), module.average
            finish_behavior(average, own.data, seeds, times, chances(own.data, own.critic, own.beta, settings))
            average.agreement.copy_(agreement(average, own.critic, own.data, seeds))

    _stage(run, name, content, build, replace(settings, steps=steps), finish)
    return load_networks(run.folder, name, run.seeds, run.device)


def train_energy(run: Run, data: Dataset, behavior: Behavior, critic: Critic, method: str) -> EnergyNet | ShiftNet:
    """The energy (or shift) stage of a method at the inverse temperature that is evaluated: trained or loaded."""
    settings, data = run.profile.energy, data.to(run.device)
    entry, beta = applied(_entry(method, "energy"), settings), run.profile.evaluation.beta[method]
    name = runs.energy_stage(method, beta)
    made_of: dict[str, Any] = {stage: _settings_hash(run, stage) for stage in ("behavior", "critic")}
    made_of |= {"energy": entry.energy, "gate": entry.gate, "bregman": entry.bregman, "beta": beta}
    made_of |= {"power": 1.0} if (entry.energy or "").startswith("shift-") else {}  # of `ShiftNet`
    support = train_support(run, data, behavior) if entry.energy in SUPPORTED else None
    problem = Guidance(data, behavior, critic, entry, beta, settings, support, run.profile.critic.hindsight > 0)

    build = lambda seeds: energy_learner(_of_seeds(run, seeds, problem), seeds, name)  # noqa: E731
    _stage(run, name, _content(settings, run, data, **made_of), build, settings)
    curved = runs.read_metrics(run, name).groupby("seed")["curved"].last().max()
    if entry.energy == "taylor" and curved > TRUSTED_SHARE:
        where = f"beta c_t |H v| is above 1 at up to {100 * curved:.0f}% of noised actions"
        print(f"{name}: {where}: first order is not to be trusted there (notebook 09 shows where)")
    return load_networks(run.folder, name, run.seeds, run.device)


def train_method(run: Run, data: Dataset, behavior: Behavior, method: str) -> None:
    """Train what a method needs beyond the behavior model, or find it done."""
    entry = METHODS[method]
    if method in CLONING:
        return
    critic = train_critic(run, data, behavior)
    if entry.energy:
        train_energy(run, data, behavior, critic, method)
    if entry.policy:
        train_policy(run, data, behavior, critic, method)
