"""Variants of a run: some settings changed, everything that they do not touch shared with the run; one table."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from aepo import files, settings
from aepo.data import datasets
from aepo.files import StudyError
from aepo.learners.energies import SUPPORTED
from aepo.learners.policies import RENEWED
from aepo.methods import METHODS
from aepo.study import campaign, results, runs, stages
from aepo.study.runs import Run

TOUCHES = {  # by the stage whose settings change: which stages are made again, by how their names begin
    "critic": ("critic", "energy", "policy", "support-policy"),
    "energy": ("energy", "support"),
    "policy": ("policy", "support-policy"),
    "evaluation": (),
}
TIMES = (0.25, 0.5, 1.0, 2.0, 4.0)  # the default: the values that are searched
SCALE_SEARCHED = ("qgpo", "aepo", "aepo-support")


@dataclass(frozen=True)
class Variant:
    """`settings` by stage that differ, for some methods; `question`: what it answers.

    A setting that each method has its own of is given as the one value of all `methods`. Of the search of one number a
    method: which `number`, and how many `times` its default; methods that the run itself does not have are left out.
    """

    name: str
    question: str
    methods: tuple[str, ...]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    number: str = ""
    times: float | None = None


QUESTIONS = {
    "factor": "more or less guidance than the rule chooses, for every target",
    "own": "the number that stands for it in methods without a guidance scale",
    "grid": "how much guidance: beta and the guidance scale",
    "expectile": "the expectile of the critic's V: the mean of what was recorded, or nearer to its best",
    "floor": "a critic without the floor of recorded returns",
    "solver": "how many solver steps",
    "support": "how many support actions",
    "noise": "how much noise to start from; from none: one action a state",
}


def _searched() -> list[Variant]:
    """One number of each method, at each of TIMES its default."""
    found = []
    for x in TIMES:
        scale = {"evaluation": {"scale_factor": x}}
        found.append(Variant(f"{x:g} x", "factor", SCALE_SEARCHED, scale, "scale", x))
        candidates = {"evaluation": {"candidates": int(16 * x)}}
        found.append(Variant(f"{16 * x:g} candidates", "own", ("best-of-n",), candidates, "candidates", x))
        for method in ("iql", "qipo"):
            beta = {"evaluation": {"beta": 3 * x}}
            found.append(Variant(f"{method} beta {3 * x:g}", "own", (method,), beta, "beta", x))
        alpha = {"policy": {"alpha": 2.5 * x}}
        found.append(Variant(f"alpha {2.5 * x:g}", "own", ("td3bc",), alpha, "alpha", x))
    return found


def _grid() -> list[Variant]:
    """Inverse temperature by guidance scale."""
    pairs = [(beta, scale) for beta in (1.0, 3.0, 10.0) for scale in (0.5, 1.0, 2.0)]
    values = {f"beta {beta:g}, scale {scale:g}": {"beta": beta, "guidance_scale": scale} for beta, scale in pairs}
    return [Variant(name, "grid", ("aepo-cubature",), {"evaluation": value}) for name, value in values.items()]


VARIANTS = [
    *_searched(),
    *_grid(),
    Variant("expectile 0.5", "expectile", ("best-of-n", "aepo-cubature", "iql"), {"critic": {"expectile": 0.5}}),
    Variant("expectile 0.8", "expectile", ("best-of-n", "aepo-cubature", "iql"), {"critic": {"expectile": 0.8}}),
    Variant("no floor", "floor", ("best-of-n", "aepo-cubature"), {"critic": {"return_floor": False}}),
    Variant("5 solver steps", "solver", ("bc", "aepo-cubature"), {"evaluation": {"solver_steps": 5}}),
    Variant("20 solver steps", "solver", ("bc", "aepo-cubature"), {"evaluation": {"solver_steps": 20}}),
    Variant("noise 0", "noise", ("bc", "aepo-cubature"), {"evaluation": {"noise_scale": 0.0}}),
    Variant("noise 0.25", "noise", ("bc", "best-of-n"), {"evaluation": {"noise_scale": 0.25}}),
    Variant("noise 0.5", "noise", ("bc", "best-of-n", "aepo-cubature"), {"evaluation": {"noise_scale": 0.5}}),
    Variant("noise 1", "noise", ("aepo-cubature",), {"evaluation": {"noise_scale": 1.0}}),
    Variant("4 support actions", "support", ("aepo-support",), {"energy": {"support": 4}}),
    Variant("64 support actions", "support", ("aepo-support",), {"energy": {"support": 64, "support_states": 4_096}}),
]


def variants_of(profile: str, methods: Collection[str] = tuple(METHODS)) -> list[Variant]:
    """The variants that runs of a profile have with these methods: all; at smoke one a question."""
    found = [variant for variant in VARIANTS if not variant.number or set(variant.methods) & set(methods)]
    if not settings.is_smoke(profile):
        return found
    firsts: dict[str, Variant] = {}
    for variant in found:
        firsts.setdefault(variant.question, variant)
    return list(firsts.values())


def slug(variant: str) -> str:
    """A variant's name as that of its folder."""
    return variant.replace(" ", "-").replace(",", "")


def variant_run(run: Run, variant: Variant) -> Run:
    """The run of a variant: a folder of its own below the run's, its settings changed."""
    changed = {stage: dict(values) for stage, values in run.task.settings.items()}
    for stage, values in variant.settings.items():
        own = changed.setdefault(stage, {})
        for key, value in values.items():
            of_methods = isinstance(getattr(getattr(run.profile, stage), key), Mapping)
            own[key] = {**own.get(key, {}), **dict.fromkeys(variant.methods, value)} if of_methods else value
    folder = run.folder / "ablations" / slug(variant.name)
    methods = tuple(m for m in variant.methods if m in run.methods or not variant.number)
    return replace(run, folder=folder, task=replace(run.task, settings=changed), methods=methods)


def _used(run: Run) -> list[str]:
    """The stages that the run's methods act with, and what these were made from."""
    beta, used = run.profile.evaluation.beta, {"behavior"}
    for method in run.methods:
        entry = METHODS[method]
        used |= {"critic", *runs.stages_of(method, beta.get(method, 0.0)).values()}
        if entry.energy in SUPPORTED or entry.policy in RENEWED:
            used.add("support")
        if entry.policy in RENEWED:
            final = runs.policy_stage(method, beta[method])
            for index in range(1, run.profile.policy.rounds):
                used |= {f"{final}-round{index}", f"support-{final}-round{index + 1}"}
    return sorted(used)


def _settings_hash(run: Run, stage: str) -> str | None:
    return files.read_json(run.folder / f"{stage}.json").get("settings_hash")


def _share(run: Run, own: Run, *names: str, anew: bool = False) -> None:
    """Copy a run's files to a variant's folder that lacks the last of them, or `anew`; what does not fit is made there."""
    if (run.folder / names[-1]).exists() and (anew or not (own.folder / names[-1]).exists()):
        for source in (run.folder / name for name in names if (run.folder / name).exists()):
            with files.atomic_path(own.folder / source.relative_to(run.folder)) as temporary:
                shutil.copyfile(source, temporary)


def evaluate(run: Run, variant: Variant) -> pd.DataFrame:
    """Train what the variant changes, evaluate its methods; their episodes also in the run's returns.csv from then on."""
    if not run.task.env_id:
        raise StudyError(f"task {run.task.name} is train-only: its variants have no environment to be evaluated in")
    own, data = variant_run(run, variant), datasets.load(run.task, run.profile_name)
    own.folder.mkdir(parents=True, exist_ok=True)
    runs.record_data(own.folder, data)
    again = tuple(name for stage in variant.settings for name in TOUCHES[stage])
    shared = [stage for stage in _used(own) if not stage.startswith(again)]
    for stage in shared:  # support has no log; the artefact comes last: where it is, the others are
        anew = _settings_hash(run, stage) != _settings_hash(own, stage)
        _share(run, own, f"metrics/{stage}.parquet", f"{stage}.json", f"{stage}.safetensors", anew=anew)
    for method in own.methods:
        _share(run, own, f"evaluation/scale-{method}-b{own.profile.evaluation.beta.get(method, 0):g}.json")
        _share(run, own, f"evaluation/{method}.safetensors")
    behavior, rows = stages.train_behavior(own, data), []
    for method in own.methods:
        campaign.train(own, data, behavior, method)
        rows.append(results.evaluated_rows(own, method, variant.name))
    frame = results.with_scores(pd.concat(rows, ignore_index=True), run, data)
    table = run.folder / "evaluation" / f"ablation-{own.folder.name}.csv"
    made_from = {stage: _settings_hash(run, stage) for stage in shared}
    files.write_json(table.with_suffix(".json"), {"seeds": list(run.seeds), "networks": made_from})
    with files.atomic_path(table) as temporary:
        frame.to_csv(temporary, index=False)
    return frame
