"""Variants of a run: some settings changed, everything that they do not touch shared with the run; one table."""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from aepo import files
from aepo.data import datasets
from aepo.files import StudyError
from aepo.learners.energies import SUPPORTED
from aepo.learners.policies import RENEWED
from aepo.methods import CLONING, METHODS
from aepo.study import results, runs, stages
from aepo.study.runs import Run

TOUCHES = {  # by the stage whose settings change: which stages are made again, by how their names begin
    "behavior": ("behavior", "energy", "policy", "support"),
    "critic": ("critic", "energy", "policy", "support-policy"),
    "energy": ("energy", "support"),
    "policy": ("policy", "support-policy"),
    "evaluation": (),
}
STEPS = ("behavior-steps", "critic-steps", "energy-steps", "policy-steps", "policy-states")  # they change study's
SEARCH = ("search", "noise")  # questions whose answers are settings: `searched` in tasks.yaml
TIMES = (0.0, 0.5, 1.0, 2.0)  # the middle value: the values that are searched; 0 of the noise alone


@dataclass(frozen=True)
class Variant:
    """A row of variants.yaml, which says what stands in it."""

    name: str
    question: str
    methods: tuple[str, ...]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    number: str = ""
    times: float | None = None


_TABLE = yaml.safe_load(Path(__file__).with_name("variants.yaml").read_text())
QUESTIONS = {question: entry["asks"] for question, entry in _TABLE.items()}
VARIANTS = [
    Variant(question=question, settings={stage: row.pop(stage) for stage in TOUCHES if stage in row}, **row)
    for question, entry in _TABLE.items()
    for row in entry["variants"]
]


def variants_of(profile: str, methods: Collection[str] = tuple(METHODS)) -> list[Variant]:
    """The variants that runs of a profile have with these methods: all, those of STEPS at study; at smoke one a question."""
    of_profile = (variant for variant in VARIANTS if profile == "study" or variant.question not in STEPS)
    found = [variant for variant in of_profile if not variant.number or set(variant.methods) & set(methods)]
    if profile != "smoke":
        return found
    firsts = {variant.question: variant for variant in reversed(found)}
    return [variant for variant in found if firsts[variant.question] is variant]


def slug(variant: str) -> str:
    """A variant's name as that of its folder."""
    return variant.replace(" ", "-")


def variant_run(run: Run, variant: Variant) -> Run:
    """The run of a variant: a folder of its own below the run's, its settings changed."""
    changed = {stage: dict(values) for stage, values in run.task.settings.items()}
    for stage, values in variant.settings.items():
        own = changed.setdefault(stage, {})
        for key, value in values.items():
            of_methods = isinstance(getattr(getattr(run.profile, stage), key), Mapping)
            own[key] = {**own.get(key, {}), **dict.fromkeys(variant.methods, value)} if of_methods else value
    folder, task = run.folder / "ablations" / slug(variant.name), replace(run.task, settings=changed)
    methods = tuple(m for m in variant.methods if m in run.methods or not variant.number)
    return replace(run, folder=folder, task=task, methods=methods)


def _used(run: Run) -> list[str]:
    """The stages that the run's methods act with, and what these were made from."""
    beta, used = run.profile.evaluation.beta, {"behavior"}
    for method in run.methods:
        entry = METHODS[method]
        used |= {*([] if method in CLONING else ["critic"]), *runs.stages_of(method, beta.get(method, 0.0)).values()}
        if entry.energy in SUPPORTED or entry.policy in RENEWED:
            used.add("support")
        if entry.policy in RENEWED:
            final = runs.policy_stage(method, beta[method])
            for index in range(1, run.profile.policy.rounds):
                used |= {f"{final}-round{index}", f"support-{final}-round{index + 1}"}
    return sorted(used)


def _share(run: Run, own: Run, *names: str, anew: bool = False) -> None:
    """Copy a run's files to a variant's folder that lacks the last of them, or `anew`; what does not fit is made there."""
    if (run.folder / names[-1]).exists() and (anew or not (own.folder / names[-1]).exists()):
        for name in (name for name in names if (run.folder / name).exists()):
            with files.atomic_path(own.folder / name) as temporary:
                shutil.copyfile(run.folder / name, temporary)


def evaluate(run: Run, variant: Variant) -> pd.DataFrame:
    """Train what the variant changes, evaluate its methods; their episodes also in the run's returns.csv from then on."""
    if not run.task.env_id:
        raise StudyError(f"task {run.task.name} is train-only: its variants have no environment to be evaluated in")
    own, data = variant_run(run, variant), datasets.load(run.task, run.profile_name)
    own.folder.mkdir(parents=True, exist_ok=True)
    runs.record_data(own.folder, data)
    again = tuple(name for stage in variant.settings for name in TOUCHES[stage])
    shared = [stage for stage in _used(own) if not stage.startswith(again)]
    made_of, before = results.made_of(run, shared), results.made_of(own, shared)
    for stage in shared:  # support has no log; the artefact comes last: where it is, the others are
        names = f"metrics/{stage}.parquet", f"{stage}.json", f"{stage}.safetensors"
        _share(run, own, *names, anew=made_of["networks"][stage] != before["networks"][stage])
    for method in own.methods:
        _share(run, own, f"evaluation/scale-{method}-b{own.profile.evaluation.beta.get(method, 0):g}.json")
        _share(run, own, f"evaluation/{method}.safetensors")
    behavior, rows = stages.train_behavior(own, data), []
    for method in own.methods:
        stages.train_method(own, data, behavior, method)
        rows.append(results.evaluated_rows(own, method, variant.name))
    frame = results.with_scores(pd.concat(rows, ignore_index=True), run, data)
    table = run.folder / "evaluation" / f"ablation-{own.folder.name}.csv"
    files.write_json(table.with_suffix(".json"), made_of)
    return results.write(frame, table)
